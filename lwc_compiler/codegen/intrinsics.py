from tvm.ir import Expr
def expand(e: Expr) -> Expr:
    return e
