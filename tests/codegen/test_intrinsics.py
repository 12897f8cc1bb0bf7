"""Elementary functions: error in units in the last place against float64, over all of float32."""

import ctypes

import numpy as np
import pytest
import scipy.special
from tvm import tirx
from tvm.tirx import AllocBuffer, BufferLoad, BufferStore, For, ForKind

from lwc_compiler.codegen.intrinsics import expand
from lwc_compiler.codegen.kernel_build import compile_kernels, split_function
from lwc_compiler.codegen.link import find_compiler, link_library
from lwc_compiler.codegen.schedules_expressions import dtype_of, index, substitute
from lwc_compiler.codegen.schedules_vectors import sequence
from lwc_compiler.targets import find_target

LANES = 64
# function -> (float64 reference, largest error in units in the last place)
FUNCTIONS = {
    "exp": (np.exp, 1.0),
    "log": (np.log, 1.0),
    "log1p": (np.log1p, 3.0),
    "tanh": (np.tanh, 3.0),
    "erf": (scipy.special.erf, 1.0),
    "sigmoid": (scipy.special.expit, 3.0),
    "sinh": (np.sinh, 3.5),
    "cosh": (np.cosh, 3.0),
}
POWERS = (-2.0, -1.0, 0.5, 0.75, 1.0, 2.0, 3.0, 4.0)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    with np.errstate(invalid="ignore"):
        everywhere = np.linspace(0, 0xFFFFFFFF, 1 << 17).astype(np.uint32).view(np.float32)
    near = [rng.uniform(-s, s, 1 << 15).astype(np.float32) for s in (0.01, 1, 20, 110)]
    edges = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.2e-38, 1, -1, 88.72283, 88.72284, 89.4, 89.42, -87.3, -87.4,
         -103.97, -103.98, -104, -150, 0.8999999, 0.9, 16, 3.4028235e38],
        np.float32,
    )  # fmt: skip
    x = np.concatenate([everywhere, *near, edges])
    return np.resize(x, -(-len(x) // LANES) * LANES)


def function(call, count: int) -> tirx.PrimFunc:
    """The function y = call(x), expanded, 64 values at a time."""
    x, y = (tirx.decl_buffer((index(count),), "float32", n) for n in "xy")
    t, v = tirx.Var("t", "int64"), tirx.Var("v", "int64")
    before = []

    def vectorized(v, statement):
        return For(v, index(0), index(LANES), ForKind.VECTORIZED, statement)

    def store(e):
        kept, w = tirx.decl_buffer((index(LANES),), dtype_of(e)), tirx.Var("w", "int64")
        before.extend([AllocBuffer(kept), vectorized(w, BufferStore(kept, substitute(e, {v: w}), [w]))])
        return BufferLoad(kept, [v])

    value = expand(call(BufferLoad(x, [t * index(LANES) + v])), store)
    body = sequence([*before, vectorized(v, BufferStore(y, value, [t * index(LANES) + v]))])
    return tirx.PrimFunc([x, y], For(t, index(0), index(count // LANES), ForKind.PARALLEL, body))


@pytest.fixture(scope="module")
def library(values, tmp_path_factory) -> ctypes.CDLL:
    functions = {name: function(getattr(tirx, name), len(values)) for name in FUNCTIONS}
    functions |= {
        f"power{i}": function(lambda x, p=p: tirx.pow(x, tirx.const(p, "float32")), len(values))
        for i, p in enumerate(POWERS)
    }
    kernels = {f"k_{name}": split_function(name, f, 1).steps[0].kernel for name, f in functions.items()}
    code = compile_kernels(kernels, find_target("host").llvm())
    for symbol in (b"expf", b"logf", b"erff", b"tanhf", b"powf"):
        assert symbol not in code
    path = tmp_path_factory.mktemp("intrinsics") / "kernels.so"
    path.write_bytes(link_library(find_compiler(), {"k.o": code}, hidden=("__truncsfhf2", "__extendhfsf2")))
    return ctypes.CDLL(str(path))


def run(library: ctypes.CDLL, name: str, x: np.ndarray) -> np.ndarray:
    memory = [np.zeros(len(x) + 16, np.float32) for _ in range(2)]
    source, result = (m[(-m.ctypes.data % 64) // 4 :][: len(x)] for m in memory)
    source[:] = x
    library[f"k_{name}"](ctypes.c_void_p(source.ctypes.data), ctypes.c_void_p(result.ctypes.data), 0, len(x) // LANES)
    return result


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_in_units_in_the_last_place(name, library, values) -> None:
    reference, limit = FUNCTIONS[name]
    with np.errstate(all="ignore"):
        exact = reference(values.astype(np.float64))
        rounded = exact.astype(np.float32)
    result = run(library, name, values)
    assert np.array_equal(np.isnan(result), np.isnan(rounded))
    assert np.array_equal(np.isinf(result), np.isinf(rounded))
    if name == "sigmoid":  # denormal results are 0
        tiny = np.abs(rounded) < 1.2e-38
        assert (np.abs(result[tiny]) < 1.2e-38).all()
        exact, rounded, result = exact[~tiny], rounded[~tiny], result[~tiny]
    finite = np.isfinite(rounded)
    error = np.abs(result[finite].astype(np.float64) - exact[finite])
    assert (error / np.spacing(np.abs(rounded[finite])).astype(np.float64)).max() <= limit


@pytest.mark.parametrize("power", POWERS)
def test_constant_powers(power, library, values) -> None:
    positive = np.where(values > 0, values, np.float32(1))
    with np.errstate(all="ignore"):
        expected = (positive.astype(np.float64) ** power).astype(np.float32)
    result = run(library, f"power{POWERS.index(power)}", positive)
    normal = (expected > 1.2e-38) & (expected < 3e38)
    np.testing.assert_allclose(result[normal], expected[normal], rtol=4e-7)


def test_signs_of_zero(library) -> None:
    zeros = np.resize(np.array([0.0, -0.0], np.float32), LANES)
    for name in ("tanh", "erf", "sinh", "log1p"):
        assert np.array_equal(np.signbit(run(library, name, zeros)), np.signbit(zeros)), name


def test_other_precisions_and_functions_stay_calls() -> None:
    for call in (tirx.exp(tirx.Var("x", "float64")), tirx.sin(tirx.Var("x", "float32"))):
        assert expand(call, lambda e: e).same_as(call)
