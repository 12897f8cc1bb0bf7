"""ONNX with its zeros to an lwc artifact: python convert_lwc.py MODEL.onnx FOLDER TARGET THREADS."""

from __future__ import annotations

import sys

import lwc_compiler as lwc

source, destination, target, threads = sys.argv[1:]
lwc.lower(source, destination, lwc.LowerOptions(target=target, threads=int(threads)), force=True)
