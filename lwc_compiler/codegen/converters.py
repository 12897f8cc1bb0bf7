"""What a converter of one ONNX operator works with, and the converters of elementwise operators.

A converter takes a `Node` and returns Relax expressions, one an output. Shapes are static; inputs that change what is
computed (axes, sizes, pads, ...) are constants. Converters register themselves in `CONVERTERS` by operator type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from tvm import relax, te, tirx

from lwc_compiler.errors import Refusal, UnsupportedError
from lwc_compiler.model import attributes_of

Array = NDArray[Any]
Value: TypeAlias = "Array | relax.Expr"  # constants stay NumPy arrays until an operator reads them as a tensor
Result: TypeAlias = "Value | Sequence[Value]"
DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
)


@dataclass(frozen=True)
class Node:
    """One ONNX node on its way into Relax.

    Attributes:
        proto: the node.
        opset: version of the operator set its operator is from.
        inputs: constants as NumPy arrays, all else as Relax expressions, None where an optional input is left out.
        builder: the function under construction.
        attributes: the node's attributes as Python values.
    """

    proto: onnx.NodeProto
    opset: int
    inputs: tuple[Value | None, ...]
    builder: relax.BlockBuilder
    attributes: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", attributes_of(self.proto))

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def expr(self, index: int) -> relax.Expr:
        """Input `index` as a Relax expression."""
        return tensor(self._input(index))

    def exprs(self) -> list[relax.Expr]:
        return [self.expr(i) for i in range(len(self.inputs))]

    def shape(self, index: int) -> tuple[int, ...]:
        return shape_of(self._input(index))

    def dtype(self, index: int) -> str:
        return dtype_of(self._input(index))

    def constant(self, index: int) -> Array | None:
        """The value of input `index`, None when it is left out.

        Raises:
            UnsupportedError: the input is computed from the graph's inputs.
        """
        if not self.has(index):
            return None
        value = self._input(index)
        if not isinstance(value, np.ndarray):
            raise self.refuse(f"its input '{self.proto.input[index]}' must be constant")
        return value

    def integers(self, index: int, name: str) -> list[int] | None:
        """Integers given as constant input `index` or, in older operator sets, as attribute `name`."""
        value = self.constant(index) if self.has(index) else self.attribute(name)
        return None if value is None else [int(v) for v in np.ravel(value)]

    def emit(self, expr: relax.Expr) -> relax.Expr:
        return self.builder.emit(expr)

    def compute(self, name: str, function: Callable[..., Any], *arguments: Any) -> relax.Expr:
        """Emits a kernel `name` computed by tensor-expression function `function`."""
        return self.builder.emit_te(function, *arguments, primfunc_name_hint=name)

    def refuse(self, why: str) -> UnsupportedError:
        return UnsupportedError.of([refusal(self.proto, why)])

    def _input(self, index: int) -> Value:
        value = self.inputs[index]
        if value is None:
            raise self.refuse(f"input {index} is missing")
        return value


def input_name(proto: onnx.NodeProto, index: int) -> str:
    """Name of input `index`, '' where it is left out."""
    return proto.input[index] if index < len(proto.input) else ""


def refusal(proto: onnx.NodeProto, why: str) -> Refusal:
    """That the node cannot be lowered."""
    name = proto.name or (proto.output[0] if proto.output else "")
    return Refusal(name, f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type, why)


Converter: TypeAlias = Callable[[Node], Result]
CONVERTERS: dict[str, Converter] = {}
CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {}  # operator -> inputs that must be constant


def converter(*operators: str, constant: tuple[int, ...] = ()) -> Callable[[Converter], Converter]:
    """Declares the converter of `operators`, whose inputs `constant` must be known when lowering."""

    def register(function: Converter) -> Converter:
        for operator in operators:
            assert operator not in CONVERTERS, operator
            CONVERTERS[operator] = function
            if constant:
                CONSTANT_INPUTS[operator] = constant
        return function

    return register


def tensor(value: Value) -> relax.Expr:
    if isinstance(value, np.ndarray):
        return relax.const(np.ascontiguousarray(value).reshape(value.shape), str(value.dtype))
    return value


def scalar(value: float | bool, like: str) -> relax.Expr:
    return relax.const(np.array(value, like), like)


def shape_of(value: Value) -> tuple[int, ...]:
    return tuple(int(d) for d in (value.shape if isinstance(value, np.ndarray) else value.ty.shape))


def dtype_of(value: Value) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else str(value.ty.dtype)


def lowest(dtype: str) -> float | int:
    """The identity of `max`."""
    if dtype.startswith("float"):
        return -math.inf
    return 0 if dtype == "bool" else int(np.iinfo(dtype).min)


def highest(dtype: str) -> float | int:
    """The identity of `min`."""
    if dtype.startswith("float"):
        return math.inf
    return 1 if dtype == "bool" else int(np.iinfo(dtype).max)


def literal(value: float, dtype: str) -> tirx.Expr:
    return tirx.const(value, dtype)


def elementwise(node: Node, name: str, function: Callable[[Any], Any]) -> relax.Expr:
    """`function` of every element of input 0."""
    return node.compute(name, lambda x: te.compute(x.shape, lambda *i: function(x(*i)), name=name), node.expr(0))


def normalized(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """`axes` counted from the front, in ascending order."""
    return tuple(sorted(a % rank for a in axes)) if rank else ()


# --- unary -----------------------------------------------------------------------------------------------------------

for _operator, _function in {
    "Abs": relax.op.abs, "Acos": relax.op.acos, "Acosh": relax.op.acosh, "Asin": relax.op.asin,
    "Asinh": relax.op.asinh, "Atan": relax.op.atan, "Atanh": relax.op.atanh, "BitwiseNot": relax.op.bitwise_not,
    "Ceil": relax.op.ceil, "Cos": relax.op.cos, "Cosh": relax.op.cosh, "Erf": relax.op.erf, "Exp": relax.op.exp,
    "Floor": relax.op.floor, "IsNaN": relax.op.isnan, "Log": relax.op.log, "Neg": relax.op.negative,
    "Not": relax.op.logical_not, "Relu": relax.op.nn.relu, "Round": relax.op.round, "Sigmoid": relax.op.sigmoid,
    "Sign": relax.op.sign, "Sin": relax.op.sin, "Sinh": relax.op.sinh, "Sqrt": relax.op.sqrt, "Tan": relax.op.tan,
    "Tanh": relax.op.tanh,
}.items():  # fmt: skip
    converter(_operator)(lambda node, function=_function: node.emit(function(node.expr(0))))  # type: ignore[misc]


@converter("Identity")
def _identity(node: Node) -> Result:
    return node.inputs[0]


@converter("Dropout", constant=(1, 2))
def _dropout(node: Node) -> Result:
    training = node.constant(2)
    if (training is not None and training.item()) or (node.opset < 7 and not node.attribute("is_test", 0)):
        raise node.refuse("it is in training mode; export the model for inference")
    return [node.inputs[0], np.ones(node.shape(0), bool)]


@converter("Reciprocal")
def _reciprocal(node: Node) -> Result:
    return node.emit(relax.op.divide(scalar(1, node.dtype(0)), node.expr(0)))


@converter("IsInf")
def _is_inf(node: Node) -> Result:
    signs = [s for s, name in ((1, "detect_positive"), (-1, "detect_negative")) if node.attribute(name, 1)]
    if not signs:
        return np.zeros(node.shape(0), bool)

    def is_inf(x: Any) -> Any:
        hits = [x == literal(s * math.inf, str(x.ty)) for s in signs]
        return hits[0] if len(hits) == 1 else tirx.any(*hits)

    return elementwise(node, "is_inf", is_inf)


@converter("Elu", "Selu", "Celu")
def _elu(node: Node) -> Result:
    """Elu: alpha (exp x - 1); Selu: the same times gamma; Celu: alpha (exp(x / alpha) - 1), for x < 0."""
    selu = node.proto.op_type == "Selu"
    alpha = node.attribute("alpha", 1.67326319217681884765625 if selu else 1.0)
    gamma = node.attribute("gamma", 1.05070102214813232421875) if selu else 1.0
    inner = alpha if node.proto.op_type == "Celu" else 1.0
    dtype = node.dtype(0)
    a, g, s = (literal(v, dtype) for v in (alpha, gamma, 1 / inner))
    zero, one = literal(0, dtype), literal(1, dtype)
    # The exponential sees min(x, 0): it must not overflow on the side that is not taken.
    return elementwise(node, "elu", lambda x: g * (tirx.max(x, zero) + a * (tirx.exp(tirx.min(x, zero) * s) - one)))


@converter("LeakyRelu")
def _leaky_relu(node: Node) -> Result:
    return node.emit(relax.op.nn.leakyrelu(node.expr(0), node.attribute("alpha", 0.01)))


@converter("ThresholdedRelu")
def _thresholded_relu(node: Node) -> Result:
    alpha, zero = (literal(v, node.dtype(0)) for v in (node.attribute("alpha", 1.0), 0))
    return elementwise(node, "thresholded_relu", lambda x: tirx.Select(x > alpha, x, zero))


@converter("Shrink")
def _shrink(node: Node) -> Result:
    dtype = node.dtype(0)
    bias, lambd = node.attribute("bias", 0.0), node.attribute("lambd", 0.5)

    def shrink(x: Any) -> Any:
        y = x.astype("float32")
        b, t = literal(bias, "float32"), literal(lambd, "float32")
        return tirx.Select(y < -t, y + b, tirx.Select(y > t, y - b, literal(0, "float32"))).astype(dtype)

    return elementwise(node, "shrink", shrink)


@converter("HardSigmoid")
def _hard_sigmoid(node: Node) -> Result:
    return _hard(node, node.attribute("alpha", 0.2), node.attribute("beta", 0.5), times_x=False)


@converter("HardSwish")
def _hard_swish(node: Node) -> Result:
    return _hard(node, 1 / 6, 0.5, times_x=True)


def _hard(node: Node, alpha: float, beta: float, times_x: bool) -> relax.Expr:
    a, b, zero, one = (literal(v, node.dtype(0)) for v in (alpha, beta, 0, 1))

    def hard(x: Any) -> Any:
        gate = tirx.max(zero, tirx.min(one, x * a + b))
        return x * gate if times_x else gate

    return elementwise(node, "hard_swish" if times_x else "hard_sigmoid", hard)


@converter("Swish")
def _swish(node: Node) -> Result:
    x = node.expr(0)
    scaled = node.emit(relax.op.multiply(x, scalar(node.attribute("alpha", 1.0), node.dtype(0))))
    return node.emit(relax.op.multiply(x, node.emit(relax.op.sigmoid(scaled))))


@converter("Gelu")
def _gelu(node: Node) -> Result:
    tanh = node.attribute("approximate", "none") == "tanh"
    return node.emit((relax.op.nn.gelu_tanh if tanh else relax.op.nn.gelu)(node.expr(0)))


@converter("Softplus")
def _softplus(node: Node) -> Result:
    """The sum log(1 + e^x) = max(x, 0) + log1p(e^-|x|), without overflow."""
    zero = literal(0, node.dtype(0))
    return elementwise(node, "softplus", lambda x: tirx.max(x, zero) + tirx.log1p(tirx.exp(-tirx.abs(x))))


@converter("Mish")
def _mish(node: Node) -> Result:
    """The product x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2); beyond 20 it is x."""
    dtype = node.dtype(0)
    two, limit = literal(2, dtype), literal(20, dtype)

    def mish(x: Any) -> Any:
        e = tirx.exp(tirx.min(x, limit))
        n = e * (e + two)
        return x * (n / (n + two))

    return elementwise(node, "mish", mish)


@converter("Softsign")
def _softsign(node: Node) -> Result:
    one = literal(1, node.dtype(0))
    return elementwise(node, "softsign", lambda x: x / (one + tirx.abs(x)))


@converter("PRelu")
def _prelu(node: Node) -> Result:
    x, slope = node.expr(0), node.expr(1)
    rank, slope_shape = len(node.shape(0)), node.shape(1)
    if node.opset < 7 and len(slope_shape) == 1 and rank > 1:  # one slope a channel
        slope = node.emit(relax.op.reshape(slope, slope_shape + (1,) * (rank - 2)))
    zero = scalar(0, node.dtype(0))
    positive = node.emit(relax.op.maximum(x, zero))
    negative = node.emit(relax.op.multiply(node.emit(relax.op.minimum(x, zero)), slope))
    return node.emit(relax.op.add(positive, negative))


@converter("Clip")
def _clip(node: Node) -> Result:
    x, dtype = node.expr(0), node.dtype(0)
    if node.opset < 11:
        low, high = (
            None if node.attribute(name) is None else scalar(node.attribute(name), dtype) for name in ("min", "max")
        )
    else:
        low, high = (node.expr(i) if node.has(i) else None for i in (1, 2))
    if low is not None:
        x = node.emit(relax.op.maximum(x, low))
    return x if high is None else node.emit(relax.op.minimum(x, high))


@converter("Cast", "CastLike")
def _cast(node: Node) -> Result:
    if node.proto.op_type == "CastLike":
        target = node.dtype(1)
    else:
        target = numpy_name(node.attribute("to"), node)
    value = node.inputs[0]
    return value.astype(target) if isinstance(value, np.ndarray) else cast(node, value, target)


def numpy_name(element_type: int, node: Node) -> str:
    """NumPy name of an ONNX element type."""
    name = (
        str(onnx.helper.tensor_dtype_to_np_dtype(element_type)) if element_type != onnx.TensorProto.STRING else "string"
    )
    if name not in DTYPES:
        raise node.refuse(f"element type {onnx.TensorProto.DataType.Name(element_type)} is not handled")
    return name


def cast(node: Node, x: relax.Expr, dtype: str) -> relax.Expr:
    source = dtype_of(x)
    if source == dtype:
        return x
    if dtype == "bool":
        return node.emit(relax.op.not_equal(x, scalar(0, source)))
    return node.emit(relax.op.astype(x, dtype))


@converter("BitCast")
def _bit_cast(node: Node) -> Result:
    dtype = numpy_name(node.attribute("to"), node)
    if "bool" in (dtype, node.dtype(0)):
        return cast(node, node.expr(0), dtype)
    return elementwise(node, "bit_cast", lambda x: tirx.reinterpret(dtype, x))


# --- binary and n-ary ------------------------------------------------------------------------------------------------

for _operator, _function in {
    "Add": relax.op.add, "Sub": relax.op.subtract, "Mul": relax.op.multiply, "Div": relax.op.divide,
    "And": relax.op.logical_and, "Or": relax.op.logical_or, "Xor": relax.op.logical_xor,
    "BitwiseAnd": relax.op.bitwise_and, "BitwiseOr": relax.op.bitwise_or, "BitwiseXor": relax.op.bitwise_xor,
    "Equal": relax.op.equal, "Less": relax.op.less, "LessOrEqual": relax.op.less_equal,
    "Greater": relax.op.greater, "GreaterOrEqual": relax.op.greater_equal,
}.items():  # fmt: skip
    converter(_operator)(lambda node, function=_function: node.emit(function(*_operands(node))))  # type: ignore[misc]


def _operands(node: Node) -> list[relax.Expr]:
    """Both inputs, ready for NumPy's broadcasting rules (which hold since operator set 7)."""
    first, second = node.exprs()
    if node.opset < 7 and node.attribute("broadcast", 0) and (axis := node.attribute("axis")) is not None:
        shape = node.shape(1)
        second = node.emit(relax.op.reshape(second, shape + (1,) * (len(node.shape(0)) - axis - len(shape))))
    return [first, second]


