"""The driver without a GPU, `runtime/fake_driver.c`, as a library."""

import subprocess
from pathlib import Path

from lwc_compiler.codegen.link import find_compiler

# What each call takes has to be given back by the other.
PAIRS = {
    "cuDevicePrimaryCtxRetain": "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2": "cuCtxPopCurrent_v2",
    "cuModuleLoadData": "cuModuleUnload",
    "cuMemAlloc_v2": "cuMemFree_v2",
    "cuStreamCreate": "cuStreamDestroy_v2",
    "cuGraphCreate": "cuGraphDestroy",
    "cuStreamEndCapture": "cuGraphDestroy",
    "cuGraphInstantiateWithFlags": "cuGraphExecDestroy",
    "cuEventCreate": "cuEventDestroy_v2",
}


def build_driver(folder: Path, *flags: str) -> Path:
    """Makes `libcuda.so.1` in a folder; gives the folder."""
    source = Path(__file__).parent / "runtime" / "fake_driver.c"
    command = [*find_compiler().command, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", *flags]
    subprocess.run([*command, str(source), "-o", str(folder / "libcuda.so.1")], check=True)
    return folder


def names(calls: list[str]) -> list[str]:
    """The functions of the lines of a log."""
    return [call.split()[0] for call in calls]


def check_all_given_back(calls: list[str], failed: str = "") -> None:
    """`failed` is the function of which one call failed, and took nothing."""
    called = names(calls)
    for give in set(PAIRS.values()):
        taken = sum(called.count(take) - (take == failed) for take, by in PAIRS.items() if by == give)
        assert called.count(give) == taken, (give, failed)
