"""TIR functions become plain C functions: split into kernels, tile ranges, private scratch, nothing of TVM inside."""

import ctypes
import subprocess

import numpy as np
from tvm import s_tir, te, tirx

from lwc_compiler.codegen.kernel_build import compile_kernels, split_function
from lwc_compiler.codegen.link import find_compiler, link_library
from lwc_compiler.kernels.kernel import Input, Kernel, Output, Plan, Scratch
from lwc_compiler.targets import find_target


def two_stages(rows: int, columns: int) -> tirx.PrimFunc:
    """The function y = exp(x) - sum over a row of exp(x), rows in parallel in the second stage."""
    x = te.placeholder((rows, columns), "float32", "x")
    e = te.compute(x.shape, lambda i, j: te.exp(x[i, j]), "e")
    k = te.reduce_axis((0, columns), "k")
    s = te.compute((rows,), lambda i: te.sum(e[i, k], axis=k), "s")
    y = te.compute(x.shape, lambda i, j: e[i, j] - s[i], "y")
    schedule = s_tir.Schedule(te.create_prim_func([x, y]))
    row, column = schedule.get_loops(schedule.get_sblock("y"))
    schedule.parallel(row)
    schedule.compute_at(schedule.get_sblock("s"), row)
    schedule.vectorize(column)
    return schedule.mod["main"]


def load(kernels: dict[str, Kernel], tmp_path) -> ctypes.CDLL:
    host = find_target("host")
    path = tmp_path / "kernels.so"
    path.write_bytes(
        link_library(find_compiler(), {"kernels.o": compile_kernels(kernels, host.llvm())}, hidden=("__truncsfhf2",))
    )
    return ctypes.CDLL(str(path))


def run(plan: Plan, library: ctypes.CDLL, x: np.ndarray, ranges: list[tuple[int, int]]) -> np.ndarray:
    y = aligned(x.shape)
    scratch = [aligned((size,), np.uint8) for size in plan.scratch]
    private = aligned((1 << 16,), np.uint8)
    buffers = {Input(0): x, Output(0): y} | {Scratch(i): s for i, s in enumerate(scratch)}
    for i, step in enumerate(plan.steps):
        args = [ctypes.c_void_p(buffers[a].ctypes.data) for a in step.args]
        if step.kernel.thread_bytes:
            args.append(ctypes.c_void_p(private.ctypes.data))
        for t0, t1 in ranges if step.kernel.tiles > 1 else [(0, 1)]:
            library[f"k{i}"](*args, t0, t1)
    return y


def aligned(shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 512, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def test_stages_become_kernels_and_tiles_can_be_split(tmp_path) -> None:
    plan = split_function("two", two_stages(6, 40), 1)
    first, second = plan.steps
    assert plan.scratch == (6 * 40 * 4,)
    assert first.args == (Input(0), Scratch(0))
    assert (second.kernel.tiles, set(second.args)) == (6, {Scratch(0), Output(0)})
    library = load({f"k{i}": s.kernel for i, s in enumerate(plan.steps)}, tmp_path)
    x = aligned((6, 40))
    x[:] = np.random.default_rng(0).standard_normal(x.shape)
    expected = np.exp(x.astype(np.float64))
    expected -= expected.sum(axis=1, keepdims=True)
    whole = run(plan, library, x, [(0, 6)])
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(whole, run(plan, library, x, [(4, 6), (0, 1), (1, 4)]))


def test_large_inner_buffers_become_private_scratch(tmp_path) -> None:
    x = te.placeholder((4, 3000), "float32", "x")
    d = te.compute(x.shape, lambda i, j: x[i, j] * 2.0, "d")
    y = te.compute(x.shape, lambda i, j: d[i, 2999 - j] + 1.0, "y")
    schedule = s_tir.Schedule(te.create_prim_func([x, y]))
    row = schedule.get_loops(schedule.get_sblock("y"))[0]
    schedule.parallel(row)
    schedule.compute_at(schedule.get_sblock("d"), row)
    plan = split_function("flip", schedule.mod["main"], 1)
    (step,) = plan.steps
    assert plan.scratch == ()
    assert step.kernel.thread_bytes == 12032  # 3000 floats, in whole cache lines
    library = load({"k0": step.kernel}, tmp_path)
    data = aligned((4, 3000))
    data[:] = np.arange(12000).reshape(4, 3000)
    assert np.array_equal(run(plan, library, data, [(0, 4)]), data[:, ::-1] * 2 + 1)


def test_objects_are_reproducible_and_name_nothing_of_tvm(tmp_path) -> None:
    plan = split_function("two", two_stages(3, 16), 1)
    kernels = {f"k{i}": s.kernel for i, s in enumerate(plan.steps)}
    target = find_target("x86-64-v3").llvm()
    built = compile_kernels(kernels, target)
    assert built == compile_kernels(kernels, target)
    (tmp_path / "k.o").write_bytes(built)
    symbols = subprocess.run(["nm", "k.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "TVM" not in symbols
    assert {line.split()[-1] for line in symbols.splitlines() if " T " in line} == {"k0", "k1"}
