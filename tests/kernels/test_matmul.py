"""Matrix products compute what numpy does in float64, and touch nothing outside of their buffers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from harness import (
    NARROW,
    TARGETS,
    Case,
    KernelTests,
    build,
    check_same_kernels,
    finish,
    make_epilogue,
    run,
    sparse,
    variant,
)

from lwc_compiler.kernels.layer import Epilogue
from lwc_compiler.kernels.lookup import FEATURES
from lwc_compiler.kernels.matmul import (
    lookup_layout,
    plan_batched_matmul,
    plan_blocks,
    plan_gathered,
    plan_lookup,
    plan_matmul,
    plan_shared,
)

# rows, inner dimension, columns
PRODUCTS = [
    (1, 64, 10),
    (1, 37, 1),
    (1, 300, 129),
    (1, 1, 5),
    (1, 7000, 17),  # more than one block of a sparse matrix's inputs
    (2, 48, 33),
    (2, 5, 3),
    (3, 100, 16),
    (4, 31, 64),
    (5, 64, 100),
    (7, 16, 7),
    (8, 128, 24),
    (16, 65, 40),
    (31, 20, 1),
    (64, 33, 48),
    (100, 3, 2),
    (128, 64, 65),
]

# The same, for one sparse kernel each, whatever is predicted for the layer.
GATHERED = [(1, 1, 1), (1, 7000, 17), (1, 65, 63), (2, 64, 64), (3, 7, 65)]
LOOKUP = [
    (1, 1, 1),
    (1, 31, 15),
    (1, 63, 16),
    (2, 64, 17),
    (1, 65, 63),
    (3, 79, 64),
    (1, 127, 65),
    (2, 300, 33),
    (1, 513, 80),
]
SHARED = [(2, 3, 1), (3, 64, 63), (4, 31, 64), (5, 7000, 65), (8, 33, 66), (9, 16, 7), (15, 9000, 5), (16, 65, 40)]
BLOCKS = [(1, 1, 8), (1, 7000, 16), (2, 65, 64), (1, 31, 72), (3, 40, 136)]

# batch, rows, inner dimension, columns, a transposed, b transposed, scale
BATCHED = [
    (1, 8, 16, 32, False, False, 1.0),
    (2, 7, 13, 19, True, False, 1.0),
    (3, 5, 9, 11, False, True, 0.125),
    (2, 17, 33, 6, True, True, 1.0),
    (4, 1, 24, 31, False, False, 2.0),
    (4, 1, 24, 31, False, True, 0.5),
    (2, 30, 8, 1, False, True, 1.0),
    (1, 3, 1, 5, True, False, 1.0),
    (3, 49, 32, 49, False, True, 0.17677669),
    (2, 128, 10, 37, True, True, -1.0),
]


def lookup_where_possible(weight, rows, epilogue, target, **changes):
    if not target.features >= FEATURES:
        return plan_gathered(weight, rows, epilogue, target)
    layout, _ = lookup_layout(*weight.shape, rows, float((weight != 0).mean()), target)
    return plan_lookup(weight, epilogue, replace(layout, **changes))


def make_case(
    number: int, rows: int, inner: int, columns: int, density: object, kind: str, plan=plan_matmul, name: str = ""
) -> Case:
    generator = np.random.default_rng(number)
    weight = sparse(generator, (inner, columns), density, axis=1)
    epilogue = make_epilogue(generator, kind, columns)
    x = generator.standard_normal((rows, inner)).astype(np.float32)
    sums = x.astype(np.float64) @ weight.astype(np.float64)
    further, expected, scale = finish(generator, sums, epilogue, axis=1)
    name = f"{number}{name}-{rows}x{inner}x{columns}-{density}-{kind}"
    return Case(name, lambda target: plan(weight, rows, epilogue, target), [x, *further], expected, scale)


def make_batched(
    batch: int, rows: int, inner: int, columns: int, a_transposed: bool, b_transposed: bool, scale: float
) -> Case:
    generator = np.random.default_rng(batch * rows)
    a = generator.standard_normal((batch, rows, inner)).astype(np.float32)
    b = generator.standard_normal((batch, inner, columns)).astype(np.float32)
    expected = scale * (a.astype(np.float64) @ b.astype(np.float64))
    inputs = [m.swapaxes(1, 2).copy() if t else m for m, t in ((a, a_transposed), (b, b_transposed))]
    transposes = ("a" if a_transposed else "") + ("b" if b_transposed else "")
    return Case(
        f"batched-{batch}x{rows}x{inner}x{columns}-transposed-{transposes or 'none'}",
        lambda target: plan_batched_matmul(
            batch, rows, inner, columns, target, a_transposed=a_transposed, b_transposed=b_transposed, scale=scale
        ),
        inputs,
        expected,
        float(np.abs(expected).max()),
    )


def make_cases() -> list[Case]:
    chosen = [(*shape, *variant(i, shift)) for i, shape in enumerate(PRODUCTS) for shift in (0, 2)]
    cases = [make_case(number, *case) for number, case in enumerate(chosen)]
    for name, plan, shapes in (
        ("gathered", plan_gathered, GATHERED),
        ("lookup", lookup_where_possible, LOOKUP),
        ("far-64", partial(lookup_where_possible, far=True, window=64, block=80, chunk=2), LOOKUP[::2]),
        ("far-96", partial(lookup_where_possible, far=True, window=96, block=112), LOOKUP[1::2]),
        ("near-128", partial(lookup_where_possible, far=False, window=128, block=256), LOOKUP[2::2]),
        ("shared", plan_shared, SHARED),
        *((f"block{height}", partial(plan_blocks, height=height), BLOCKS) for height in (2, 4, 8)),
    ):
        chosen = [(*shape, *variant(i, shift)) for i, shape in enumerate(shapes) for shift in (0, 1, 3)]
        cases += [make_case(number, *case, plan, name) for number, case in enumerate(chosen)]
    return cases + [make_batched(*shape) for shape in BATCHED]


CASES = make_cases()


class TestProducts(KernelTests):
    cases = CASES
    scalar = True


class TestNarrowVectors(KernelTests):
    cases = CASES
    targets = (NARROW,)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_layers_alike_share_their_kernels(target, rows: int, density: float) -> None:
    weights = [sparse(np.random.default_rng(seed), (96, 40), density, 1) for seed in (1, 2)]
    check_same_kernels(*(plan_matmul(weight, rows, Epilogue(), target) for weight in weights))


@pytest.mark.parametrize("target", [*TARGETS, NARROW], ids=lambda target: target.name)
@pytest.mark.parametrize(
    "plan", [plan_gathered, lookup_where_possible, partial(lookup_where_possible, far=True, block=64), plan_shared]
)
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_inputs_reach_only_the_outputs_that_read_them(target, plan, density: float, tmp_path) -> None:
    """Filling adds 0 times an input: one that is not finite must not get into a sum by it."""
    generator = np.random.default_rng(0)
    weight = sparse(generator, (300, 90), density, 1)
    weight[:, 4] = 0
    x = generator.standard_normal((4, 300)).astype(np.float32)
    x[:, ::37] = np.inf
    x[:, 5::37] = np.nan
    read = (weight[~np.isfinite(x[0])] != 0).any(axis=0)
    case = Case("case", lambda target: plan(weight, 4, Epilogue(), target), [x], np.zeros((4, 90)), 1.0)
    result = run(build([case], target, tmp_path), case, split=False)
    assert np.array_equal(np.isfinite(result), np.tile(~read, (4, 1)))
