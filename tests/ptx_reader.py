"""Reads the PTX of kernels: what they access of the GPU's memory, by which parameter, and whether before they wait."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from lwc_compiler.codegen.cuda_compiler import compile_all
from lwc_compiler.codegen.device_build import compile_device, written_parameters
from lwc_compiler.kernels.gpu.builder import CONSTANTS, WAITS
from lwc_compiler.kernels.kernel import Kernel

_COMMENT = re.compile(r"//.*")
_STATEMENT = re.compile(r"(\$?\w+:)|([^;:{}]*(?:\{[^{};]*\}[^;{}]*)*);|[{}]")
_PARTS = re.compile(r"(?:(@)!?[%\w]+\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
_REGISTER, _ADDRESS = re.compile(r"%\w+"), re.compile(r"\[([^\]]*)\]")
_ACCESS = re.compile(r"(ld|st|red|atom|cp\.async|cp\.reduce|prefetch)\b")
_ELSEWHERE = re.compile(r"\.(param|local|const)\b|\.shared(?!.*\.global)|cp\.async\.(commit|wait)|cp\.async\.mbarrier")
_WAIT = "griddepcontrol.wait"


@dataclass(frozen=True)
class Access:
    """An instruction that reads or writes the GPU's memory.

    Attributes:
        instruction: which.
        parameters: numbers of the pointers that its address is computed from.
        writes: it is no load or copy from there.
        early: a thread may get to it without having waited for the kernel before.
    """

    instruction: str
    parameters: frozenset[int]
    writes: bool
    early: bool


def ptx_of(kernels: Mapping[str, Kernel], architecture: int) -> dict[str, str]:
    """The PTX of each kernel."""
    _, code = compile_all(compile_device(kernels, "cuda"), [architecture], ptx=True)
    entries = re.split(r"\.visible \.entry (\w+)", code.image.decode())
    return dict(zip(entries[1::2], entries[2::2], strict=True))


def check_waits(kernels: Mapping[str, Kernel]) -> None:
    """Asserts that kernels wait on every way through them, and read constants alone before, where they say so."""
    entries = ptx_of(kernels, 90)
    assert set(entries) == set(kernels)
    for symbol, text in entries.items():
        func = kernels[symbol].func
        found = accesses(text)
        for access in found:
            assert access.parameters, (symbol, access)
            if access.early:
                assert access.parameters <= set(func.attrs[CONSTANTS]), (symbol, access)
                assert not access.writes, (symbol, access)
        assert {number for access in found if access.writes for number in access.parameters} == written_parameters(func)
        assert any(access.early for access in found) <= bool(func.attrs.get(WAITS, False)), symbol


def accesses(ptx: str) -> list[Access]:
    """The accesses of a kernel, all of whose threads have to wait before they end.

    Args:
        ptx: from its parameters to the end of its body, and maybe further.
    """
    code, labels = _instructions(ptx)
    early = _before_waiting(code, labels)
    comes_from = _parameters(code)
    found = []
    for number, (_, name, operands) in enumerate(code):
        if not _ACCESS.match(name) or _ELSEWHERE.search(name):
            continue
        address = _ADDRESS.findall(operands)[1 if name.startswith("cp.") else 0]
        parameters = frozenset().union(*(comes_from[register] for register in _REGISTER.findall(address)))
        reads = name.startswith(("ld", "cp.async", "prefetch"))
        found.append(Access(f"{name} {operands}", parameters, not reads, number in early))
    return found


def _instructions(ptx: str) -> tuple[list[tuple[bool, str, str]], dict[str, list[int]]]:
    """Whether each is for some threads alone, its name and operands; and where labels are."""
    code: list[tuple[bool, str, str]] = []
    labels: dict[str, list[int]] = defaultdict(list)
    for label, text in _STATEMENT.findall(_COMMENT.sub("", ptx[ptx.index("{") :])):
        if label:
            labels[label[:-1]].append(len(code))
        elif text.strip() and not text.strip().startswith("."):
            parts = _PARTS.fullmatch(text.strip())
            assert parts is not None, text
            code.append((bool(parts[1]), parts[2], parts[3]))
    return code, labels


def _before_waiting(code: list[tuple[bool, str, str]], labels: dict[str, list[int]]) -> set[int]:
    """Numbers of the instructions that a thread may get to before it has waited."""
    found: set[int] = set()
    at = [0]
    while at:
        number = at.pop()
        if number in found:
            continue
        found.add(number)
        some, name, operands = code[number]
        kind = name.split(".")[0]
        assert kind not in {"ret", "exit", "trap", "brx", "call"}, f"{name} where not all threads have waited"
        if name == _WAIT and not some:
            continue
        if kind == "bra":
            at += labels[operands.strip()]
        if kind != "bra" or some:
            at.append(number + 1)
    return found


def _parameters(code: list[tuple[bool, str, str]]) -> dict[str, set[int]]:
    """The parameters that what is in each register is computed from; what is read from memory is from none."""
    found: dict[str, set[int]] = defaultdict(set)
    moved = True
    while moved:
        moved = False
        for _, name, operands in code:
            if name.startswith(("st", "cp.", "bra", "red")):
                continue
            to, _, sources = operands.partition("}" if operands.startswith("{") else ",")
            given = {int(number) for number in re.findall(r"_param_(\d+)\]", sources)}
            if not name.startswith(("ld", "atom")):
                given |= set().union(*(found[register] for register in _REGISTER.findall(sources)))
            for register in _REGISTER.findall(to):
                moved |= not given <= found[register]
                found[register] |= given
    return found
