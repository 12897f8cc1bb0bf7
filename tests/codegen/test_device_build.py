"""The text of kernels for GPUs: where they wait for the kernel before them, and what the compiler makes of it."""

import re

import pytest

from lwc_compiler.codegen.device_build import compile_device, written_parameters
from lwc_compiler.codegen.program import BufferRef
from lwc_compiler.kernels.gpu.builder import WARP, DeviceBuilder
from lwc_compiler.kernels.kernel import Kernel
from tests.codegen.test_device_lower import NETWORKS, assembled, network
from tests.ptx_reader import accesses, check_waits, ptx_of


def scaled(early: str, *, waits: bool) -> Kernel:
    """Y = x * scales, one of which is read before the inputs are waited for."""
    b = DeviceBuilder((1, 1, 1), WARP)
    pointers = {"x": b.pointer("x"), "scales": b.constant("scales")}
    y = b.pointer("y")
    product = b.register(1)
    product.set(b.load(pointers.pop(early), b.thread))
    if waits:
        b.inputs_ready()
    (other,) = pointers.values()
    b.store(y, b.thread, product.get() * b.load(other, b.thread))
    return b.finished("scaled")


def test_a_kernel_waits_at_its_beginning_or_where_it_says() -> None:
    calls = r"\n  lwc_launch_next\(\);(\n  lwc_inputs_ready\(\);)?\n"
    for waits in (False, True):
        text = compile_device({"k": scaled("scales", waits=waits)}, "cuda")
        (at_once,) = re.findall(calls, text)
        assert bool(at_once) is not waits
        assert text.count("  lwc_inputs_ready();") == 1
        scales = "float* scales" if waits else "float* __restrict__ scales"
        assert f"k(float* x, {scales}, float* __restrict__ y)" in text
    first, second = text.index("scales["), text.index("x[")
    assert first < text.index("  lwc_inputs_ready();") < second


def test_inputs_are_not_used_before_they_are_waited_for() -> None:
    with pytest.raises(AssertionError, match=r"'x_data'.*before `inputs_ready`"):
        scaled("x", waits=True)
    assert scaled("x", waits=False).launch is not None


def test_nothing_waits_before_hopper() -> None:
    kernels = {"k": scaled("scales", waits=True)}
    assert "griddepcontrol" not in ptx_of(kernels, 89)["k"]
    assert ptx_of(kernels, 120)["k"].count("griddepcontrol") == 2


@pytest.mark.parametrize("name", ["bert, sparse", "lenet5, sparse", "small_resnet, dense", "operators"])
def test_machine_code_waits_for_all_that_changes(name: str) -> None:
    check_waits(assembled(network(*NETWORKS[name]), "h100").kernels)


def test_the_compiler_moves_no_access_over_the_wait() -> None:
    entries = ptx_of({"early": scaled("scales", waits=True), "late": scaled("scales", waits=False)}, 90)
    found = {
        name: sorted((access.early, access.instruction.split()[0]) for access in accesses(text))
        for name, text in entries.items()
    }
    load, store = "ld.global.f32", "st.global.f32"
    assert found["early"] == [(False, load), (False, store), (True, load)]
    assert found["late"] == [(False, load), (False, "ld.global.nc.f32"), (False, store)]


PTX = """(.param .u64 k_param_0, .param .u64 k_param_1)
{{
    .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [k_param_0];
    ld.param.u64 %rd2, [k_param_1];
    cvta.to.global.u64 %rd3, %rd1; // of x
    add.s64 %rd4, %rd2, 8;
    {body}
    ret;
}}
"""


@pytest.mark.parametrize(
    ("body", "early"),
    [
        ("griddepcontrol.wait; ld.global.f32 %f1, [%rd3];", []),
        ("ld.global.v2.f32 {%f1, %f2}, [%rd3+4]; griddepcontrol.wait;", [{0}]),
        ("{ .reg .pred p; cp.async.ca.shared.global [%r1], [%rd4], 4, %r2; } griddepcontrol.wait;", [{1}]),
        ("st.global.f32 [%rd4], %f1; griddepcontrol.wait;", [{1}]),
        ("st.shared.f32 [%r1], %f1; griddepcontrol.wait;", []),
        ("selp.b64 %rd5, %rd3, %rd4, %p1; ld.global.f32 %f1, [%rd5]; griddepcontrol.wait;", [{0, 1}]),
        # A loop around the wait, which has an access that comes after it in the text and may be reached before.
        ("bra L2; L1: griddepcontrol.wait; bra.uni L3; L2: ld.global.f32 %f1, [%rd3]; bra L1; L3:", [{0}]),
    ],
)
def test_accesses_of_ptx(body: str, early: list[set[int]]) -> None:
    assert [access.parameters for access in accesses(PTX.format(body=body)) if access.early] == early


@pytest.mark.parametrize(
    "body", ["", "@%p1 griddepcontrol.wait;", "@%p1 bra L1; griddepcontrol.wait; L1:", "@%p1 ret; griddepcontrol.wait;"]
)
def test_a_way_without_a_wait_is_found(body: str) -> None:
    with pytest.raises(AssertionError, match="ret where not all threads have waited"):
        accesses(PTX.format(body=body))


def test_what_a_kernel_writes() -> None:
    """In a network every buffer is an input or is written, and no input is."""
    assert written_parameters(scaled("scales", waits=True).func) == {2}
    stage = assembled(network(*NETWORKS["operators"]))
    inputs = {ref.index for _, ref in stage.inputs}
    written = {
        call.args[number].index
        for call in stage.calls
        for number in written_parameters(stage.kernels[call.symbol].func)
        if isinstance(call.args[number], BufferRef)
    }
    assert written == set(range(len(stage.buffers))) - inputs
