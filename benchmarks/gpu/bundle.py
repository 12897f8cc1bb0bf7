"""The file between `make gpu-prepare` and `make gpu`: a program in a zip file, with its data.

`bundle.json` describes what there is. Arrays are members `N.npy`, libraries `NAME.so`, machine code `NAME.cubin`; all
are compressed by LZMA, and so the weights are drawn from few values and repeat (`layers.py`).
"""

from __future__ import annotations

import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

_TABLE = "bundle.json"
# A tenth of the time of zip's own LZMA, for files that are hardly larger: weights repeat far away.
_COMPRESSED = [{"id": lzma.FILTER_LZMA2, "preset": 3, "dict_size": 1 << 24}]
_MAIN = "from benchmarks.gpu.run import main\n\nmain()\n"
_PROGRAM = (
    "__init__.py", "beside.py", "bundle.py", "goals.py", "kernels.py", "networks.py", "run.py", "table.py",
    "torch_side.py",
)  # fmt: skip
# What times kernels is lwc's own, and all that the program has of it.
_OF_LWC = ("device_driver.py", "device_timing.py")


class Writer:
    """Writes a bundle; a context manager.

    Attributes:
        table: what `Bundle.table` will be.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w")
        self._arrays = 0
        self.table: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            here = Path(__file__).parent
            for name in _PROGRAM:
                self._zip.write(here / name, f"benchmarks/gpu/{name}")
            for name in _OF_LWC:
                self._zip.write(here.parents[1] / "lwc_compiler" / "runtime" / name, f"lwc_compiler/runtime/{name}")
            for package in ("benchmarks", "lwc_compiler", "lwc_compiler/runtime"):
                self._zip.writestr(f"{package}/__init__.py", "")
            self._zip.writestr("__main__.py", _MAIN)
            self.add(_TABLE, json.dumps(self.table).encode())
        self._zip.close()

    def add(self, name: str, data: bytes) -> str:
        """Stores a member; gives its name."""
        self._zip.writestr(name, lzma.compress(data, filters=_COMPRESSED))
        return name

    def add_array(self, array: NDArray[Any]) -> str:
        """Stores an array; gives the name of its member."""
        file = io.BytesIO()
        np.save(file, array)
        self._arrays += 1
        return self.add(f"{self._arrays}.npy", file.getvalue())


class Bundle:
    """Reads a bundle."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self.table: dict[str, Any] = json.loads(self.data(_TABLE))

    def data(self, name: str) -> bytes:
        """A member."""
        return lzma.decompress(self._zip.read(name))

    def array(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(io.BytesIO(self.data(name)))
        return array


def random_input(shape: list[int], seed: int = 0) -> NDArray[np.float32]:
    """What is fed, too large to be stored: float32, normal."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
