"""Tests whose code is made for other machines and runs in QEMU's user mode."""

import sys
from pathlib import Path

# What the kernels are tested on is said there.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels"))
