"""ONNX Runtime as the reference: what the generated code is checked against and timed against."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from lwc_compiler.errors import UnsupportedError
from lwc_compiler.model import working_copy, write_proto

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from lwc_compiler.codegen.result import TensorSpec

_FATAL_ONLY = 4


def reference_session(proto: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session for a model of any size and opset, on `threads` threads, with all its optimizations.

    Raises:
        UnsupportedError: ONNX Runtime does not take the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    with tempfile.TemporaryDirectory(prefix="lwc-") as folder:
        path = Path(folder) / "model.onnx"
        write_proto(working_copy(proto), path)
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exception classes share no other base
            raise UnsupportedError(f"ONNX Runtime {onnxruntime.__version__} cannot run the model: {error}") from error


def random_inputs(proto: onnx.ModelProto, specs: tuple[TensorSpec, ...], seed: int) -> dict[str, NDArray[np.generic]]:
    """Inputs that exercise the model: standard normal floats, and integers that are valid as what they are used for.

    Integers that select rows of a constant table (Gather) run over the whole table; other signed integers are 0 or 1,
    which is valid as a mask, a token type and an index into anything with two entries; `uint8` takes all its values,
    as pixels do.
    """
    generator = np.random.default_rng(seed)
    tables = _table_sizes(proto)
    inputs: dict[str, NDArray[np.generic]] = {}
    for spec in specs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            inputs[spec.name] = generator.standard_normal(spec.shape).astype(dtype)
        else:
            limit = tables.get(spec.name, 256 if dtype == np.uint8 else 2)
            inputs[spec.name] = generator.integers(0, limit, spec.shape).astype(dtype)
    return inputs


def _table_sizes(proto: onnx.ModelProto) -> dict[str, int]:
    """Graph input -> entries of the smallest constant table it selects from, directly or through a Cast."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    aliases = {value.name: value.name for value in proto.graph.input}
    sizes: dict[str, int] = {}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            weights[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Cast" and node.input[0] in aliases:
            aliases[node.output[0]] = aliases[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in weights and node.input[1] in aliases:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            name = aliases[node.input[1]]
            size = weights[node.input[0]].dims[axis]
            sizes[name] = min(size, sizes.get(name, size))
    return sizes
