"""What is refused, and how; that operators are right is shown by tests/onnx_backend."""

import onnx
import pytest
from onnx import TensorProto, helper, parser

from lwc_compiler.codegen.converters import CONVERTERS
from lwc_compiler.codegen.frontend import check_supported, import_onnx
from lwc_compiler.errors import UnsupportedError


def model(graph, opset=18, ir_version=9):
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}, "other": 1]>\n{graph}')


def calls(module):
    """Names of the operators that `main` calls."""
    bindings = [b for block in module["main"].body.blocks for b in block.bindings]
    return [getattr(b.value.op, "name", "") for b in bindings if hasattr(b.value, "op")]


REFUSED = {
    "unknown operator": (
        "agraph (float[4] x) => (float[?] y) { [here] y = NonZero(x) }",
        "node 'here' \\(NonZero\\) cannot be lowered: the operator is not handled; docs/operators.md",
    ),
    "unknown domain": (
        "agraph (float[4] x) => (float[4] y) { [here] y = other.Relu(x) }",
        "node 'here' \\(other.Relu\\)",
    ),
    "computed shape": (
        "agraph (float[4] x, int64[2] s) => (float[a, b] y) { t = Neg(s)\n [here] y = Reshape(x, t) }",
        "node 'here' \\(Reshape\\) cannot be lowered: its input 't' must be constant",
    ),
    "control flow": (
        (
            "agraph (float[4] x, bool c) => (float[4] y) { [here] y = If(c) <then_branch = a () => (float[4] p) "
            "{ p = Neg(x) }, else_branch = b () => (float[4] q) { q = Abs(x) }> }"
        ),
        "node 'here' \\(If\\) cannot be lowered: control flow",
    ),
    "random numbers": (
        "agraph () => (float[4] y) { [here] y = RandomNormal<shape = [4]>() }",
        "node 'here' \\(RandomNormal\\)",
    ),
    "sequence": (
        "agraph (seq(float[4]) x) => (seq(float[4]) y) { y = Identity(x) }",
        "'x' is a sequence; only tensors",
    ),
    "strings": ("agraph (string[4] x) => (string[4] y) { y = Identity(x) }", "'x' has element type STRING"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(case):
    graph, message = REFUSED[case]
    with pytest.raises(UnsupportedError, match=message):
        check_supported(model(graph))


def test_all_that_is_refused_is_found_at_once():
    graph = """agraph (seq(float[4]) s, float[4] x, int64[1] t) => (float[4] y) {
        [first] a = NonZero(x)
        [second] b = Reshape(x, t)
        [fine] c = Relu(x)
        [third] y = my.Op(c)
    }"""
    with pytest.raises(UnsupportedError) as caught:
        check_supported(model(graph))
    found = [(each.node, each.operator) for each in caught.value.refusals]
    assert found == [("", ""), ("first", "NonZero"), ("second", "Reshape"), ("third", "my.Op")]
    lines = str(caught.value).splitlines()
    assert lines[0] == "the model cannot be lowered, for 4 reasons:"
    assert lines[1:] == [f"  {each}" for each in caught.value.refusals]
    assert caught.value.refusals[3].reason.startswith("the operator is not handled")


def test_many_refusals_make_no_long_message():
    nodes = "".join(f"[n{number}] y{number} = NonZero(x) " for number in range(30))
    with pytest.raises(UnsupportedError) as caught:
        check_supported(model(f"agraph (float[4] x) => (int64[1, n] y0) {{ {nodes} }}"))
    assert len(caught.value.refusals) == 30
    assert str(caught.value).splitlines()[-1] == "  and 10 more"
    assert len(str(caught.value).splitlines()) == 22


REFUSED_BY_IMPORT = {
    "training mode": (
        "agraph (float[4] x) => (float[4] y) <bool t = {1}> { [here] y = Dropout(x, , t) }",
        "node 'here' \\(Dropout\\) cannot be lowered: it is in training mode",
    ),
    "in a definition": (
        "agraph (float[4] x) => (float[4] y) { [here] y = Bernoulli(x) }",
        (
            "node 'here' \\(Bernoulli\\) cannot be lowered: it is defined by simpler operators, of which node .* "
            "\\(RandomUniformLike\\)"
        ),
    ),
    "open dimension": ("agraph (float[n] x) => (float[n] y) { y = Neg(x) }", "input 'x' has an open dimension"),
    "no elements": (
        "agraph (float[4] x) => (float[0] y) <int64[1] s = {2}, int64[1] e = {2}> { y = Slice(x, s, e) }",
        "output 'y' has no elements",
    ),
    "different lengths": (
        (
            "agraph (float[2,2,3] x, float[1,4,3] w, float[1,4,4] r) => (float[2,1,2,4] y) <int32[2] l = {2, 1}> "
            "{ [here] y = RNN<hidden_size = 4>(x, w, r, , l) }"
        ),
        "node 'here' \\(RNN\\) cannot be lowered: sequences of different lengths",
    ),
    "activation": (
        (
            "agraph (float[2,2,3] x, float[1,4,3] w, float[1,4,4] r) => (float[2,1,2,4] y) "
            '{ [here] y = RNN<hidden_size = 4, activations = ["Elu"]>(x, w, r) }'
        ),
        "node 'here' \\(RNN\\) cannot be lowered: its activation Elu is not handled; Relu, Sigmoid, Tanh are",
    ),
}


@pytest.mark.parametrize("case", REFUSED_BY_IMPORT)
def test_refused_by_the_import(case, capfd):
    graph, message = REFUSED_BY_IMPORT[case]
    with pytest.raises(UnsupportedError, match=message):
        import_onnx(model(graph))
    assert capfd.readouterr().err == ""


def test_shape_arithmetic_disappears():
    graph = """agraph (float[2,3,4] x) => (float[2,12] y) <int64[1] m = {-1}, int64 zero = {0}, int64[1] axes = {0}> {
        s = Shape(x)
        n = Gather(s, zero)
        u = Unsqueeze(n, axes)
        t = Concat<axis = 0>(u, m)
        y = Reshape(x, t)
    }"""
    proto = model(graph)
    check_supported(proto)
    assert calls(import_onnx(proto)) == ["relax.reshape"]


def test_elements_gathered_from_a_long_constant_disappear():
    data, at = ", ".join(f"{n}.0" for n in range(40)), ", ".join(map(str, range(8, 40)))
    graph = f"""agraph (float[1,32] x) => (float[1,32] y) {{
        data = Constant<value = float[1,40] {{{data}}}>()
        at = Constant<value = int64[1,32] {{{at}}}>()
        picked = GatherElements<axis = 1>(data, at)
        y = Add(x, picked)
    }}"""
    assert calls(import_onnx(model(graph))) == ["relax.add"]


def test_branch_of_a_known_condition_is_taken():
    graph = """agraph (float[4] x) => (float[4] y) <bool c = {0}> {
        y = If(c) <then_branch = a () => (float[4] p) { p = Neg(x) }, else_branch = b () => (float[4] q) { q = Abs(x) }>
    }"""
    proto = model(graph)
    check_supported(proto)
    assert calls(import_onnx(proto)) == ["relax.abs"]


def test_functions_of_the_model_are_lowered_by_their_body():
    text = """<ir_version: 9, opset_import: ["": 18, "mine": 1]>
    agraph (float[4] x) => (float[4] y) { y = mine.twice<factor = 2.0>(x) }
    <domain: "mine", opset_import: ["": 18]>
    twice <factor> (a) => (b) { f = Constant<value_float: float = @factor>()
        b = Mul(a, f) }
    """
    proto = parser.parse_model(text)
    check_supported(proto)
    assert calls(import_onnx(proto)) == ["relax.multiply"]


def test_override_comes_first():
    seen = []

    def override(node):
        seen.append(node.proto.op_type)
        return [node.emit(node.expr(0) + node.expr(0))] if node.proto.op_type == "Relu" else None

    module = import_onnx(model("agraph (float[4] x) => (float[4] y) { t = Relu(x)\n y = Neg(t) }"), override)
    assert seen == ["Relu", "Neg"]
    assert calls(module) == ["relax.add", "relax.negative"]


def test_names_of_inputs_may_be_anything():
    value = helper.make_tensor_value_info("gpu_0/data:0", TensorProto.FLOAT, [2])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Neg", ["gpu_0/data:0"], ["y"])], "g", [value], [output])
    module = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert len(module["main"].params) == 1


def test_every_converter_is_of_a_standard_operator():
    assert not [name for name in CONVERTERS if not onnx.defs.has(name)]