@converter("BitShift")
def _bit_shift(node: Node) -> Result:
    """A shift by at least the width of the type leaves 0, or the sign when shifting a signed number right."""
    dtype, left = node.dtype(0), node.attribute("direction") == "LEFT"
    width = np.dtype(dtype).itemsize * 8
    zero, last = literal(0, dtype), literal(width - 1, dtype)

    def shift(x: Any, by: Any) -> Any:
        inside = by <= last if dtype.startswith("u") else tirx.all(by >= zero, by <= last)
        by = tirx.Select(inside, by, last)
        if left:
            return tirx.Select(inside, tirx.shift_left(x, by), zero)
        beyond = zero if dtype.startswith("u") else tirx.shift_right(x, last)
        return tirx.Select(inside, tirx.shift_right(x, by), beyond)

    return broadcast(node, "bit_shift", shift, *node.exprs())


@converter("Mod")
def _mod(node: Node) -> Result:
    a, b = node.exprs()
    dtype, truncated = node.dtype(0), bool(node.attribute("fmod", 0))
    if not dtype.startswith("float"):
        return node.emit((relax.op.mod if truncated else relax.op.floor_mod)(a, b))
    working, function = ("float64", "fmod") if dtype == "float64" else ("float32", "fmodf")

    def remainder(x: Any, y: Any) -> Any:
        x, y = x.astype(working), y.astype(working)
        zero = literal(0, working)
        rest = tirx.call_pure_extern(working, function, x, y)
        if not truncated:  # the sign of the divisor
            rest = tirx.Select(tirx.any(rest * y >= zero, rest == zero), rest, rest + y)
        return rest.astype(dtype)

    return broadcast(node, "remainder", remainder, a, b)


