import sys

import numpy as np
import pytest

from lwc_compiler.errors import DataError, ToolchainError
from lwc_compiler.training.data import ArraySource, ImageSource, InputSpec, StreamSource, open_source

X = InputSpec("x", np.dtype(np.float32), (None, 3))
IDS = InputSpec("ids", np.dtype(np.int64), (None, None))
PICTURE = InputSpec("picture", np.dtype(np.float32), (None, 3, 4, 6))


@pytest.fixture
def arrays():
    return {"x": np.arange(60, dtype=np.float32).reshape(20, 3), "labels": np.arange(20) % 5}


def everything(source, size=7, order=None):
    batches = list(source.batches(size, order))
    assert all(batch.samples == size for batch in batches[:-1])
    inputs = {name: np.concatenate([b.inputs[name] for b in batches]) for name in batches[0].inputs}
    return inputs, None if batches[0].labels is None else np.concatenate([b.labels for b in batches])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("label_name", ["labels", "y", "targets"])
def test_npz(tmp_path, arrays, save, label_name):
    save(tmp_path / "data.npz", **{"x": arrays["x"], label_name: arrays["labels"]})
    source = open_source(str(tmp_path / "data.npz"), [X])
    assert (source.samples, source.shapes, source.labels.kind) == (20, {"x": (3,)}, "int")
    inputs, labels = everything(source)
    np.testing.assert_array_equal(inputs["x"], arrays["x"])
    np.testing.assert_array_equal(labels, arrays["labels"])


def test_stored_members_are_memory_mapped(tmp_path, arrays):
    np.savez(tmp_path / "data.npz", x=arrays["x"], fortran=np.asfortranarray(arrays["x"]))
    specs = [X, InputSpec("fortran", X.dtype, X.shape)]
    source = open_source(str(tmp_path / "data.npz"), specs)
    for array in source._batch.inputs.values():
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, arrays["x"])


def test_npy_is_memory_mapped(tmp_path, arrays):
    np.save(tmp_path / "data.npy", arrays["x"])
    source = open_source(str(tmp_path / "data.npy"), [X])
    assert isinstance(source._batch.inputs["x"], np.memmap)
    assert source.labels is None
    np.testing.assert_array_equal(everything(source)[0]["x"], arrays["x"])


def test_x_stands_for_the_only_input(tmp_path, arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    source = open_source(str(tmp_path / "data.npz"), [InputSpec("image", X.dtype, X.shape)])
    assert list(source.shapes) == ["image"]


def test_floats_and_integers_of_other_widths_are_converted(arrays):
    source = ArraySource("", {"x": arrays["x"].astype(np.float64), "ids": np.zeros((20, 2), np.int32)}, [X, IDS])
    batch = next(source.batches(4))
    assert (batch.inputs["x"].dtype, batch.inputs["ids"].dtype) == (np.float32, np.int64)


def test_an_order_is_followed(arrays):
    order = np.random.default_rng(1).permutation(20)
    inputs, labels = everything(ArraySource("", arrays, [X]), 6, order)
    np.testing.assert_array_equal(inputs["x"], arrays["x"][order])
    np.testing.assert_array_equal(labels, arrays["labels"][order])


def test_the_last_tenth_is_split_off(arrays):
    train, validation = ArraySource("", arrays, [X]).split()
    assert (train.samples, validation.samples) == (18, 2)
    np.testing.assert_array_equal(everything(train)[0]["x"], arrays["x"][:18])
    np.testing.assert_array_equal(everything(validation)[0]["x"], arrays["x"][18:])


def test_one_sample_cannot_be_split(arrays):
    with pytest.raises(DataError, match="at least two"):
        ArraySource("", {"x": arrays["x"][:1]}, [X]).split()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None, "z": np.zeros((20, 3), np.float32)}, "no array for the model's input 'x'; found 'labels', 'z'"),
        ({"label": np.zeros(20)}, "array 'label' is not an input of the model"),
        ({"y": np.zeros(20)}, "array 'y' is not an input"),
        ({"x": np.zeros((20, 4), np.float32)}, r"'x' has shape \(20, 4\), the model wants \('N', 3\)"),
        ({"x": np.zeros(20, np.float32)}, "has shape"),
        ({"x": np.zeros((20, 3), np.uint8)}, "'x' is uint8, the model wants float32"),
        ({"x": np.zeros((19, 3), np.float32)}, "different numbers of samples"),
        ({"x": np.zeros((0, 3), np.float32), "labels": np.zeros(0)}, "no samples"),
        ({"x": np.where(np.arange(60) == 40, np.nan, 1).reshape(20, 3)}, "'x' holds nan in sample 13"),
        ({"labels": np.where(np.arange(20) == 7, np.inf, 1)}, "'labels' holds inf in sample 7"),
        ({"labels": np.array(["cat"] * 20)}, "wanted are numbers"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, change, message):
    content = {name: array for name, array in (arrays | change).items() if array is not None}
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / "data.npz"), [X])


