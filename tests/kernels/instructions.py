"""Runs loops that are written in assembly, one instruction after the other."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np


class Interpreter(ABC):
    """Registers and arrays of a loop over taps; an address is the name of an array and a byte in it."""

    def __init__(self, count: int, sums: np.ndarray, **arrays: np.ndarray) -> None:
        self.bytes = {name: array.tobytes() for name, array in arrays.items()}
        self.vectors = {f"s{i}": row.copy() for i, row in enumerate(sums)}
        self.whole: dict[str, Any] = {"count": count, **{name: (name, 0) for name in arrays}}

    def run(self, lines: list[str]) -> None:
        """Runs a whole text."""
        at = 0
        while at < len(lines):
            label = self.step(lines[at])
            at = at + 1 if label is None else lines.index(label)

    @abstractmethod
    def step(self, line: str) -> str | None:
        """Runs one instruction; the label it goes on at, if it jumps."""
