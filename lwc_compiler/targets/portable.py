"""C99 source, for every processor that has a compiler."""

from __future__ import annotations

from lwc_compiler.targets.target import ALL_WEIGHT_TYPES, Target

TARGETS = (
    Target(
        name="c",
        family="portable",
        triple="C source",
        cpu="",
        features=frozenset(),
        vector_bits=32,
        vector_registers=16,
        l1_bytes=16 << 10,
        l2_bytes=128 << 10,
        description="C99 source for any compiler, without vectors and threads",
        os="none",
        source=True,
        weight_types=ALL_WEIGHT_TYPES,
    ),
)


def host_features() -> frozenset[str]:
    """None: the code asks for nothing."""
    return frozenset()


def host_cpu() -> str:
    """Empty: code of this family is not timed."""
    return ""
