"""Outputs take the buffers of residuals that nothing reads any more, and networks compute the same."""

from dataclasses import replace

import pytest
from test_bands import kernel, stage
from test_lower import make, sparse

import lwc_compiler as lwc
from lwc_compiler.codegen import over
from lwc_compiler.codegen.over import write_over
from lwc_compiler.codegen.program import Stage

ADDING = replace(kernel("add", 1), over=1)
PLAIN = kernel("plain", 1)


def places(chain: Stage) -> list[list[int]]:
    return [[ref.index for ref in call.args] for call in write_over(chain).calls]


def test_takes_the_buffer_that_is_read_for_the_last_time() -> None:
    chain = stage([PLAIN, PLAIN, ADDING, PLAIN], [[0, 1], [1, 2], [2, 1, 3], [3, 4]], [64] * 5)
    assert places(chain) == [[0, 1], [1, 2], [2, 1, 1], [1, 4]]


def test_one_buffer_may_be_taken_again_and_again() -> None:
    args = [[0, 1], [1, 2], [2, 1, 3], [3, 4], [4, 3, 5], [5, 6]]
    chain = stage([PLAIN, PLAIN, ADDING, PLAIN, ADDING, PLAIN], args, [64] * 7)
    assert places(chain) == [[0, 1], [1, 2], [2, 1, 1], [1, 4], [4, 1, 1], [1, 6]]


@pytest.mark.parametrize(
    ("kernels", "args"),
    [
        ([PLAIN, ADDING, PLAIN], [[0, 1], [1, 0, 2], [2, 3]]),  # an input
        ([PLAIN, PLAIN, ADDING], [[0, 1], [1, 2], [2, 1, 3]]),  # an output
        ([PLAIN, PLAIN, ADDING, ADDING], [[0, 1], [1, 2], [2, 1, 3], [3, 1, 4]]),  # read later
        ([PLAIN, ADDING, PLAIN], [[0, 1], [1, 1, 2], [2, 3]]),  # read twice by the kernel
        ([PLAIN, PLAIN, PLAIN, PLAIN], [[0, 1], [1, 2], [2, 1, 3], [3, 4]]),
    ],
)
def test_leaves_what_is_needed(kernels: list, args: list[list[int]]) -> None:
    assert places(stage(kernels, args, [64] * 5)) == args


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_computes_the_same(tmp_path, monkeypatch, threads: int) -> None:
    """`compile` compares with ONNX Runtime. Planes fill whole vectors, so no output is computed twice."""
    nodes = [
        ("Conv", ["x", "w1"], ["c1"], {}),
        ("Relu", ["c1"], ["r1"], {}),
        ("Conv", ["r1", "w2"], ["c2"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c2"], ["r2"], {}),
        ("Conv", ["r2", "w3"], ["c3"], {"pads": [1, 1, 1, 1]}),
        ("Add", ["c3", "r1"], ["a"], {}),
        ("Relu", ["a"], ["r3"], {}),
        ("Conv", ["r3", "w1"], ["y"], {}),
    ]
    weights = {"w1": sparse(32, 32, 1, 1), "w2": sparse(32, 32, 3, 3), "w3": sparse(32, 32, 3, 3)}
    shape = {"x": [1, 32, 12, 16]}
    model = make(nodes, weights, shape, {"y": shape["x"]})
    stages = []
    monkeypatch.setattr(over, "write_over", lambda stage: stages.append((stage, write_over(stage))) or stages[-1][1])
    recipe = lwc.Recipe(lower=lwc.LowerOptions(target="x86-64-v3", threads=threads))
    lwc.compile(model, tmp_path / "net.lwc", recipe)
    ((before, after),) = stages
    assert before.calls != after.calls
