"""A whole attention in one kernel on a GPU computes what numpy does in float64."""

import math

import numpy as np
import pytest
from harness import Case
from test_gpu_batched import ARCHITECTURES, GPU, HEADS, HEADS_SWAPPED, PLAIN, SWAPPED, lying

from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import compile_device
from lwc_compiler.kernels.gpu import attention
from lwc_compiler.kernels.gpu.attention import Attention, AttentionTile, attention_tile, plan_attention
from lwc_compiler.kernels.gpu.builder import strides_of
from lwc_compiler.kernels.gpu.factors import Matrix
from lwc_compiler.targets import find_target
from tests.cuda_harness import Emulator
from tests.machine_code import check_resources
from tests.opencl_harness import run_plan

# Batch, heads, keys, queries, their features, and those of values.
SHAPES = ((1, 2, 128, 128, 64, 64), (2, 1, 77, 50, 33, 40), (1, 1, 200, 70, 20, 100), (1, 2, 129, 1, 64, 64))
# In which order of its axes each matrix lies: keys, queries, values, result.
ORDERS = (
    (SWAPPED, PLAIN, PLAIN, PLAIN), (PLAIN, SWAPPED, SWAPPED, SWAPPED), (HEADS, *3 * (HEADS_SWAPPED,)),
    (PLAIN, PLAIN, SWAPPED, HEADS),
)  # fmt: skip


def make_case(
    name: str, shape: tuple[int, ...], orders: tuple[tuple[int, ...], ...], tile=None, masked: tuple[int, ...] = ()
) -> Case:
    """`masked` are the axes along which the mask is not the same everywhere; without any there is none."""
    generator = np.random.default_rng(len(name))
    *batch, key_count, query_count, inner, features = shape
    sizes = ((key_count, inner), (inner, query_count), (features, key_count))
    keys, queries, values = (generator.standard_normal((*batch, *size)).astype(np.float32) for size in sizes)
    scores = 0.5 * (keys.astype(np.float64) @ queries)
    mask = generator.standard_normal([n if axis in masked else 1 for axis, n in enumerate(scores.shape)])
    mask = np.where(mask < -0.5, np.float32(-1e4), mask.astype(np.float32))
    scores = scores + mask if masked else scores
    powers = np.exp(scores - scores.max(-2, keepdims=True))
    expected = values @ (powers / powers.sum(-2, keepdims=True))
    arrays = keys, queries, values, expected
    lie = [lying(array.shape, order) for array, order in zip(arrays, orders, strict=True)]
    strides = [stride * (axis in masked) for axis, stride in enumerate(strides_of(mask.shape))]
    lies = Matrix(tuple(strides[:-2]), *strides[-2:]) if masked else None
    whole = Attention(tuple(batch), key_count, query_count, inner, features, *lie, 0.5, lies)
    tile = tile or attention_tile(math.prod(batch), key_count, query_count, features, GPU.gpu)
    *inputs, expected = (np.ascontiguousarray(each.transpose(o)) for each, o in zip(arrays, orders, strict=True))
    inputs += [mask] if masked else []
    return Case(name, lambda _: plan_attention(whole, tile), inputs, expected, float(np.abs(expected).max()))


def make_cases() -> list[Case]:
    cases = [make_case(f"{shape} {o}", shape, o) for shape, o in zip(SHAPES, ORDERS, strict=True)]
    for number, masked in enumerate(((0, 2), (1, 2, 3), (0, 1, 2, 3), (3,))):
        shape, orders = SHAPES[number], ORDERS[(number + 1) % len(ORDERS)]
        cases.append(make_case(f"{shape} masked along {masked}", shape, orders, masked=masked))
    for number, (queries, (scores, depth, mixed)) in enumerate(attention._CUTS.items()):
        for stages, cut in zip((2, 3), mixed, strict=True):
            shape = (1, 2, 140, 70, 36, cut.rows - 3)
            tile = AttentionTile(140, queries, scores, depth, cut, stages)
            cases.append(make_case(f"{queries} {stages} {cut}", shape, ORDERS[number], tile))
    return cases


CASES = make_cases()


class TestAttention:
    cases = CASES

    def test_same_as_float64(self, device, case) -> None:
        result = run_plan(device, case.plan(GPU), case.inputs, case.expected.shape)
        assert np.abs(result - case.expected).max() <= 1e-5 * case.scale


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """Some cases as CUDA's text."""
    return Emulator({case.name: case.plan(GPU) for case in CASES[2::3]}, tmp_path_factory.mktemp("emulator"))


def test_no_hazards(emulator) -> None:
    """Where copies are made as late as they may be, in two orders of the threads."""
    for case in CASES[2::3]:
        emulator.check(case.name, case)


def test_every_wait_and_barrier_is_needed(emulator) -> None:
    assert not emulator.not_needed(CASES[2].name, CASES[2])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_do(architecture: int) -> None:
    kernels = {f"k{number}": case.plan(GPU).steps[0].kernel for number, case in enumerate(CASES[1::2])}
    (code,) = compile_all(compile_device(kernels, "cuda"), [architecture], ptx=False)
    check_resources(code, kernels)


def test_large_scores_are_no_infinities(device) -> None:
    """The largest of a query is subtracted from all."""
    order = (PLAIN,) * 4
    case = make_case("large", (1, 1, 100, 20, 16, 32), order)
    keys, queries, values = case.inputs
    result = run_plan(device, case.plan(GPU), [100 * keys, 100 * queries, values], case.expected.shape)
    best = np.einsum("bhki,bhiq->bhkq", keys, queries).argmax(-2)
    assert np.allclose(result, np.take_along_axis(values, best[:, :, None], -1), atol=1e-3)


def test_there_is_work_for_all_multiprocessors() -> None:
    gpu = find_target("h200").gpu
    many, few = (attention_tile(heads, 128, 128, 64, gpu) for heads in (192, 12))
    assert many.queries > few.queries
    assert 12 * 128 / few.queries > gpu.multiprocessors / 2


@pytest.mark.parametrize(("keys", "features"), [(64, 64), (128, 129), (20000, 64)])
def test_others_are_computed_in_parts(keys: int, features: int) -> None:
    """Few keys, wide values, and more scores than shared memory holds."""
    assert attention_tile(12, keys, 128, features, GPU.gpu) is None
