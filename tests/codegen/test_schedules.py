"""Schedules: every family of operators computes what NumPy does in float64, however tiles are split, as fast code."""

import ctypes
import subprocess

import numpy as np
import pytest
import scipy.special
from tvm import relax, s_tir, te, tirx, topi
from tvm.relax import op
from tvm.tirx import BufferLoad, BufferStore, For, ForKind, SeqStmt

from lwc_compiler.codegen.assemble import legalize
from lwc_compiler.codegen.kernel_build import compile_kernels, split_function
from lwc_compiler.codegen.link import find_compiler, link_library
from lwc_compiler.codegen.schedules import schedule
from lwc_compiler.codegen.schedules_expressions import index
from lwc_compiler.kernels.kernel import ALIGNMENT_BYTES, SLACK_BYTES, Input, Output, Scratch
from lwc_compiler.targets import find_target, missing_features

TARGETS = [t for t in ("x86-64-v3", "x86-64-v4") if not missing_features(find_target(t))]
LIBM = {"memcpy", "memset", "expf", "powf", "logf", "fmodf"}


def legalized(body, *inputs: tuple[tuple[int, ...], str]) -> tirx.PrimFunc:
    """The one TIR function that `body`, a function of Relax variables, is fused into."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"x{i}", relax.TensorType(s, d)) for i, (s, d) in enumerate(inputs)]
    with builder.function("main", variables):
        with builder.dataflow():
            out = builder.emit_output(builder.normalize(body(*variables)))
        builder.emit_func_output(out)
    (func,) = (f for f in legalize(builder.get()).functions.values() if isinstance(f, tirx.PrimFunc))
    return func


def memory(shape: tuple[int, ...], dtype: str, beyond: int) -> tuple[np.ndarray, np.ndarray]:
    """An array as a kernel gets it, and the bytes behind it, all `beyond`."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    whole = np.full(size + ALIGNMENT_BYTES + SLACK_BYTES, beyond, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT_BYTES
    return whole[start : start + size].view(dtype).reshape(shape), whole[start + size : start + size + SLACK_BYTES]


class Built:
    """A function, scheduled and compiled."""

    def __init__(self, func: tirx.PrimFunc, inputs: int, target: str, tmp_path) -> None:
        self.scheduled = schedule(func, find_target(target))
        self.plan = split_function("f", self.scheduled, inputs)
        self.outputs = [(tuple(int(s) for s in b.shape), str(b.dtype)) for b in func.params[inputs:]]
        kernels = {f"k{i}": s.kernel for i, s in enumerate(self.plan.steps)}
        code = compile_kernels(kernels, find_target(target).llvm())
        (tmp_path / "kernels.o").write_bytes(code)
        names = subprocess.run(["nm", "-u", tmp_path / "kernels.o"], capture_output=True, text=True, check=True).stdout
        self.undefined = {line.split()[-1] for line in names.splitlines()}
        path = tmp_path / f"kernels{len(list(tmp_path.iterdir()))}.so"  # a loaded library is never overwritten
        path.write_bytes(link_library(find_compiler(), {"kernels.o": code}, hidden=("__truncsfhf2", "__extendhfsf2")))
        self.library = ctypes.CDLL(str(path))

    def run(self, arrays: list[np.ndarray], backwards: bool = False) -> list[np.ndarray]:
        """All tiles in one call or, with `backwards`, one by one from the last to the first."""
        # 0xFF is NaN: what is read past the end of a buffer must not reach a result.
        inputs = [memory(a.shape, str(a.dtype), 0xFF)[0] for a in arrays]
        for mine, given in zip(inputs, arrays, strict=True):
            mine[...] = given
        outputs = [memory(s, d, 0xFF) for s, d in self.outputs]
        scratch = [memory((n,), "uint8", 0xFF)[0] for n in self.plan.scratch]
        for i, step in enumerate(self.plan.steps):
            operands = {Input(n): a for n, a in enumerate(inputs)} | {Scratch(n): a for n, a in enumerate(scratch)}
            operands |= {Output(n): values for n, (values, _) in enumerate(outputs)}
            args = [operands[a] for a in step.args]
            if step.kernel.thread_bytes:
                args.append(memory((step.kernel.thread_bytes,), "uint8", 0xFF)[0])
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in args]
            tiles = step.kernel.tiles
            for t0, t1 in [(t, t + 1) for t in reversed(range(tiles))] if backwards else [(0, tiles)]:
                self.library[f"k{i}"](*pointers, t0, t1)
        for mine, given in zip(inputs, arrays, strict=True):
            assert np.array_equal(mine, given, equal_nan=mine.dtype.kind == "f")
        assert all((beyond == 0xFF).all() for _, beyond in outputs), "a store past the end of an output"
        return [values for values, _ in outputs]


