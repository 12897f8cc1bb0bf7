"""What is downloaded is checked, read without running any of it, and split as promised."""

import gzip
import hashlib
import os
import pickle
import stat
import sys

import numpy as np
import pytest

from lwc_compiler.errors import DataError, ToolchainError
from lwc_compiler.reproduce import datasets
from lwc_compiler.reproduce.datasets import (
    Dataset,
    Images,
    load_arrays,
    load_fashion_mnist,
    load_mnist,
    prepare,
    validation_images,
)
from lwc_compiler.reproduce.wheels import Wheel, fetch_wheel
from tests.wheels import CACHE

# -- pickles ----------------------------------------------------------------------------------------------------------


class Hostile:
    """Its pickle runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickle_is_refused_before_it_runs(tmp_path, protocol):
    mark = tmp_path / "mark"
    data = pickle.dumps([1, Hostile(f"touch {mark}")], protocol)
    with pytest.raises(DataError, match=r"it wants to load (posix|nt)\.system"):
        load_arrays(data, "some file")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", [b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\nfrombuffer", b"os\nsystem"]
)
def test_every_other_name_is_refused(name):
    with pytest.raises(DataError, match="it wants to load"):
        load_arrays(b"c" + name + b"\n.", "some file")


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps([1, 2, 3])[:-1]])
def test_damaged_pickle_is_refused(data):
    with pytest.raises(DataError, match="some file: not a pickle of NumPy arrays"):
        load_arrays(data, "some file")


def test_arrays_are_read_as_python_2_wrote_them():
    array = np.array([1.5, -2], np.float32)
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + array.tobytes() + b"t"
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    found = load_arrays(b"\x80\x02" + new + state + b"b.", "some file")
    assert found.dtype == np.float32
    assert found.tolist() == [1.5, -2]


# -- wheels -----------------------------------------------------------------------------------------------------------


def wheel_of(content):
    return Wheel("thing==1", "thing-1.whl", hashlib.sha256(content).hexdigest())


def test_wheel_in_the_cache_is_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    (tmp_path / "thing-1.whl").write_bytes(b"right")
    assert fetch_wheel(wheel_of(b"right"), tmp_path) == tmp_path / "thing-1.whl"


def test_wheel_that_is_not_the_expected_one_is_refused(tmp_path):
    (tmp_path / "thing-1.whl").write_bytes(b"wrong")
    with pytest.raises(DataError, match=r"thing-1\.whl has SHA-256 .*, expected .*; delete it"):
        fetch_wheel(wheel_of(b"right"), tmp_path)


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_no_network_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    failing = program(tmp_path / "python", "echo 'WARNING: retrying' >&2; echo 'ERROR: no route to host' >&2; exit 1")
    monkeypatch.setattr(sys, "executable", str(failing))
    with pytest.raises(ToolchainError, match=r"cannot download thing==1: ERROR: no route to host; .*once"):
        fetch_wheel(wheel_of(b"right"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


# -- MNIST and Fashion-MNIST ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist():
    return load_mnist(CACHE)  # `python -m tests.wheels` fetched the wheel


def test_mnist_is_mnist(mnist):
    assert mnist.train.pixels.shape == (60_000, 28, 28)
    assert mnist.test.pixels.shape == (10_000, 28, 28)
    assert mnist.train.pixels.dtype == np.uint8
    assert mnist.train.pixels.max() == 255
    # Published: the first labels, and the images of each class.
    assert mnist.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert mnist.test.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert np.bincount(mnist.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))
    return hashlib.sha256(header + array.tobytes()).hexdigest()


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A cache with two small images, and the checksums to match."""
    folder = tmp_path / "dataset-fashion-mnist" / "usr/share/datasets/fashion-mnist"
    folder.mkdir(parents=True)
    images, labels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28), np.array([3, 9], np.uint8)
    arrays = (images, labels, images[:1], labels[:1])
    files = {name: write_idx(folder / name, array) for name, array in zip(datasets._FASHION_FILES, arrays, strict=True)}
    monkeypatch.setattr(datasets, "_FASHION_FILES", files)
    monkeypatch.setattr(datasets, "_INSTALLED", tmp_path / "missing")
    return tmp_path, folder


def test_idx_files_are_read(fashion):
    data = load_fashion_mnist(fashion[0])
    assert data.train.pixels[1, 0, :3].tolist() == [16, 17, 18]  # 784 + k, modulo 256
    assert data.train.labels.tolist() == [3, 9]
    assert data.train.labels.dtype == np.int64
    assert data.test.pixels.shape == (1, 28, 28)


def test_other_idx_files_are_refused(fashion):
    cache, folder = fashion
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.array([3, 8], np.uint8))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz has SHA-256"):
        load_fashion_mnist(cache)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz cannot be read"):
        load_fashion_mnist(cache)


def test_system_without_apt_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_INSTALLED", tmp_path / "missing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt-get is missing: Fashion-MNIST is taken from the Debian package"):
        load_fashion_mnist(tmp_path)


def test_apt_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    program(tools / "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    program(tools / "dpkg-deb", "exit 0")
    monkeypatch.setattr(datasets, "_INSTALLED", tmp_path / "missing")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(ToolchainError, match=r"E: Unable to locate package; .*apt-get update"):
        load_fashion_mnist(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


# -- the split --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ordered(monkeypatch):
    """A data set in which every image says where it was: 6,000 of each class, in order."""
    places = np.arange(60_000)
    pixels = np.zeros((60_000, 28, 28), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = places % 256, places // 256
    test = Images(np.full((10, 28, 28), 255, np.uint8), np.arange(10))
    data = Dataset(Images(pixels, places // 6_000), test)
    monkeypatch.setitem(datasets.DATASETS, "ordered", lambda cache: data)


def places_of(pixels):
    first = np.round(pixels.reshape(len(pixels), -1)[:, :2] * 255).astype(int)
    return first[:, 0] + 256 * first[:, 1]


@pytest.mark.parametrize("shape", [(784,), (1, 28, 28)])
def test_files_hold_every_image_once(tmp_path, ordered, shape):
    files = prepare("ordered", shape, tmp_path)
    with np.load(files.train) as train, np.load(files.validation) as validation, np.load(files.test) as test:
        assert train["pixels"].shape == (55_000, *shape)
        assert train["pixels"].dtype == np.float32
        ours, theirs = places_of(train["pixels"]), places_of(validation["pixels"])
        assert sorted([*ours, *theirs]) == list(range(60_000))
        np.testing.assert_array_equal(train["labels"], ours // 6_000)
        assert np.bincount(validation["labels"]).tolist() == [500] * 10
        assert test["pixels"].shape == (10, *shape)
        assert test["pixels"].max() == 1
        assert test["labels"].dtype == np.int64
    assert [path.name for path in tmp_path.iterdir()] == ["ordered"]


def test_files_are_made_once(tmp_path, ordered, monkeypatch):
    files = prepare("ordered", (784,), tmp_path)
    monkeypatch.setitem(datasets.DATASETS, "ordered", None)
    assert prepare("ordered", (784,), tmp_path) == files


def test_split_depends_on_nothing_but_the_labels():
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    np.testing.assert_array_equal(validation_images(labels), validation_images(labels.copy()))


def test_cache_that_cannot_be_written_is_an_error(tmp_path, ordered):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot keep data sets in .*give another folder"):
        prepare("ordered", (784,), tmp_path / "file")
