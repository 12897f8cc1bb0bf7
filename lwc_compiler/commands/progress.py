"""Shows on stderr how a training goes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lwc_compiler.passes.sensitivity import ScanProgress
    from lwc_compiler.training.progress import Progress

_SECONDS_A_LINE = 2.0

logger = logging.getLogger(__name__)


@contextmanager
def training_progress() -> Iterator[Callable[[Progress], None]]:
    """A function that shows the progress of a training: as a bar on a terminal, else as a line every few seconds."""
    with ExitStack() as stack:
        show: Callable[[Progress], None] | None = None

        def report(progress: Progress) -> None:
            nonlocal show
            if show is None:
                show = _progress_bar(stack) if sys.stderr.isatty() else _progress_lines()
            show(progress)

        yield report


@contextmanager
def scan_progress() -> Iterator[Callable[[ScanProgress], None]]:
    """A function that shows the progress of a sensitivity scan: as a line every few seconds, and at the end."""
    spoken = time.monotonic()

    def report(now: ScanProgress) -> None:
        nonlocal spoken
        if now.done == now.total or time.monotonic() - spoken > _SECONDS_A_LINE:
            spoken = time.monotonic()
            left = "" if now.seconds_left is None else f", {_duration(now.seconds_left)} left"
            logger.info("scan: %d/%d measurements%s", now.done, now.total, left)

    yield report


def _progress_bar(stack: ExitStack) -> Callable[[Progress], None]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("retrain"), BarColumn(), TextColumn("{task.description}"))
    bar = stack.enter_context(Bar(*columns, console=Console(stderr=True), transient=True))
    task = bar.add_task("", total=None)

    def show(now: Progress) -> None:
        done = max(now.epoch - 1, 0) * now.steps + now.step
        bar.update(task, description=_training_line(now), total=now.epochs * now.steps, completed=done)

    return show


def _progress_lines() -> Callable[[Progress], None]:
    """A line once the untrained model is measured, once the last epoch is done, and between them every few seconds."""
    spoken = 0.0

    def show(now: Progress) -> None:
        nonlocal spoken
        ends = now.epoch == 0 or (now.epoch, now.step) == (now.epochs, now.steps)
        if ends or time.monotonic() - spoken > _SECONDS_A_LINE:
            spoken = time.monotonic()
            logger.info("retrain: %s", _training_line(now))

    return show


def _training_line(now: Progress) -> str:
    parts = [f"round {now.round}/{now.rounds}"] if now.round else []
    parts.append(f"epoch {now.epoch}/{now.epochs}")
    if 0 < now.step < now.steps:
        parts.append(f"step {now.step}/{now.steps}")
    if now.density is not None:
        parts.append(f"density {100 * now.density:.3g} %")
    if now.loss is not None:
        parts.append(f"loss {now.loss:.4g}")
    if now.metric is not None:
        parts.append(f"validation {now.metric:.4g}")
    if now.best is not None:
        parts.append(f"best {now.best:.4g}")
    if now.seconds_left is not None:
        parts.append(f"{_duration(now.seconds_left)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
