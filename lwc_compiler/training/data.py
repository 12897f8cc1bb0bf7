"""Training and validation data: `.npz`, `.npy`, a folder of images by class, or a Python callable.

`open_source(text, inputs)` takes one of

- `FILE.npz`: one array an input, named as the model's input (a model with one input also takes `x`), and, where the
  loss needs them, `labels`, `y` or `targets`. Dimension 0 counts the samples. Members stored uncompressed
  (`numpy.savez`) are memory-mapped.
- `FILE.npy`: the samples of a model with one input, without labels; memory-mapped.
- a folder with one folder of images a class (needs Pillow, extra `images`). Classes are numbered in the order of their
  sorted names. Images are resized to the model's input (bilinear), turned into its 1 or 3 channels, and scaled to 0..1;
  a model that wants another scale takes a callable.
- `module:function`: called without arguments once an epoch; yields dicts of arrays, named as in an `.npz`, until the
  epoch is over. Batches may have any size. `module` is imported from the working directory or the environment.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.errors import DataError, ToolchainError

LABEL_NAMES = ("labels", "y", "targets")
_ARRAYS = (".npz", ".npy")
CHUNK_BYTES = 64 << 20  # how much is looked at at once when a memory-mapped array is checked
ACCEPTED = "an .npz or .npy file, a folder of images by class, or module:function"


@dataclass(frozen=True)
class InputSpec:
    """What the model wants: `shape` with the batch first, None where a dimension is open."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Batch:
    """Some samples: input name -> array with the samples first, and their labels."""

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[Any] | None

    @property
    def samples(self) -> int:
        """How many samples."""
        return len(next(iter(self.inputs.values())))

    def part(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop`."""
        labels = None if self.labels is None else self.labels[start:stop]
        return Batch({name: array[start:stop] for name, array in self.inputs.items()}, labels)


@dataclass(frozen=True)
class LabelSpec:
    """What the labels are: `kind` is `int` or `float`, `shape` that of one sample's, `low`..`high` the values."""

    kind: str
    shape: tuple[int, ...]
    low: float
    high: float

    def join(self, other: LabelSpec) -> LabelSpec:
        """Of both together."""
        return replace(self, low=min(self.low, other.low), high=max(self.high, other.high))


class Source(Protocol):
    """Data that was checked against the model's inputs."""

    @property
    def samples(self) -> int:
        """How many."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Input name -> shape of one sample."""

    @property
    def labels(self) -> LabelSpec | None:
        """What the labels are; None: there are none."""

    def batches(self, size: int, order: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """Batches of `size` samples, the last one may be smaller; in `order` (sample indices) where a source can."""

    def split(self) -> tuple[Source, Source]:
        """All but the last tenth, and the last tenth."""


def open_source(text: str, inputs: list[InputSpec]) -> Source:
    """Opens and checks data.

    Raises:
        DataError: it does not exist, cannot be read, does not fit `inputs`, or holds NaN or Inf.
        ToolchainError: images without Pillow.
    """
    path = Path(text)
    if path.is_dir():
        return ImageSource.open(path, inputs)
    if path.suffix in _ARRAYS:
        if not path.is_file():
            raise DataError(f"data {text}: there is no such file")
        return ArraySource(text, read_arrays(path, inputs), inputs)
    if is_function(text):
        return StreamSource(text, load_function(text), inputs)
    raise DataError(f"data {text}: there is no such folder, and it is not {ACCEPTED}")


def is_function(text: str) -> bool:
    """Whether `open_source` reads `text` as `module:function`, and runs it."""
    path = Path(text)
    return ":" in text and path.suffix not in _ARRAYS and not path.is_dir()


# -- arrays -----------------------------------------------------------------------------------------------------------


def read_arrays(path: Path, inputs: list[InputSpec]) -> dict[str, NDArray[Any]]:
    """The arrays of a file, memory-mapped where they are stored as they are.

    Raises:
        DataError: the file cannot be read, or has one array for several inputs.
    """
    try:
        if path.suffix == ".npz":
            return read_npz(path)
        if len(inputs) != 1:
            names = ", ".join(f"'{spec.name}'" for spec in inputs)
            raise DataError(f"data {path}: the model has inputs {names}; give an .npz with one array each")
        return {inputs[0].name: np.lib.format.open_memmap(path, mode="r")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"data {path} cannot be read: {error}") from None


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Member name -> array; members stored uncompressed are memory-mapped, which `numpy.load` does not do.

    Raises:
        DataError: an array holds Python objects.
        OSError, ValueError, EOFError, BadZipFile: the file cannot be read.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if info.compress_type != zipfile.ZIP_STORED:
                with archive.open(info) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                continue
            raw.seek(info.header_offset)
            header = raw.read(30)  # local file header: lengths of name and extra field are its last two numbers
            raw.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
            version = np.lib.format.read_magic(raw)
            formats = np.lib.format
            read_header = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
            shape, fortran, dtype = read_header(raw)
            if dtype.hasobject:
                raise DataError(f"data {path}: array '{name}' holds Python objects, not numbers")
            if 0 in shape or shape == ():
                with archive.open(info) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                continue
            order: Any = "F" if fortran else "C"
            arrays[name] = np.memmap(path, dtype, "r", raw.tell(), shape, order)
    return arrays


class ArraySource:
    """Arrays in memory or memory-mapped."""

    def __init__(self, where: str, arrays: dict[str, NDArray[Any]], inputs: list[InputSpec]) -> None:
        self._inputs = inputs
        self._batch = name_arrays(where, arrays, inputs)
        check_batch(where, self._batch, inputs)
        self._describe()
        self.labels = None if self._batch.labels is None else describe_labels(self._batch.labels)

    def _describe(self) -> None:
        self.samples = self._batch.samples
        self.shapes = {name: array.shape[1:] for name, array in self._batch.inputs.items()}

    def batches(self, size: int, order: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        for start in range(0, self.samples, size):
            stop = min(start + size, self.samples)
            chosen: Any = slice(start, stop) if order is None else order[start:stop]
            labels = None if self._batch.labels is None else np.asarray(self._batch.labels[chosen])
            inputs = {
                spec.name: np.ascontiguousarray(self._batch.inputs[spec.name][chosen], spec.dtype)
                for spec in self._inputs
            }
            yield Batch(inputs, labels)

    def split(self) -> tuple[Source, Source]:
        cut = split_at(self.samples)
        return self._part(0, cut), self._part(cut, self.samples)

    def _part(self, start: int, stop: int) -> ArraySource:
        part = object.__new__(ArraySource)
        part._inputs, part._batch, part.labels = self._inputs, self._batch.part(start, stop), self.labels
        part._describe()
        return part


def split_at(samples: int) -> int:
    """Where the last tenth begins.

    Raises:
        DataError: fewer than two samples.
    """
    if samples < 2:
        raise DataError("the training data holds one sample; give at least two, or validation data of its own")
    return samples - max(1, samples // 10)


# -- images -----------------------------------------------------------------------------------------------------------

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageSource:
    """A folder of images, one folder a class. The order of the files is shuffled once, the same way every time."""

    files: tuple[tuple[Path, int], ...]
    spec: InputSpec
    labels: LabelSpec | None

    @staticmethod
    def open(folder: Path, inputs: list[InputSpec]) -> ImageSource:
        """Lists the images and looks at the model's input; decoding waits until a batch wants them.

        Raises:
            ToolchainError: Pillow is missing.
            DataError: the model has no input for images, or the folder has none.
        """
        try:
            import PIL  # noqa: F401
        except ImportError:
            raise ToolchainError("reading images needs Pillow: pip install 'lwc-compiler[images]'") from None
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype != np.float32:
            raise DataError(f"data {folder}: images need a model with one float32 input of 4 dimensions; use an .npz")
        spec = inputs[0]
        shape = spec.shape[1:]
        if None in shape or not {shape[0], shape[2]} & {1, 3}:
            raise DataError(
                f"data {folder}: input '{spec.name}' has shape {spec.shape}; images need fixed height and width and "
                "1 or 3 channels: give the shape (--shape), or use an .npz"
            )
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        files = [
            (file, label)
            for label, name in enumerate(classes)
            for file in sorted((folder / name).iterdir())
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not files:
            raise DataError(f"data {folder}: no images; expected one folder of images a class")
        shuffled = [files[index] for index in np.random.default_rng(0).permutation(len(files))]
        return ImageSource(tuple(shuffled), spec, LabelSpec("int", (), 0, len(classes) - 1))

    @property
    def samples(self) -> int:
        return len(self.files)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.spec.name: tuple(int(dim or 0) for dim in self.spec.shape[1:])}

    def batches(self, size: int, order: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        chosen = range(self.samples) if order is None else order
        for start in range(0, self.samples, size):
            part = [self.files[index] for index in chosen[start : start + size]]
            images = np.stack([read_image(file, self.shapes[self.spec.name]) for file, _ in part])
            yield Batch({self.spec.name: images}, np.array([label for _, label in part], np.int64))

    def split(self) -> tuple[Source, Source]:
        cut = split_at(self.samples)
        return replace(self, files=self.files[:cut]), replace(self, files=self.files[cut:])


def read_image(file: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """One image as float32 in 0..1, channels first or last as `shape` says.

    Raises:
        DataError: the file is no image that Pillow reads.
    """
    from PIL import Image

    first = shape[0] in (1, 3)
    channels, height, width = shape if first else (shape[2], shape[0], shape[1])
    try:
        with Image.open(file) as image:
            resized = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    except OSError as error:
        raise DataError(f"image {file} cannot be read: {error}") from None
    pixels = (np.asarray(resized, np.float32) / 255).reshape(height, width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if first else pixels)


# -- callables --------------------------------------------------------------------------------------------------------


def load_function(text: str) -> Callable[..., Any]:
    """The callable `module:function` names.

    Raises:
        DataError: there is none.
    """
    module, _, name = text.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(f"data {text}: {error}; it is read as module:function, other data is {ACCEPTED}") from None
    if not callable(function):
        raise DataError(f"data {text}: '{name}' is not callable")
    checked: Callable[..., Any] = function
    return checked


class StreamSource:
    """A callable that yields batches; one epoch is drawn up front to check and count it."""

    def __init__(self, where: str, function: Callable[[], Iterable[dict[str, Any]]], inputs: list[InputSpec]) -> None:
        self._where, self._function, self._inputs = where, function, inputs
        self.samples, self.shapes, self.labels = 0, {}, None
        for batch in self._draw():
            shapes = {name: array.shape[1:] for name, array in batch.inputs.items()}
            labels = None if batch.labels is None else describe_labels(batch.labels)
            if self.samples == 0:
                self.shapes, self.labels = shapes, labels
            elif shapes != self.shapes:
                raise DataError(f"data {where}: samples change their shape from {self.shapes} to {shapes}")
            elif labels is not None and self.labels is not None:
                self.labels = self.labels.join(labels)
            elif labels is not self.labels:
                raise DataError(f"data {where}: some batches have labels, others have none")
            self.samples += batch.samples
        if self.samples == 0:
            raise DataError(f"data {where}: the function yielded no batches")

    def _call(self) -> Iterator[Any]:
        try:
            yield from self._function()
        except Exception as error:  # whatever the user's code raises
            raise DataError(f"data {self._where}: the function raised {type(error).__name__}: {error}") from error

    def _draw(self) -> Iterator[Batch]:
        for number, arrays in enumerate(self._call()):
            where = f"{self._where}, batch {number}"
            if not isinstance(arrays, dict):
                raise DataError(f"data {where}: expected a dict of arrays, found {type(arrays).__name__}")
            batch = name_arrays(where, {name: np.asarray(array) for name, array in arrays.items()}, self._inputs)
            check_batch(where, batch, self._inputs)
            inputs = {s.name: np.ascontiguousarray(batch.inputs[s.name], s.dtype) for s in self._inputs}
            yield Batch(inputs, batch.labels)

    def batches(self, size: int, order: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """As yielded, cut to `size`; the function decides on the order."""
        left: list[Batch] = []
        for drawn in self._draw():
            left.append(drawn)
            if sum(batch.samples for batch in left) < size:
                continue
            whole = join(left)
            for start in range(0, whole.samples - size + 1, size):
                yield whole.part(start, start + size)
            rest = whole.samples % size
            left = [whole.part(whole.samples - rest, whole.samples)] if rest else []
        if left:
            yield join(left)

    def split(self) -> tuple[Source, Source]:
        raise DataError(f"data {self._where}: a callable needs validation data of its own")


def join(batches: list[Batch]) -> Batch:
    """One batch out of several."""
    labels = [batch.labels for batch in batches if batch.labels is not None]
    inputs = {name: np.concatenate([b.inputs[name] for b in batches]) for name in batches[0].inputs}
    return Batch(inputs, np.concatenate(labels) if labels else None)


# -- checks -----------------------------------------------------------------------------------------------------------


def name_arrays(where: str, arrays: dict[str, NDArray[Any]], inputs: list[InputSpec]) -> Batch:
    """Sorts arrays into inputs and labels by their names.

    Raises:
        DataError: an input has no array, or an array is neither an input nor the labels.
    """
    arrays = dict(arrays)
    if len(inputs) == 1 and inputs[0].name not in arrays and "x" in arrays:
        arrays[inputs[0].name] = arrays.pop("x")
    wanted = {spec.name for spec in inputs}
    missing = sorted(wanted - set(arrays))
    if missing:
        found = ", ".join(f"'{name}'" for name in arrays) or "nothing"
        raise DataError(f"data {where}: no array for the model's input '{missing[0]}'; found {found}")
    labels = [name for name in LABEL_NAMES if name in arrays and name not in wanted]
    extra = sorted(set(arrays) - wanted - set(labels))
    if extra or len(labels) > 1:
        odd = extra[0] if extra else labels[1]
        raise DataError(
            f"data {where}: array '{odd}' is not an input of the model ({', '.join(sorted(wanted))}); "
            f"labels are one array named {', '.join(LABEL_NAMES)}"
        )
    return Batch({name: arrays[name] for name in sorted(wanted)}, arrays[labels[0]] if labels else None)


def check_batch(where: str, batch: Batch, inputs: list[InputSpec]) -> None:
    """Shapes, dtypes, counts, NaN and Inf.

    Raises:
        DataError: one of them does not fit the inputs, or there are no samples.
    """
    counts = {}
    for spec in inputs:
        array = batch.inputs[spec.name]
        fits = len(array.shape) == len(spec.shape) > 0 and all(
            dim in (None, found) for dim, found in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if not fits:
            wanted = ("N", *("?" if dim is None else dim for dim in spec.shape[1:]))
            raise DataError(f"data {where}: '{spec.name}' has shape {array.shape}, the model wants {wanted}")
        if not kinds_fit(array.dtype, spec.dtype):
            raise DataError(
                f"data {where}: '{spec.name}' is {array.dtype}, the model wants {spec.dtype}: convert it "
                "(and scale it as the model expects) first"
            )
        counts[spec.name] = len(array)
        check_finite(where, spec.name, array)
    if batch.labels is not None:
        if batch.labels.dtype.kind not in "biuf" or batch.labels.ndim == 0:
            found = f"{batch.labels.dtype} of shape {batch.labels.shape}"
            raise DataError(f"data {where}: the labels are {found}; wanted are numbers, one entry a sample")
        counts["labels"] = len(batch.labels)
        check_finite(where, "labels", batch.labels)
    if len(set(counts.values())) != 1:
        raise DataError(f"data {where}: the arrays hold different numbers of samples: {counts}")
    if 0 in counts.values():
        raise DataError(f"data {where}: there are no samples")


def kinds_fit(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Floats stand for floats of another width, integers for integers; nothing else is converted."""
    groups = {"f": "f", "i": "iu", "u": "iu", "b": "b"}
    return found.kind in groups.get(wanted.kind, wanted.kind)


def check_finite(where: str, name: str, array: NDArray[Any]) -> None:
    """Refuses NaN and Inf, reading a memory-mapped array piece by piece.

    Raises:
        DataError: there is one; the message says in which sample.
    """
    if array.dtype.kind != "f":
        return
    rows = max(1, CHUNK_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        finite = np.isfinite(array[start : start + rows])
        if not finite.all():
            first = tuple(int(i) for i in np.argwhere(~finite)[0])
            value = array[start : start + rows][first]
            raise DataError(f"data {where}: '{name}' holds {value} in sample {start + first[0]}; remove or replace it")


def describe_labels(labels: NDArray[Any]) -> LabelSpec:
    """What `labels` are; one label a sample may have shape (N,) or (N, 1)."""
    kind = "float" if labels.dtype.kind == "f" else "int"
    return LabelSpec(kind, labels.shape[1:], float(labels.min()), float(labels.max()))
