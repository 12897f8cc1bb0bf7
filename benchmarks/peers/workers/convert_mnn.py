"""ONNX to MNN: python convert_mnn.py MODEL.onnx MODEL.mnn [--detectSparseSpeedUp].

The converter is called as a module: MNN's own command would install a package that reports its use.
"""

from __future__ import annotations

import sys

import _tools

source, destination, *options = sys.argv[1:]
files = ["--modelFile", source, "--MNNModel", destination]
_tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "MNN", "--optimizePrefer", "2", *options])
