"""Steps that run band by band compute the same, and only those are joined that can be."""

import numpy as np
import pytest
from test_batch import network, taking

import lwc_compiler as lwc
from lwc_compiler.codegen import bands
from lwc_compiler.codegen.bands import join_in_bands
from lwc_compiler.codegen.memory import lifetimes
from lwc_compiler.codegen.program import BufferRef, Call, Stage
from lwc_compiler.codegen.result import StepInfo, TensorSpec
from lwc_compiler.kernels.kernel import Kernel
from lwc_compiler.targets import find_target

TARGET = find_target("x86-64-v3")
LARGE = TARGET.l2_bytes


def stage(kernels: list[Kernel], args: list[list[int]], sizes: list[int]) -> Stage:
    spec = TensorSpec("x", "uint8", (sizes[0],))
    return Stage(
        kernels={kernel.name: kernel for kernel in kernels},
        calls=tuple(
            Call(kernel.name, tuple(map(BufferRef, refs)), StepInfo(kernel.name, "k", ""), 0.0)
            for kernel, refs in zip(kernels, args, strict=True)
        ),
        buffers=tuple(sizes),
        constants=(),
        inputs=((spec, BufferRef(0)),),
        outputs=((spec, BufferRef(args[-1][-1])),),
    )


def kernel(name: str, count: int) -> Kernel:
    return Kernel(name, None, 4 * count, 0, count)


def joined(chain: Stage, threads: int = 1) -> list[tuple[str, ...]]:
    return [tuple(call.symbol for call in step) for step in join_in_bands(chain, TARGET, threads).steps]


def test_joins_calls_that_pass_on_what_the_cache_cannot_hold() -> None:
    kernels = [kernel("a", 8), kernel("b", 8), kernel("c", 8)]
    assert joined(stage(kernels, [[0, 1], [1, 2], [2, 3]], [LARGE] * 4)) == [("a", "b", "c")]
    assert joined(stage(kernels, [[0, 1], [1, 2], [2, 3]], [LARGE, LARGE, 64, 64])) == [("a", "b"), ("c",)]
    assert joined(stage(kernels, [[0, 1], [0, 2], [2, 3]], [LARGE] * 4)) == [("a",), ("b", "c")]


def test_leaves_calls_apart_whose_bands_do_not_fit() -> None:
    assert joined(stage([kernel("a", 8), kernel("b", 4)], [[0, 1], [1, 2]], [LARGE] * 3)) == [("a",), ("b",)]
    assert joined(stage([kernel("a", 1), kernel("b", 1)], [[0, 1], [1, 2]], [LARGE] * 3)) == [("a",), ("b",)]
    whole = stage([kernel("a", 8), kernel("b", 8)], [[0, 1], [1, 2]], [8 * LARGE] * 3)
    assert joined(whole) == [("a",), ("b",)]


def test_threads_share_bands_evenly() -> None:
    chain = stage([kernel("a", 7), kernel("b", 7)], [[0, 1], [1, 2]], [LARGE] * 3)
    assert joined(chain, threads=1) == joined(chain, threads=7) == [("a", "b")]
    assert joined(chain, threads=2) == [("a",), ("b",)]


def test_buffers_of_joined_calls_live_together() -> None:
    """The second call writes its output while the first still reads its input."""
    chain = join_in_bands(stage([kernel("a", 8), kernel("b", 8)], [[0, 1], [1, 2]], [LARGE] * 3), TARGET, 1)
    (_, last), _, (first, _) = lifetimes(chain)
    assert first <= last


@pytest.mark.parametrize("threads", [1, 2])
def test_joined_steps_compute_what_onnx_runtime_computes(tmp_path, monkeypatch, threads: int) -> None:
    monkeypatch.setattr(bands, "_LARGE", 0.0)
    monkeypatch.setattr("lwc_compiler.kernels.choice.predicted", taking(images=0.5))
    recipe = lwc.Recipe(lower=lwc.LowerOptions(target="x86-64-v3", threads=threads))
    artifact = lwc.compile(network(8, pointwise=True), tmp_path / "out", recipe)
    (program,) = artifact.manifest.programs
    assert any(step.further for step in program.steps)
    x = np.random.default_rng(1).standard_normal((8, 3, 56, 56), np.float32)
    with lwc.load(artifact.directory) as session, lwc.load(artifact.directory, threads=1) as alone:
        assert np.array_equal(session.run({"x": x})["y"], alone.run({"x": x})["y"])
