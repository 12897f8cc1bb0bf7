"""The stack that object code says it needs: for single instructions, for chains of calls, for what has no bound."""

import pytest

from lwc_compiler.codegen.link import compile_objects, find_compiler, make_archive
from lwc_compiler.codegen.stack import StackUse, stack_use
from lwc_compiler.targets import find_target

TARGETS = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "rv32imafc")

THUMB = [
    ("push {r4, lr}", 8),
    ("push.w {r4, r5, r8, lr}", 16),
    ("str lr, [sp, #-12]!", 12),
    ("strd r4, r5, [sp, #-24]!", 24),
    ("vpush {d8, d9}", 16),
    ("vpush {s17}", 4),
    ("sub sp, #508", 508),
    ("sub.w sp, sp, #1024", 1024),
    ("sub.w sp, sp, #0x00ab00ab", 0x00AB00AB),
    ("sub.w sp, sp, #0xab00ab00", 0xAB00AB00),
    ("sub.w sp, sp, #0xabababab", 0xABABABAB),
    ("subw sp, sp, #4095", 4095),
    ("push {r7}\nsub.w r4, sp, #64\nbfc r4, #0, #4\nmov sp, r4", 4 + 64 + 12),
    ("add sp, #8\nadd r1, sp, #4\nldr r2, [sp, #8]\nstr r2, [sp]\npop {r4, pc}", 0),
    ("sub sp, sp, r1", None),
    ("add sp, r1", None),
]
RISCV = [
    ("addi sp, sp, -16", 16),
    ("c.addi16sp sp, -496", 496),
    ("c.addi sp, -8", 8),
    ("addi sp, sp, -2048\naddi sp, sp, -100", 2148),
    ("addi sp, sp, -64\nandi sp, sp, -32", 96),
    ("addi sp, sp, 64\naddi sp, s0, -64\nlw a0, 4(sp)\nsw a0, 8(sp)", 0),
    ("sub sp, sp, a0", None),
    ("c.add sp, a0", None),
]
SINGLE = [("cortex-m7", *case) for case in THUMB] + [("rv32imafc", *case) for case in RISCV]


def archived(target, **sources):
    compiler = find_compiler(find_target(target))
    files = {f"{name}.c": text.encode() for name, text in sources.items()}
    return make_archive(compiler, compile_objects(compiler, files))


@pytest.fixture(scope="module")
def instructions():
    """For each target a library with a function for each of its cases."""
    made = {}
    for target, cases in (("cortex-m7", THUMB), ("rv32imafc", RISCV)):
        functions = []
        for number, (code, _) in enumerate(cases):
            text = code.replace("\n", "\\n")
            end = "bx lr" if target == "cortex-m7" else "ret"
            head = f"__attribute__((naked)) void f{number}(void)"
            functions.append(f'{head};\n{head} {{ __asm__ volatile("{text}\\n{end}"); }}')
        made[target] = archived(target, code="\n".join(functions))
    return made


@pytest.mark.parametrize(("target", "code", "expected"), SINGLE, ids=[f"{case[0]} {case[1]}" for case in SINGLE])
def test_instructions(instructions, target, code, expected):
    number = [case[1] for case in SINGLE if case[0] == target].index(code)
    found = stack_use(instructions[target], f"f{number}")
    assert (None if found is None else found.bytes) == expected


CALLER = """
    #include <stddef.h>
    extern void outside(volatile char *data);
    extern void other(volatile char *data);
    int deep(volatile char *data), shallow(volatile char *data);
    static int local(volatile char *data) {
        volatile char room[1000];
        room[*data & 63] = 1;
        other(room);
        return room[5];
    }
    static int (*const table[])(volatile char *data) = {shallow, deep};
    int pick(int which, volatile char *data);
    int pick(int which, volatile char *data) { return table[which](data) + 1; }
    int chain(volatile char *data);
    int chain(volatile char *data) { volatile char room[300]; room[*data & 63] = 2; return local(room) + room[7]; }
    int ask(volatile char *data);
    int ask(volatile char *data) { outside(data); return 1; }
"""
CALLEES = """
    int deep(volatile char *data), shallow(volatile char *data), again(int n);
    void other(volatile char *data);
    int deep(volatile char *data) { volatile char room[2000]; room[*data & 63] = 3; return room[*data & 31]; }
    int shallow(volatile char *data) { return *data; }
    void other(volatile char *data) { volatile char room[500]; room[*data & 63] = 4; *data = room[*data & 31]; }
    __attribute__((noinline)) int again(int n) {
        volatile int left = n;
        return left < 1 ? 0 : again(left - 1) + again(left - 2) + left;
    }
"""


@pytest.mark.parametrize("target", TARGETS)
def test_frames_of_the_deepest_chain_add_up(target):
    archive = archived(target, caller=CALLER, callees=CALLEES)

    def use(name):
        found = stack_use(archive, name)
        assert found is not None
        return found

    assert use("shallow").bytes < 16
    assert 500 <= use("other").bytes < 540
    assert 300 + 1000 + use("other").bytes <= use("chain").bytes < 300 + 1000 + use("other").bytes + 100
    assert use("deep").bytes <= use("pick").bytes <= use("deep").bytes + 32
    assert use("pick").beside == use("chain").beside == ()
    assert use("ask") == StackUse(use("ask").bytes, ("outside",))
    assert use("ask").bytes <= 16
    assert stack_use(archive, "again") is None