@pytest.mark.parametrize("name", ["data.npz", "data.npy"])
@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04" + bytes(50), b"\x93NUMPY\x01\x00"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        open_source(str(tmp_path / name), [X])


def test_a_truncated_archive(tmp_path, arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    whole = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        open_source(str(tmp_path / "data.npz"), [X])


def test_python_objects_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.array([{}, {}], object))
    with pytest.raises(DataError, match="objects"):
        open_source(str(tmp_path / "data.npz"), [X])


@pytest.mark.parametrize("text", ["nowhere.npz", "nowhere", "data.csv"])
def test_data_that_is_not_there(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no such"):
        open_source(text, [X])


def test_an_npy_holds_one_input(tmp_path, arrays):
    np.save(tmp_path / "data.npy", arrays["x"])
    with pytest.raises(DataError, match=r"give an \.npz"):
        open_source(str(tmp_path / "data.npy"), [X, IDS])


@pytest.fixture
def pictures(tmp_path):
    """Red cats, blue dogs."""
    image = pytest.importorskip("PIL.Image")
    for name, color, count in (("dog", (0, 0, 255), 7), ("cat", (255, 0, 0), 5)):
        (tmp_path / name).mkdir()
        for number in range(count):
            image.new("RGB", (9, 8), color).save(tmp_path / name / f"{number}.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_images_by_class(pictures):
    source = open_source(str(pictures), [PICTURE])
    assert (source.samples, source.shapes, source.labels.high) == (12, {"picture": (3, 4, 6)}, 1)
    inputs, labels = everything(source, 5)
    assert inputs["picture"].dtype == np.float32
    assert sorted(labels) == [0] * 5 + [1] * 7
    for picture, label in zip(inputs["picture"], labels, strict=True):
        expected = np.zeros((3, 4, 6))
        expected[2 if label else 0] = 1  # classes are numbered by name: cat, dog
        np.testing.assert_array_equal(picture, expected)
    train, validation = source.split()
    assert (train.samples, validation.samples) == (11, 1)


def test_images_with_channels_last_and_gray(pictures):
    last = open_source(str(pictures), [InputSpec("picture", X.dtype, (None, 4, 6, 3))])
    assert next(last.batches(2)).inputs["picture"].shape == (2, 4, 6, 3)
    gray = open_source(str(pictures), [InputSpec("picture", X.dtype, (None, 1, 4, 6))])
    assert next(gray.batches(2)).inputs["picture"].shape == (2, 1, 4, 6)


def test_images_that_cannot_be_used(pictures, tmp_path):
    with pytest.raises(DataError, match="fixed height and width"):
        open_source(str(pictures), [InputSpec("picture", X.dtype, (None, 3, None, None))])
    with pytest.raises(DataError, match="4 dimensions"):
        open_source(str(pictures), [X])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="one folder of images a class"):
        open_source(str(tmp_path / "empty"), [PICTURE])
    (pictures / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        list(ImageSource.open(pictures, [PICTURE]).batches(12))


def test_images_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ToolchainError, match=r"lwc-compiler\[images\]"):
        open_source(str(tmp_path), [PICTURE])


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that data can be taken from."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body):
        name = f"stream_{abs(hash(body))}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n\n{body}\n", encoding="utf-8")
        return f"{name}:batches"

    return write


STREAM = """
def batches():
    for size in (3, 5, 1, 8, 3):
        yield {"x": np.full((size, 3), size, np.float32), "y": np.full(size, size)}
"""


def test_a_callable_is_cut_into_batches(module):
    source = open_source(module(STREAM), [X])
    assert isinstance(source, StreamSource)
    assert (source.samples, source.labels.low, source.labels.high) == (20, 1, 8)
    expected = np.repeat([3, 5, 1, 8, 3], [3, 5, 1, 8, 3])
    for size in (1, 4, 7, 20, 30):
        inputs, labels = everything(source, min(size, 20))
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(inputs["x"][:, 0], expected)


def test_a_callable_needs_validation_data(module):
    with pytest.raises(DataError, match="validation data of its own"):
        open_source(module(STREAM), [X]).split()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("batches = 3", "not callable"),
        ("other = 3", "no attribute 'batches'"),
        ("def batches():\n    return []", "no batches"),
        ("def batches():\n    raise KeyError('gone')", "the function raised KeyError: 'gone'"),
        ("def batches():\n    yield [1]", "expected a dict of arrays, found list"),
        ("def batches():\n    yield {'x': np.zeros((2, 4))}", r"batch 0: 'x' has shape \(2, 4\)"),
        ("def batches():\n    yield {'x': np.full((2, 3), np.nan)}", "holds nan in sample 0"),
        (
            "def batches():\n    yield {'x': np.zeros((2, 3))}\n    yield {'x': np.zeros((2, 3)), 'y': np.zeros(2)}",
            "some batches have labels",
        ),
    ],
)
def test_callables_that_do_not_work(module, body, message):
    with pytest.raises(DataError, match=message):
        open_source(module(body), [X])


def test_a_module_that_does_not_exist():
    with pytest.raises(DataError, match="No module named"):
        open_source("no_such_module_here:batches", [X])