def broadcast(node: Node, name: str, function: Callable[..., Any], *operands: relax.Expr) -> relax.Expr:
    """`function` of the elements of `operands`, which are broadcast against each other."""
    shapes = [shape_of(o) for o in operands]
    shape = np.broadcast_shapes(*shapes)

    def body(*tensors: Any) -> Any:
        def element(*index: Any) -> Any:
            picked = []
            for t, own in zip(tensors, shapes, strict=True):
                tail = index[len(index) - len(own) :]
                picked.append(t(*(literal(0, "int64") if d == 1 else i for i, d in zip(tail, own, strict=True))))
            return function(*picked)

        return te.compute(shape, element, name=name)

    return node.compute(name, body, *operands)


def raised(x: Any, exponent: float) -> Any:
    """x^exponent for a scalar expression; small whole exponents by squaring (TVM warns of its own for those)."""
    if exponent not in range(1, 64):
        return tirx.pow(x, literal(exponent, str(x.ty)))
    if exponent == 1:
        return x
    half = raised(x, exponent // 2)
    return half * half * x if exponent % 2 else half * half


@converter("Pow")
def _pow(node: Node) -> Result:
    base, exponent = node.expr(0), node.inputs[1]
    dtype = node.dtype(0)
    if isinstance(exponent, np.ndarray) and exponent.size == 1:
        value, spread = float(exponent.item()), np.broadcast_shapes(node.shape(0), exponent.shape) == node.shape(0)
        if value == 2 and spread:
            return node.emit(relax.op.multiply(base, base))
        if value == 0.5 and spread and dtype.startswith("float"):
            return node.emit(relax.op.sqrt(base))
        if spread and (dtype.startswith("float") or value in range(1, 64)):
            return elementwise(node, "power", lambda x: raised(x, value))
    # Integers go through float64, which holds them exactly up to 2^53; a float base takes the exponent in its own type.
    working = dtype if dtype.startswith("float") else "float64"
    return broadcast(
        node, "power", lambda a, b: tirx.pow(a.astype(working), b.astype(working)).astype(dtype), base, node.expr(1)
    )


@converter("Sum", "Mean", "Max", "Min")
def _variadic(node: Node) -> Result:
    kind = node.proto.op_type
    function = {"Max": relax.op.maximum, "Min": relax.op.minimum}.get(kind, relax.op.add)
    result, *rest = node.exprs()
    for other in rest:
        result = node.emit(function(result, other))
    if kind == "Mean":
        result = node.emit(relax.op.multiply(result, scalar(1 / len(node.inputs), node.dtype(0))))
    return result


@converter("Where")
def _where(node: Node) -> Result:
    return node.emit(relax.op.where(*node.exprs()))