def check(body, expected, inputs, target, tmp_path, tolerance=1e-6, kernels: int | None = 1) -> Built:
    """Compares with `expected` in float64, relative to the largest value."""
    rng = np.random.default_rng(0)
    specs = [i if isinstance(i[0], tuple) else (i, "float32") for i in inputs]
    built = Built(legalized(body, *specs), len(specs), target, tmp_path)
    assert not isinstance(built.scheduled.body, s_tir.stmt.SBlockRealize), "left with its own loops"
    arrays = [rng.standard_normal(s).astype(d) if d == "float32" else rng.integers(0, 5, s).astype(d) for s, d in specs]
    results = built.run(arrays)
    wanted = expected(*(a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays))
    for result, want in zip(results, wanted if isinstance(wanted, list) else [wanted], strict=False):
        want = np.asarray(want)
        assert result.size == want.size
        np.testing.assert_allclose(
            result.reshape(-1), want.reshape(-1), rtol=0, atol=tolerance * max(1.0, float(np.abs(want).max()))
        )
    for one, other in zip(results, built.run(arrays, backwards=True), strict=True):
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    assert built.undefined <= LIBM, built.undefined
    if kernels is not None:
        assert len(built.plan.steps) == kernels
    return built


def windows(x: np.ndarray, kernel: int, stride: int, pad: int, fill: float) -> np.ndarray:
    """(..., kernel * kernel) elements of each window of the last two axes."""
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
    return views.reshape(*views.shape[:4], -1)


def softmax(axis: int):
    return lambda x: scipy.special.softmax(x, axis)


def layer_norm(x, g, b):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * g + b


def instance_norm(x, g, b):
    x = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)
    return x * g[:, None, None] + b[:, None, None]


def gelu(x):
    return x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))


def max_pool(kernel, stride, pad):
    return (
        lambda x: op.nn.max_pool2d(x, (kernel, kernel), (stride, stride), (pad,) * 4),
        lambda x: windows(x, kernel, stride, pad, -np.inf).max(-1),
    )


def average_pool(kernel, stride, pad):
    def expected(x):
        return np.nanmean(windows(x, kernel, stride, pad, np.nan), -1)

    return lambda x: op.nn.avg_pool2d(
        x, (kernel, kernel), (stride, stride), (pad,) * 4, count_include_pad=False
    ), expected


