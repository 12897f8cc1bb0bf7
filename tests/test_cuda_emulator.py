"""The emulator of GPUs finds hazards in both kinds of memory, in small kernels that have one, and says where."""

import re
from contextlib import nullcontext

import numpy as np
import pytest

from lwc_compiler.kernels.kernel import Launch
from tests.cuda_harness import HazardError, Library

LAUNCH = Launch((1, 1, 1), (128, 1, 1))
RIGHT = {
    "read by others": "s[t] = x[t]; __syncthreads(); y[t] = s[t ^ 1];",
    "read by all": "if (t == 0) s[0] = x[0]; __syncthreads(); y[t] = s[0]; __syncthreads(); if (t == 1) s[0] = 0;",
    "its own": "s[t] = x[t]; y[t] = s[t]; s[t] = 0;",
    "a copy that is waited for": "lwc_copy_4(s + t, x + t, 1); lwc_commit(); lwc_wait_0(); y[t] = s[t];",
    "copies in groups": """
        lwc_copy_4(s + t, x + t, 1); lwc_commit(); lwc_copy_4(s + 128 + t, x + t, 1); lwc_commit();
        lwc_wait_1(); __syncthreads(); y[t] = s[t ^ 1];""",
    "a bulk copy": """
        START(s, 512);
        lwc_barrier_wait(arrived, 0); y[t] = s[t];""",
    "a bulk copy to what was read": """
        y[t] = s[t]; lwc_barrier_arrive(read, 0); if (t == 0) lwc_barrier_wait(read, 0);
        START(s, 512); lwc_barrier_wait(arrived, 0); y[t] = s[t];""",
    "read by other lanes": "s[t] = x[t]; __syncwarp(); y[t] = s[t ^ 1];",
    "a bulk copy to what lanes read": """
        y[t] = s[t]; __syncwarp(); if (t % 32 == 0) lwc_barrier_arrive(of_warps, 0);
        if (t == 0) lwc_barrier_wait(of_warps, 0);
        START(s, 512); lwc_barrier_wait(arrived, 0); y[t] = s[t];""",
    "registers that products have read": """
        START(s, 16384); lwc_barrier_wait(arrived, 0);
        uint places[1] = {0x44444444}; MULTIPLY_SPARSE(); lwc_wgmma_commit(); lwc_wgmma_wait_0();
        places[0] = 0xeeeeeeee; MULTIPLY_SPARSE(); lwc_wgmma_commit(); lwc_wgmma_wait_0(); y[t] = places[0];""",
}
EITHER = "read after write|write after read"
# And what is said of each, in either order of the threads.
WRONG = {
    "no barrier": ("s[t] = x[t]; y[t] = s[t ^ 1];", EITHER),
    "a shuffle is no barrier": ("s[t] = x[t]; __shfl_sync(~0u, t, 0); y[t] = s[t ^ 1];", "read after write"),
    "a barrier too early": ("__syncthreads(); s[t] = x[t]; y[t] = s[t ^ 1];", EITHER),
    "some read what others write": ("if (t < 64) y[t] = s[t]; else s[t - 64] = 0;", EITHER),
    "the same value twice": ("s[t / 2] = 1;", "write after write"),
    "written before all have read": ("s[t] = x[t]; __syncthreads(); y[t] = s[t ^ 1]; s[t] = 0;", EITHER),
    "a copy that is not waited for": (
        "lwc_copy_4(s + t, x + t, 1); lwc_commit(); __syncthreads(); y[t] = s[t];",
        "read after write",
    ),
    "a copy that is waited for too late": (
        "lwc_copy_4(s + t, x + t, 1); lwc_commit(); __syncthreads(); lwc_wait_0(); y[t] = s[t ^ 1];",
        "read after write",
    ),
    "a copy of another group": (
        "lwc_copy_4(s + t, x + t, 1); lwc_commit(); lwc_wait_1(); y[t] = s[t];",
        "read after write",
    ),
    "two copies at once": (
        "lwc_copy_4(s + t, x + t, 1); lwc_commit(); lwc_copy_4(s + t, x, 1); lwc_commit(); lwc_wait_0();",
        "write after write",
    ),
    "a copy to what others read": (
        "s[t] = x[t]; __syncthreads(); y[t] = s[t ^ 1]; lwc_copy_4(s + t, x + t, 1);",
        EITHER,
    ),
    "a bulk copy that is not waited for": (
        "START(s, 512); __syncthreads(); y[t] = s[t];",
        "read after write",
    ),
    "a bulk copy that is never waited for": (
        "START(s, 512);",
        "a block ends before a copy",
    ),
    "a bulk copy to what threads wrote": ("s[t] = 0; __syncthreads(); START(s, 512);", "no fence"),
    "a product of what threads wrote": (
        "for (int i = t; i < 8192; i += 128) s[i] = 0; __syncthreads(); MULTIPLY();",
        "no fence",
    ),
    "a bulk copy to what a product reads": (
        """
        START(s, 16384);
        lwc_barrier_wait(arrived, 0); MULTIPLY(); lwc_wgmma_commit(); __syncthreads();
        START(s, 512);""",
        "write after read",
    ),
    "a bulk copy to what other lanes read": (
        """
        y[t] = s[t]; if (t % 32 == 0) lwc_barrier_arrive(of_warps, 0);
        if (t == 0) lwc_barrier_wait(of_warps, 0);
        START(s, 512);""",
        "write after read",
    ),
    "registers that a product may still read": (
        """
        START(s, 16384); lwc_barrier_wait(arrived, 0);
        uint places[1] = {0x44444444}; MULTIPLY_SPARSE(); lwc_wgmma_commit();
        places[0] = 0xeeeeeeee; MULTIPLY_SPARSE(); lwc_wgmma_commit(); lwc_wgmma_wait_1();""",
        "a register changes that a product may still read",
    ),
    "half a word": ("((ushort *)s)[t] = 0;", "not one of words"),
    "places in another order": ("uint a[8] = {}; lwc_mma_sparse_float16(sums, a, a + 4, 0x44441444);", "not in order"),
    "places of two words": ("uint a[8] = {}; lwc_mma_sparse_tf32(sums, a, a + 4, 0x44448444);", "not those of a word"),
}
MACROS = """
#define START(to, bytes) if (t == 0) { lwc_barrier_expect(arrived, bytes); lwc_copy_bulk(to, x, bytes, arrived); }
#define MULTIPLY() lwc_wgmma_tf32_64(sums, s, s + 2048, 1u << 30 | 64)
#define MULTIPLY_SPARSE() lwc_wgmma_sparse_float16_64(sums, s, s + 2048, 2u << 30 | 32, 1u << 30 | 64, places)
"""
FUNCTION = """
static void {name}(float *x, float *y) {{
    float *s = (float *)lwc_shared;
    char *arrived = (char *)(s + 16384), *read = arrived + 8, *of_warps = arrived + 16;
    const int t = threadIdx.x;
    float sums[32] = {{}};
    if (t == 0) {{ lwc_barrier_init(arrived, 1); lwc_barrier_init(read, 128); lwc_barrier_init(of_warps, 4); }}
    lwc_cluster_sync();
    lwc_inputs_ready();
    {body}
}}
"""

