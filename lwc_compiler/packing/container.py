"""The packed file: the graph without its large tensors, then each of these in its own encoding, and a checksum.

docs/packing.md describes every byte. What is read back is the model to the bit; where the options allow other weights,
it is the model with these weights.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from lwc_compiler.errors import ArtifactError
from lwc_compiler.model import Model, name_of
from lwc_compiler.packing.deflate import deflate, deflate_below, inflate
from lwc_compiler.packing.reader import Reader, damaged, varint
from lwc_compiler.packing.rounding import round_weights
from lwc_compiler.packing.sizes import PackedSizes, TensorSize
from lwc_compiler.packing.skeleton import announced, fill, put_back, take_apart, tensors_of, with_notes
from lwc_compiler.packing.tensor_codec import decode_tensor, encode_tensor
from lwc_compiler.recipe.options import PackOptions

MAGIC = b"LWCP"
VERSION = 1

_HEADER = len(MAGIC) + 1
_CHECKSUM = 4
_FRAME = _HEADER + _CHECKSUM
_PROTOBUF_LIMIT = 2**31 - 1
_SHARED = 1 << 16  # DEFLATE looks 32 KiB back: a tensor after others cannot gain more than it takes for its beginning

# A file may unpack to so many times its size, or to so many bytes if that is more: a small hostile file cannot fill the
# memory. A graph is allowed less, since protobuf messages take up to a hundred times their bytes in memory.
_GRAPH_LIMITS = (16, 1 << 20)
_TENSOR_LIMITS = (256, 1 << 26)


def pack(model: Model, options: PackOptions | None = None) -> bytes:
    """The packed file of a model, a function of the arguments; no larger than `gzip -9` of the saved model.

    Raises:
        ArtifactError: without its large tensors the model is still beyond the 2 GiB of a protobuf message.
    """
    options = options or PackOptions()
    model = round_weights(model, options)
    skeleton, payloads = take_apart(model)
    if skeleton.ByteSize() > _PROTOBUF_LIMIT:
        raise ArtifactError(f"model '{model.name}' cannot be packed: its graph without large weights is beyond 2 GiB")
    graph = skeleton.SerializeToString(deterministic=True)
    records, last, least_deflated = bytearray(), -1, 0
    for place, (field, elements) in payloads.items():
        record, deflated = encode_tensor(elements, options.huffman)
        records += varint(place - last) + bytes([field]) + record
        last = place
        least_deflated += max(0, deflated - _SHARED)
    unpacked = sum(elements.nbytes for _, elements in payloads.values())
    least = max(_least(len(graph), *_GRAPH_LIMITS), _least(unpacked, *_TENSOR_LIMITS))
    packed = _sealed(deflate(graph) + records, least)
    if least_deflated < len(packed) and len(graph) + unpacked < _PROTOBUF_LIMIT:
        # Small tensors may do better together, in the graph.
        put_back(skeleton, payloads)
        whole = skeleton.SerializeToString(deterministic=True)
        deflated_whole, _ = deflate_below(whole, len(packed) - _FRAME)
        if deflated_whole is not None:
            packed = min(packed, _sealed(deflated_whole, _least(len(whole), *_GRAPH_LIMITS)), key=len)
    return packed


def save_packed(packed: bytes, path: str | Path) -> None:
    """Writes what `pack` returned, through a temporary file and a rename.

    Raises:
        ArtifactError: the file cannot be written.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        new.write_bytes(packed)
        new.replace(path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def unpack(source: str | Path | bytes) -> Model:
    """The model in a packed file, or in the bytes of one; a file gives the model its name.

    Raises:
        ArtifactError: the file is missing, is no packed model, is damaged, or unpacks to more than a file of its size
            may; a newer lwc made it.
    """
    with _naming(source):
        proto, _ = _read(_bytes_of(source))
        name = "model" if isinstance(source, bytes) else name_of(Path(source))
        return with_notes(proto, name.strip("._-") or "model")


def sizes_of(source: str | Path | bytes) -> PackedSizes:
    """What takes how many bytes in a packed file, or in the bytes of one.

    Raises:
        ArtifactError: as `unpack`.
    """
    with _naming(source):
        return _read(_bytes_of(source))[1]


def _sealed(body: bytes | bytearray, least: int) -> bytes:
    """A whole file of at least `least` bytes."""
    content = MAGIC + bytes([VERSION]) + body
    content += bytes(max(0, least - len(content) - _CHECKSUM))
    return content + zlib.crc32(content).to_bytes(_CHECKSUM, "little")


def _least(unpacked: int, ratio: int, free: int) -> int:
    """The size from which on a file may unpack to `unpacked` bytes."""
    return -(-unpacked // ratio) if unpacked > free else 0


def _most(size: int, ratio: int, free: int) -> int:
    """What a file of `size` bytes may unpack to."""
    return max(size * ratio, free)


@contextlib.contextmanager
def _naming(source: str | Path | bytes) -> Iterator[None]:
    """Errors say which file they are about."""
    try:
        yield
    except ArtifactError as error:
        raise error if isinstance(source, bytes) else ArtifactError(f"{source}: {error}") from None


def _bytes_of(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise ArtifactError(f"the packed model cannot be read: {error.strerror or error}") from error


def _read(packed: bytes) -> tuple[ModelProto, PackedSizes]:
    _check_frame(packed)
    graph, records = inflate(memoryview(packed)[_HEADER:-_CHECKSUM], _most(len(packed), *_GRAPH_LIMITS))
    proto = _parsed(graph)
    tensors = list(tensors_of(proto.graph))
    reader, place, left = Reader(records), -1, _most(len(packed), *_TENSOR_LIMITS)
    sizes = []
    while reader.left:
        start = reader.position
        step = reader.varint()
        if step == 0:  # padding
            if any(reader.take(reader.left)):
                raise damaged("something follows the last tensor")
            break
        place += step
        if place >= len(tensors):
            raise damaged(f"it holds elements for tensor {place} of {len(tensors)}")
        name, tensor = tensors[place]
        field = reader.byte()
        count, width = announced(tensor, name, field)
        left -= count * width
        if left < 0:
            raise damaged(f"tensor '{name}' of shape {list(tensor.dims)} is larger than a file of this size may hold")
        elements, coding = decode_tensor(reader, count, width)
        fill(tensor, field, elements)
        sizes.append(
            TensorSize(
                name=name,
                shape=tuple(tensor.dims),
                elements=count,
                nonzero=int(np.count_nonzero(elements)),
                coding=coding,
                bytes=reader.position - start,
                dense_bytes=elements.nbytes,
            )
        )
    stored = sum(size.bytes for size in sizes)
    dense = len(graph) + sum(size.dense_bytes for size in sizes)
    return proto, PackedSizes(tuple(sizes), len(packed) - stored, len(packed), dense)


def _check_frame(packed: bytes) -> None:
    if packed[: len(MAGIC)] != MAGIC:
        raise ArtifactError("this is not a packed model: it does not begin as `lwc pack` begins a file")
    if len(packed) < _FRAME:
        raise damaged("it ends in the header")
    version = packed[_HEADER - 1]
    if version > VERSION:
        raise ArtifactError(
            f"a newer lwc packed the model, in format {version}; this lwc reads formats up to {VERSION}: upgrade lwc"
        )
    if version == 0 or zlib.crc32(packed[:-_CHECKSUM]) != int.from_bytes(packed[-_CHECKSUM:], "little"):
        raise damaged("its checksum does not fit")


def _parsed(graph: bytes) -> ModelProto:
    try:
        proto: ModelProto = ModelProto.FromString(graph)
        external = any(tensor.data_location == TensorProto.EXTERNAL for _, tensor in tensors_of(proto.graph))
    except Exception as error:  # protobuf fails in many ways
        raise damaged(f"the graph cannot be read ({type(error).__name__})") from None
    if not proto.graph.output:
        raise damaged("there is no graph with outputs")
    if external:
        raise damaged("a tensor is said to be in another file")
    return proto
