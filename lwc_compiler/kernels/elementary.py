"""Elementary functions of float32 as arithmetic that vectorises.

LLVM turns `exp` and its like into one library call an element. These are polynomials that run on whole vectors, with
errors of at most a few units in the last place, right for infinities, NaN and denormal numbers. Each takes a scalar or
a vector, and a function that computes a value once.

The coefficients are minimax fits (Lawson's iteration) of the stated functions, weighted for the relative error of the
result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx import Select

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvm.ir import Expr

    Store = Callable[[Expr], Expr]

# (exp(r) - 1 - r) / r^2 on [-ln2 / 2, ln2 / 2]
_EXP = (0.5, 0.166665181517601, 0.04166620597243309, 0.008368889801204205, 0.0013950489228591323)
# (log(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2) - 1, sqrt(2) - 1]
_LOG = (0.3333331346511841, -0.25000008940696716, 0.2000211924314499, -0.1666799634695053, 0.14219550788402557,
        -0.12405591458082199, 0.11888174712657928, -0.11675640940666199, 0.06746601313352585)  # fmt: skip
# erf(x) / x - 1 in x^2, for |x| <= 0.93
_ERF_SMALL = (0.12837916612625122, -0.37612634897232056, 0.11283694207668304, -0.02685927040874958,
              0.005200634244829416, -0.0008137437398545444, 8.345225069206208e-05)  # fmt: skip
# log(1 - erf(x)) / x + 1, for 0.9 <= x <= 4
_ERF_LARGE = (-0.12854143977165222, -0.6356731653213501, -0.10516949743032455, 0.022575614973902702,
              -0.0028691210318356752, 2.743513869063463e-05, 4.9940485041588545e-05,
              -5.297003099258291e-06)  # fmt: skip

# Adding this rounds a small float to an integer, which then sits in the low bits.
_ROUND = 12582912.0
_ROUND_BITS = 0x4B400000
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOG2_E = 1.4426950408889634


def _f(value: float) -> Expr:
    return tirx.const(value, "float32")


def _i(value: int) -> Expr:
    return tirx.const(value, "int32")


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    result = _f(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + _f(c)
    return result


def _lanes(x: Expr) -> int:
    return int(x.ty.dtype.lanes)


def _type(element: str, x: Expr) -> str:
    """The type of as many elements as `x` has."""
    return f"{element}x{_lanes(x)}" if _lanes(x) > 1 else element


def _as(element: str, x: Expr) -> Expr:
    """The bits of `x`, taken for another type."""
    return tirx.reinterpret(_type(element, x), x)


def _select(condition: Expr, true: Expr, false: Expr) -> Expr:
    """`true` or `false`, lane by lane where one is a vector."""
    lanes = max(map(_lanes, (condition, true, false)))
    return Select(condition, *(tirx.Broadcast(e, lanes) if _lanes(e) < lanes else e for e in (true, false)))


def _bits(x: Expr) -> Expr:
    return _as("int32", x)


def _power_of_two(n: Expr) -> Expr:
    """2^n for -126 <= n <= 127."""
    return _as("float32", (n + _i(127)) << _i(23))


def _absolute(x: Expr) -> Expr:
    return _as("float32", tirx.bitwise_and(_bits(x), _i(0x7FFFFFFF)))


def _with_sign_of(magnitude: Expr, x: Expr) -> Expr:
    sign = tirx.bitwise_and(_bits(x), _i(-0x80000000))
    return _as("float32", tirx.bitwise_or(_bits(magnitude), sign))


def _reduced(x: Expr, let: Store) -> tuple[Expr, Expr]:
    """(n, exp(r) - 1) with x = n ln2 + r and n the nearest integer, for |x| below 1000."""
    z = let(x * _f(_LOG2_E) + _f(_ROUND))
    n = let(z - _f(_ROUND))
    r = let((x - n * _f(_LN2_HIGH)) - n * _f(_LN2_LOW))
    return let(_bits(z) - _i(_ROUND_BITS)), let((r * r) * _polynomial(r, _EXP) + r)


def _clamp(x: Expr, low: float | None, high: float | None) -> Expr:
    """`x` in [low, high]; NaN stays NaN, as the comparisons are false."""
    if high is not None:
        x = _select(x > _f(high), _f(high), x)
    return x if low is None else _select(x < _f(low), _f(low), x)


def _exp(x: Expr, let: Store) -> Expr:
    n, e = _reduced(let(_clamp(x, -104.0, 89.0)), let)
    # In two factors: results down to the smallest denormal, and up to the largest finite number.
    half = let(n >> _i(1))
    first = let(_power_of_two(half))
    return (e * first + first) * _power_of_two(n - half)


def _expm1(x: Expr, let: Store) -> Expr:
    """exp(x) - 1 for x <= 0."""
    n, e = _reduced(let(_clamp(x, -87.0, None)), let)
    scale = let(_power_of_two(n))
    return let(e * scale + (scale - _f(1.0)))


def _sigmoid(x: Expr, let: Store) -> Expr:
    # exp(-|x|), and 0 where it would be denormal: there 2^-127 is the bit pattern of 0.
    n, e = _reduced(let(_clamp(_f(0.0) - _absolute(x), -88.0, None)), let)
    scale = let(_power_of_two(n))
    e = let(e * scale + scale)
    return _select(x < _f(0.0), e, _f(1.0)) / (e + _f(1.0))


def _tanh(x: Expr, let: Store) -> Expr:
    e = _expm1(_absolute(x) * _f(-2.0), let)
    return _with_sign_of((_f(0.0) - e) / (e + _f(2.0)), x)


def _erf(x: Expr, let: Store) -> Expr:
    a = let(_absolute(x))
    square = let(x * x)
    small = _polynomial(square, _ERF_SMALL) * x + x
    t = let(_clamp(a, None, 4.0))
    exponent = let(_polynomial(t, _ERF_LARGE) * t - t)
    large = _with_sign_of(_f(0.0) - _expm1(exponent, let), x)
    return _select(a < _f(0.9), small, large)


def _log(x: Expr, let: Store) -> Expr:
    tiny = x < _f(1.1754943508222875e-38)
    normal = let(_select(tiny, x * _f(8388608.0), x))
    # The mantissa in [sqrt(1/2), sqrt(2)).
    shifted = let(_bits(normal) - _i(0x3F3504F3))
    exponent = (shifted >> _i(23)) - _select(tiny, _i(23), _i(0))
    e = let(exponent.astype(_type("float32", x)))
    mantissa = _as("float32", tirx.bitwise_and(shifted, _i(0x007FFFFF)) + _i(0x3F3504F3))
    f = let(mantissa - _f(1.0))
    square = let(f * f)
    tail = (f * square) * _polynomial(f, _LOG) + e * _f(_LN2_LOW) - _f(0.5) * square
    result = let((tail + f) + e * _f(_LN2_HIGH))
    infinity = _f(math.inf)
    result = _select(x < infinity, result, x)  # +inf and NaN stay what they are
    without = _select(tirx.EQ(x, _f(0.0)), _f(-math.inf), _select(x < _f(0.0), _f(math.nan), x))
    return _select(x > _f(0.0), result, without)


def _log1p(x: Expr, let: Store) -> Expr:
    """log(u) x / (u - 1) with u = 1 + x rounded: the rounding error of u cancels (W. Kahan)."""
    u = let(x + _f(1.0))
    lost = let(u - _f(1.0))
    log = let(_log(u, let))
    small = tirx.EQ(lost, _f(0.0))
    scaled = log * (x / _select(small, _f(1.0), lost))
    return _select(small, x, _select(tirx.all(u > _f(0.0), u < _f(math.inf)), scaled, log))


def _sinh(x: Expr, let: Store) -> Expr:
    a = let(_absolute(x))
    e = _expm1(_f(0.0) - _clamp(a, None, 1.0), let)
    small = (_f(0.0) - e) * (e + _f(2.0)) / (_f(2.0) * e + _f(2.0))
    root = let(_exp(a * _f(0.5), let))
    large = root * (_f(0.5) * root) - _f(0.5) / (root * root)
    return _with_sign_of(_select(a < _f(1.0), small, large), x)


def _cosh(x: Expr, let: Store) -> Expr:
    root = let(_exp(_absolute(x) * _f(0.5), let))
    return root * (_f(0.5) * root) + _f(0.5) / (root * root)


# By the names of TVM's operators, which are also those of ONNX in lower case.
FUNCTIONS: dict[str, Callable[[Expr, Store], Expr]] = {
    "exp": _exp,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
    "log": _log,
    "log1p": _log1p,
    "sinh": _sinh,
    "cosh": _cosh,
}