# Launches one after the other; each overlaps the one before unless its number is in the list. `READY` waits for that.
BEFORE = "read after write.*before its wait, after launch 1$"
IN_MEMORY = {
    "read after the wait": (["READY; m[i] = 1;", "READY; m[256 + i] = m[i ^ 1];"], [], ""),
    "read before the wait": (
        ["READY; m[i] = 1;", "float v = m[i]; READY; m[256 + i] = v;"],
        [],
        BEFORE,
    ),
    "read before the wait of a launch that does not overlap": (
        ["READY; m[i] = 1;", "float v = m[i]; READY; m[256 + i] = v;"],
        [2],
        "",
    ),
    "constants before the wait": (["READY; m[i] = m[512 + i];", "float v = m[512 + i]; READY; m[i] += v;"], [], ""),
    "copied before the wait": (
        ["READY; m[i] = 1;", "lwc_copy_4(lwc_shared + 4 * t, m + i, 1); READY; lwc_commit(); lwc_wait_0();"],
        [],
        BEFORE,
    ),
    "zeros before the wait": (
        ["READY; m[i] = 1;", "lwc_copy_4(lwc_shared + 4 * t, m + i, 0); READY; lwc_commit(); lwc_wait_0();"],
        [],
        "",
    ),
    "written before the wait": (["READY; m[i] = 1;", "m[i] = 2; READY;"], [], "write after write.*launch 1$"),
    "written before the one before the last has read": (
        ["READY; m[256 + i] = m[i];", "READY; m[512 + i] = 0;", "m[i] = 0; READY;"],
        [],
        "write after read.*launch 3 .*before its wait, after launch 1$",
    ),
    "written when the one before the last has ended": (
        ["READY; m[256 + i] = m[i];", "READY; m[512 + i] = 0;", "m[i] = 0; READY;"],
        [2],
        "",
    ),
    "written after the wait": (["READY; m[256 + i] = m[i];", "READY; m[512 + i] = 0;", "READY; m[i] = 0;"], [], ""),
    "its own": (["READY; m[i] = 1; m[i] = m[i] + 1;"], [], ""),
    "of another thread": (["READY; m[i] = 1; m[256 + i] = m[i ^ 1];"], [], EITHER),
    "of another thread after a barrier": (["READY; m[i] = 1; __syncthreads(); m[256 + i] = m[i ^ 1];"], [], EITHER),
    "of another block": (["READY; m[i] = 1; if (i == 128) m[256] = m[0];"], [], EITHER),
    "written by two threads": (["READY; m[i / 2] = 1;"], [], "write after write"),
    "written by two blocks": (["READY; m[t] = 1;"], [], "write after write"),
    "read by all and written by one": (["READY; m[256 + i] = m[0]; if (i == 5) m[0] = 1;"], [], EITHER),
    "a byte each": (["READY; ((uchar *)m)[i] = 1;"], [], ""),
    "without a wait": (["READY; m[i] = 1;", "m[256 + i] = 1;"], [], "does not wait for its inputs once"),
    "some do not wait": (["if (i < 100) READY;"], [], "does not wait for its inputs once"),
}
IN_MEMORY_FUNCTION = """
static void {name}(float *m) {{
    const int t = threadIdx.x, i = blockIdx.x * 128 + t;
    {body}
}}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    bodies = [*RIGHT.values(), *(body for body, _ in WRONG.values())]
    text = MACROS + "".join(FUNCTION.format(name=f"k{i}", body=body) for i, body in enumerate(bodies))
    calls = {f"k{i}": (f"k{i}((float *)pointers[0], (float *)pointers[1])", 1) for i in range(len(bodies))}
    return Library(text, calls, tmp_path_factory.mktemp("emulator"))


def run(library: Library, name: str, *, backwards: bool) -> np.ndarray:
    memory = np.zeros((2, 4096 + 4), np.float32)
    x, y = (row[-(row.ctypes.data // 4) % 4 :][:4096] for row in memory)  # at multiples of 16 bytes
    x[:] = np.arange(1, 4097)
    library.run(f"k{[*RIGHT, *WRONG].index(name)}", [x, y], LAUNCH, backwards=backwards)
    return y[:128]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_ordered_is_no_hazard(library, name: str, backwards: bool) -> None:
    assert run(library, name, backwards=backwards).all()


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(library, name: str, backwards: bool) -> None:
    """Whichever of two threads comes first."""
    with pytest.raises(HazardError, match=WRONG[name][1]):
        run(library, name, backwards=backwards)


def test_a_hazard_says_where(library) -> None:
    with pytest.raises(HazardError) as error:
        run(library, "some read what others write", backwards=False)
    place = r"thread {} at line \d+: if \(t < 64\) y\[t\] = s\[t\]; else s\[t - 64\] = 0;"
    what = r"write after read: byte 0 of shared memory, block \(0, 0, 0\)"
    assert re.fullmatch(f"{what}: {place.format(64)}, after {place.format(0)}", str(error.value))


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    bodies = {f"m{i}_{j}": b for i, (all_, _, _) in enumerate(IN_MEMORY.values()) for j, b in enumerate(all_, 1)}
    text = "#define READY lwc_inputs_ready()\n"
    text += "".join(IN_MEMORY_FUNCTION.format(name=name, body=body) for name, body in bodies.items())
    calls = {name: (f"{name}((float *)pointers[0])", 1) for name in bodies}
    return Library(text, calls, tmp_path_factory.mktemp("memory"))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", IN_MEMORY)
def test_hazards_in_the_memory_of_the_gpu(launches, name: str, backwards: bool) -> None:
    """Between threads of a launch, and between launches that overlap: nothing but what a case says is found."""
    bodies, alone, said = IN_MEMORY[name]
    memory = np.zeros(1024, np.float32)
    launches.begin(memory)
    with pytest.raises(HazardError, match=said) if said else nullcontext():
        for number in range(1, len(bodies) + 1):
            launch = Launch((2, 1, 1), (128, 1, 1), overlaps=number not in alone)
            symbol = f"m{list(IN_MEMORY).index(name)}_{number}"
            launches.run(symbol, [memory], launch, backwards=backwards)
