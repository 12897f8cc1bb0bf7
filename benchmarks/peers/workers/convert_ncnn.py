"""ONNX to ncnn with pnnx: python convert_ncnn.py MODEL.onnx FOLDER SHAPE, SHAPE such as 1,3,224,224."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

source, folder, shape = sys.argv[1:]
Path(folder).mkdir()
# pnnx has more outputs than ncnn needs; they go to the same folder.
outputs = {"ncnnparam": "model.param", "ncnnbin": "model.bin", "pnnxparam": "pnnx.param", "pnnxbin": "pnnx.bin"}
outputs |= {"pnnxpy": "pnnx.py", "ncnnpy": "ncnn.py", "pnnxonnx": "pnnx.onnx"}
files = [f"{name}={Path(folder, file)}" for name, file in outputs.items()]
pnnx = Path(sys.executable).with_name("pnnx")
subprocess.run([pnnx, source, f"inputshape=[{shape}]", "fp16=0", *files], check=True, stdout=sys.stderr)
Path(source).with_suffix(".pnnxsim.onnx").unlink(missing_ok=True)
for file in outputs.values():
    if file not in ("model.param", "model.bin"):
        Path(folder, file).unlink(missing_ok=True)
