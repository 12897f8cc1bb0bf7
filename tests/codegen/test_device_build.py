"""The text of kernels for GPUs: where they wait for the kernel before them, and what the compiler makes of it."""

import re

import pytest

from lwc_compiler.codegen.device_build import compile_device, written_parameters
from lwc_compiler.codegen.nvrtc import compile_all
from lwc_compiler.codegen.program import BufferRef
from lwc_compiler.kernels.gpu.builder import WAITS, WARP, DeviceBuilder
from lwc_compiler.kernels.kernel import Kernel
from tests.codegen.test_device_lower import NETWORKS, assembled, network


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


def ptx_of(kernels: dict[str, Kernel], architecture: int) -> dict[str, str]:
    """The PTX of each kernel."""
    _, code = compile_all(compile_device(kernels, "cuda"), [architecture], ptx=True)
    entries = re.split(r"\.visible \.entry (\w+)", code.image.decode())
    return dict(zip(entries[1::2], entries[2::2], strict=True))


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


def test_the_compiler_moves_no_access_over_the_wait() -> None:
    stage = assembled(network(*NETWORKS["bert, sparse"]))
    kernels = stage.kernels | {"early": scaled("scales", waits=True), "late": scaled("scales", waits=False)}
    entries = ptx_of(kernels, 90)
    assert set(entries) == set(kernels)
    accesses = {}
    for name, text in entries.items():
        before, after = text.split("griddepcontrol.wait;")
        assert "griddepcontrol.launch_dependents;" in before
        found = [re.findall(r"(?:ld|st)\.global(?:\.nc)?", part) for part in (before, after)]
        assert set(found[0]) <= ({"ld.global"} if kernels[name].func.attrs.get(WAITS) else set()), name
        accesses[name] = found
    assert accesses["early"] == [["ld.global"], ["ld.global", "st.global"]]
    assert sorted(accesses["late"][1]) == ["ld.global", "ld.global.nc", "st.global"]


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