OPERATORS = {
    "relu, a rest of every length": (op.nn.relu, lambda x: np.maximum(x, 0), [(1, 3, 7, 9)]),
    "one element": (op.nn.relu, lambda x: np.maximum(x, 0), [(1,)]),
    "large, in pieces": (op.nn.relu, lambda x: np.maximum(x, 0), [(131, 997)]),
    "bias by channel and relu": (
        lambda x, b: op.nn.relu(op.add(x, b)),
        lambda x, b: np.maximum(x + b, 0),
        [(2, 5, 7, 7), (5, 1, 1)],
    ),
    "both sides broadcast": (op.multiply, np.multiply, [(4, 1, 33), (1, 5, 33)]),
    "outer product": (op.multiply, np.multiply, [(37, 1), (1, 41)]),
    "silu": (lambda x: op.multiply(x, op.sigmoid(x)), lambda x: x * scipy.special.expit(x), [(3, 1000)]),
    "gelu": (op.nn.gelu, gelu, [(5, 77)]),
    "tanh, exp, log": (
        lambda x: op.log(op.add(op.exp(op.tanh(x)), relax.const(1.0))),
        lambda x: np.log(np.exp(np.tanh(x)) + 1),
        [(999,)],
    ),
    "compare": (op.greater, np.greater, [(3, 50), (3, 50)]),
    "where": (lambda x, y: op.where(op.greater(x, y), x, y), np.maximum, [(3, 50), (1, 50)]),
    "cast to int64": (lambda x: op.astype(x, "int64"), lambda x: np.trunc(x), [(3, 50)]),
    "max pool 3x3 s2 padded": (*max_pool(3, 2, 1), [(1, 3, 23, 37)]),
    "max pool 2x2 s2": (*max_pool(2, 2, 0), [(2, 3, 16, 128)]),
    "max pool 5x5 s1 padded": (*max_pool(5, 1, 2), [(1, 4, 10, 10)]),
    "max pool 3x3 s1 of 1x1": (*max_pool(3, 1, 1), [(1, 4, 1, 1)]),
    "average pool 3x3 s1 padded": (*average_pool(3, 1, 1), [(1, 5, 14, 35)]),
    "average pool 3x3 s2": (*average_pool(3, 2, 0), [(1, 5, 13, 17)]),
    "max pool, sigmoid, multiply": (
        lambda x, y: op.multiply(op.sigmoid(max_pool(2, 2, 0)[0](x)), y),
        lambda x, y: scipy.special.expit(max_pool(2, 2, 0)[1](x)) * y,
        [(1, 3, 20, 22), (1, 3, 10, 11)],
    ),
    "global average pool": (lambda x: op.nn.adaptive_avg_pool2d(x, (1, 1)), lambda x: x.mean((2, 3)), [(1, 65, 7, 7)]),
    "mean of rows": (lambda x: op.mean(x, [1]), lambda x: x.mean(1), [(9, 130)]),
    "mean of columns": (lambda x: op.mean(x, [1]), lambda x: x.mean(1), [(2, 9, 7, 19)]),
    "sum of all": (op.sum, np.sum, [(5, 13, 17)]),
    "sum of the outer axes": (lambda x: op.sum(x, [0, 2]), lambda x: x.sum((0, 2)), [(3, 4, 5, 21)]),
    "max of rows": (lambda x: op.max(x, [1]), lambda x: x.max(1), [(9, 77)]),
    "product of rows": (lambda x: op.prod(x, [1]), lambda x: x.prod(1), [(9, 17)]),
    "arg max of rows": (lambda x: op.argmax(x, 1), lambda x: x.argmax(1), [(9, 77)]),
    "arg max of columns": (lambda x: op.argmax(x, 1), lambda x: x.argmax(1), [(2, 9, 7, 19)]),
    "softmax of rows": (lambda x: op.nn.softmax(x, -1), softmax(-1), [(3, 5, 77)]),
    "softmax of long rows": (lambda x: op.nn.softmax(x, -1), softmax(-1), [(2, 6625)]),
    "softmax of columns": (lambda x: op.nn.softmax(x, 1), softmax(1), [(2, 21, 6, 31)]),
    "log softmax": (lambda x: op.nn.log_softmax(x, -1), lambda x: scipy.special.log_softmax(x, -1), [(5, 77)]),
    "layer norm": (lambda x, g, b: op.nn.layer_norm(x, g, b, [-1]), layer_norm, [(2, 9, 77), (77,), (77,)]),
    "instance norm": (
        lambda x, g, b: op.nn.instance_norm(x, g, b, 1, [2, 3]),
        instance_norm,
        [(2, 3, 9, 13), (3,), (3,)],
    ),
    "concat, first axis": (
        lambda x, y, z: op.concat([x, y, z], 0),
        lambda *x: np.concatenate(x),
        [(6, 50), (3, 50), (1, 50)],
    ),
    "concat, last axis": (
        lambda x, y, z: op.concat([x, y, z], 2),
        lambda *x: np.concatenate(x, 2),
        [(2, 5, 40), (2, 5, 17), (2, 5, 3)],
    ),
    "split": (lambda x: op.split(x, [3, 10], 1), lambda x: np.split(x, [3, 10], 1), [(2, 24, 50)]),
    "pad": (
        lambda x: op.nn.pad(x, (0, 0, 1, 0, 2, 3, 1, 1)),
        lambda x: np.pad(x, [(0, 0), (1, 0), (2, 3), (1, 1)]),
        [(2, 3, 9, 20)],
    ),
    "slice with steps": (
        lambda x: op.strided_slice(x, [1, 2], [1, 0], [9, 31], [2, 3]),
        lambda x: x[:, 1:9:2, 0:31:3],
        [(2, 9, 31)],
    ),
    "flip": (lambda x: op.flip(x, 1), lambda x: x[:, ::-1], [(5, 83)]),
    "repeat": (lambda x: op.repeat(x, 2, 1), lambda x: x.repeat(2, 1), [(5, 83)]),
    "gather rows": (lambda x, i: op.take(x, i, 0), lambda x, i: x[i], [(7, 33), ((5,), "int64")]),
    "gather columns": (lambda x, i: op.take(x, i, 1), lambda x, i: x[:, i], [(33, 7), ((5,), "int64")]),
    "transpose of a matrix": (lambda x: op.permute_dims(x, (1, 0)), lambda x: x.T, [(35, 50)]),
    "transpose of blocks": (
        lambda x: op.permute_dims(x, (0, 2, 3, 1)),
        lambda x: x.transpose(0, 2, 3, 1),
        [(2, 37, 5, 19)],
    ),
    "transpose of planes of short rows": (
        lambda x: op.permute_dims(x, (2, 1, 3, 0)),
        lambda x: x.transpose(2, 1, 3, 0),
        [(16, 3, 14, 14)],
    ),
    "transpose of the outer axes": (
        lambda x: op.permute_dims(x, (0, 2, 1, 3)),
        lambda x: x.transpose(0, 2, 1, 3),
        [(2, 9, 4, 33)],
    ),
    "transpose of short axes": (
        lambda x: op.permute_dims(x, (0, 3, 1, 2)),
        lambda x: x.transpose(0, 3, 1, 2),
        [(1, 11, 13, 3)],
    ),
    "transpose and add": (
        lambda x, y: op.add(op.permute_dims(x, (1, 0)), y),
        lambda x, y: x.T + y,
        [(64, 48), (48, 64)],
    ),
    "reshape and scale": (
        lambda x: op.multiply(op.reshape(x, (5, 6, 21)), relax.const(2.0)),
        lambda x: 2 * x,
        [(10, 63)],
    ),
    "nearest resize": (
        lambda x: op.image.resize2d(
            x,
            (18, 40),
            layout="NCHW",
            method="nearest_neighbor",
            coordinate_transformation_mode="asymmetric",
            rounding_method="floor",
        ),
        lambda x: x.repeat(2, 2).repeat(2, 3),
        [(1, 3, 9, 20)],
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_match_float64(name, target, tmp_path) -> None:
    body, expected, inputs = OPERATORS[name]
    check(body, expected, inputs, target, tmp_path)


def scripted(name: str, shapes: list[tuple[int, ...]]) -> str:
    func = legalized(OPERATORS[name][0], *((s, "float32") for s in shapes))
    return schedule(func, find_target("x86-64-v3")).script()


@pytest.mark.parametrize(
    ("name", "shapes", "lanes"),
    [
        ("relu, a rest of every length", [(1, 64, 56, 56)], 16),
        ("softmax of rows", [(12, 128, 128)], 8),
        ("softmax of columns", [(1, 21, 64, 64)], 8),
        ("global average pool", [(1, 2048, 7, 7)], 32),
        ("concat, first axis", [(64, 800), (32, 800), (16, 800)], 16),
        ("pad", [(1, 64, 56, 56)], 16),
        ("transpose of a matrix", [(256, 256)], 8),
    ],
)
def test_hot_loops_are_parallel_and_vectorized_without_branches(name, shapes, lanes) -> None:
    script = scripted(name, shapes)
    assert script.count("T.parallel(") == 1
    assert f"T.vectorized(T.int64({lanes}))" in script
    assert "if_then_else" not in script


def test_padding_of_a_window_is_decided_outside_the_inner_rows() -> None:
    script = scripted("max pool 3x3 s2 padded", [(1, 64, 112, 112)])
    # The first row of windows alone asks which of its three rows are padding; the last one of 112 is inside.
    assert 0 < script.count("if_then_else") == script.count("if_then_else(T.int64(1) <= v_rv0")


def test_patterns_become_shuffles_of_whole_vectors() -> None:
    for name, shapes in (
        ("slice with steps", [(2, 90, 310)]),
        ("flip", [(64, 64)]),
        ("nearest resize", [(1, 3, 9, 20)]),
        ("transpose of a matrix", [(64, 64)]),
        ("max pool 2x2 s2", [(1, 8, 64, 64)]),
    ):
        assert "T.Shuffle(" in scripted(name, shapes), name


def test_small_tensors_are_one_tile_and_large_ones_many() -> None:
    def tiles(shape: tuple[int, ...]) -> int:
        func = legalized(op.nn.relu, (shape, "float32"))
        return split_function("f", schedule(func, find_target("host")), 1).steps[0].kernel.tiles

    assert tiles((1, 1000)) == 1
    assert 10 < tiles((1, 64, 112, 112)) < 200


def test_a_reduction_hands_its_rows_on_in_private_memory(tmp_path) -> None:
    func = legalized(lambda x: op.nn.softmax(x, -1), ((64, 5000), "float32"))
    plan = split_function("f", schedule(func, find_target("host")), 1)
    (step,) = plan.steps
    assert plan.scratch == ()
    assert 5000 * 4 <= step.kernel.thread_bytes < 5000 * 4 + 1024


def test_infinities_and_nan(tmp_path) -> None:
    specs = [((4, 40), "float32")]
    x = np.zeros((4, 40), np.float32)
    x[0], x[1, 3], x[2, 39] = -np.inf, np.inf, np.nan
    largest = Built(legalized(lambda x: op.max(x, [1]), *specs), 1, TARGETS[-1], tmp_path).run([x])[0]
    assert np.array_equal(largest[[0, 1, 3]], [-np.inf, np.inf, 0])
    x[0, 5] = 0  # a mask of -inf around one value
    rows = Built(legalized(lambda x: op.nn.softmax(x, -1), *specs), 1, TARGETS[-1], tmp_path).run([x])[0]
    assert rows[0, 5] == 1 and rows[0].sum() == 1 and np.isnan(rows[2]).all()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["argmax", "argmin"])
@pytest.mark.parametrize("axis", [0, 1])
def test_positions_of_ties_infinities_and_nan(kind, last, axis, tmp_path) -> None:
    x = np.random.default_rng(0).integers(0, 3, (70, 70)).astype(np.float32)
    x[:, 5] = x[5] = -np.inf if kind == "argmax" else np.inf
    placeholder = te.placeholder((index(70), index(70)), "float32", "x")  # 64-bit shapes, as Relax has them
    func = te.create_prim_func([placeholder, getattr(topi, kind)(placeholder, axis, False, last)])
    built = Built(func, 1, TARGETS[-1], tmp_path)
    reference = getattr(np, kind)
    expected = 69 - reference(np.flip(x, axis), axis) if last else reference(x, axis)
    assert np.array_equal(built.run([x])[0], expected)
    assert "T.vectorized(" in built.scheduled.script()
    x[:] = np.nan
    positions = built.run([x])[0]
    assert ((positions >= 0) & (positions < 70)).all()


def test_other_functions_keep_their_loops(tmp_path) -> None:
    """A recurrence over one buffer: no stage that could be moved."""

    def recurrence(ins, outs):
        (x,), (y,) = ins, outs
        i = tirx.Var("i", "int64")
        first = BufferStore(y, BufferLoad(x, [index(0)]), [index(0)])
        step = BufferStore(y, BufferLoad(y, [i - 1]) + BufferLoad(x, [i]), [i])
        return SeqStmt([first, For(i, index(1), index(49), ForKind.SERIAL, step)])

    x = te.placeholder((50,), "float32", "x")
    buffers = [tirx.decl_buffer(x.shape, "float32", n) for n in "xy"]
    y = te.extern([x.shape], [x], recurrence, in_buffers=buffers[:1], out_buffers=buffers[1:])
    func = te.create_prim_func([x, y])
    assert schedule(func, find_target("host")).same_as(func)
    values = np.arange(50, dtype=np.float32)
    assert np.array_equal(Built(func, 1, "host", tmp_path).run([values])[0], values.cumsum())


def test_dynamic_shapes_keep_their_loops() -> None:
    n = te.var("n", "int64")
    x = te.placeholder((n,), "float32", "x")
    func = te.create_prim_func([x, te.compute((n,), lambda i: x[i] + 1.0)])
    assert schedule(func, find_target("host")).same_as(func)
