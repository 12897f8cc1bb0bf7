"""What a measurement of an artifact found."""

from __future__ import annotations

from dataclasses import dataclass

from lwc_compiler.runtime.layer_times import LayerTime


@dataclass(frozen=True)
class Timing:
    """Time of one run.

    Attributes:
        engine: what ran.
        runs: runs that were timed.
        median_ms: median, in milliseconds.
        min_ms: fastest run.
        p90_ms: nine in ten runs were at most this long.
        spread_ms: half the interquartile range of the medians of the blocks.
    """

    engine: str
    runs: int
    median_ms: float
    min_ms: float
    p90_ms: float
    spread_ms: float


@dataclass(frozen=True)
class Bench:
    """Timings of an artifact and, when asked for, of ONNX Runtime and of the dense model compiled by lwc.

    Attributes:
        threads: threads of all.
        timings: lwc, ONNX Runtime, the dense model; ONNX Runtime runs here only.
        speedup: the median of the second / lwc's; None when lwc's is alone.
        speedup_spread: half the interquartile range of the same quotient of one block of each after the other.
        layers: where the time of the artifact goes; empty when it was not asked for.
        where: what ran all of them; empty for this process.
    """

    threads: int
    timings: tuple[Timing, ...]
    speedup: float | None
    speedup_spread: float | None
    layers: tuple[LayerTime, ...] = ()
    where: str = ""
