"""lwc as a backend in the sense of `onnx.backend.base`, for scripts that take one.

    import lwc_compiler.backend as backend

    prepared = backend.prepare(onnx.load("model.onnx"))
    (y,) = prepared.run([x])

The zeros that the model has are used, and nothing is pruned. Unlike `lwc_compiler.compile` it writes nothing, and does
not compare the code with ONNX Runtime.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.backend.base
import onnx.checker
import onnx.shape_inference
from onnx import helper

from lwc_compiler.errors import DataError, LwcError, ModelError, OptionError
from lwc_compiler.model import Model, load_model, model_of
from lwc_compiler.passes.lower import lower
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.recipe.options import LowerOptions
from lwc_compiler.runtime.load import open_lowered
from lwc_compiler.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LwcBackend", "PreparedModel", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]

_Array = Any  # NDArray of any dtype, or what NumPy makes one of


class PreparedModel(onnx.backend.base.BackendRep):
    """A model to run. One with open dimensions is compiled when inputs of new shapes arrive, and kept for these.

    `run` may be called from several threads.
    """

    def __init__(self, model: Model, options: LowerOptions) -> None:
        graph = model.proto.graph
        self._model, self._options = model, options
        self._inputs = {value.name: value for value in graph.input}
        self._dtypes = {value.name: _dtype(value) for value in (*graph.input, *graph.output)}
        self._outputs = [value.name for value in graph.output]
        self._open = [name for name, value in self._inputs.items() if not _is_static(value)]
        self._result = onnx.backend.base.namedtupledict("Outputs", self._outputs)
        self._sessions: dict[tuple[tuple[int, ...], ...], Session] = {}
        self._lock = threading.Lock()
        if not self._open:
            self._session({})

    def run(self, inputs: Sequence[_Array] | Mapping[str, _Array] | _Array, **_: Any) -> tuple[NDArray[Any], ...]:
        """Computes the outputs.

        Args:
            inputs: arrays in the order of the graph's inputs, or by name; a single array where there is one input.

        Returns:
            Arrays in the order of the graph's outputs and with the model's dtypes; a name as index works too.

        Raises:
            DataError: inputs are missing, too many, or of another dtype or shape than the model's.
            LwcError: see `lwc_compiler.lower`, for a model with open dimensions.
        """
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        else:
            values = list(inputs) if isinstance(inputs, Sequence) else [inputs]
            if len(values) != len(self._inputs):
                raise DataError(
                    f"there are {len(values)} inputs; the model takes {len(self._inputs)}: {[*self._inputs]}"
                )
            given = dict(zip(self._inputs, values, strict=True))
        session = self._session(given)
        for spec in session.inputs:
            # Networks in float16 and bfloat16 are lowered to float32, inputs and outputs included.
            if spec.dtype != self._dtypes[spec.name] and spec.name in given:
                given[spec.name] = _converted(spec.name, given[spec.name], self._dtypes[spec.name], spec.dtype)
        outputs = session.run(given)
        return self._result(*(outputs[name].astype(self._dtypes[name], copy=False) for name in self._outputs))

    def _session(self, given: Mapping[str, _Array]) -> Session:
        """The network for the shapes of the inputs."""
        missing = [name for name in self._open if name not in given]
        if missing:
            raise DataError(f"input '{missing[0]}' is missing; the model's inputs are {[*self._inputs]}")
        shapes = {name: tuple(np.shape(given[name])) for name in self._open}
        key = tuple(shapes.values())
        with self._lock:
            if key not in self._sessions:
                options = self._options.model_copy(update={"shapes": {**self._options.shapes, **shapes}})
                self._sessions[key] = open_lowered(lower(self._model, options), options.threads)
            return self._sessions[key]


class LwcBackend(onnx.backend.base.Backend):
    """Compiles for this machine. The functions of the module are those of this class."""

    @classmethod
    def prepare(
        cls,
        model: onnx.ModelProto | str | Path,
        device: str = "CPU",
        *,
        options: LowerOptions | None = None,
        **_: Any,
    ) -> PreparedModel:
        """Compiles a model for repeated runs.

        Args:
            model: the model, or its file.
            device: `CPU`.
            options: threads, shapes and so on; None: the defaults, one thread.

        Raises:
            OptionError: the device is another, or the target of `options` is not `host`.
            LwcError: see `lwc_compiler.lower`.
        """
        options = LowerOptions() if options is None else options
        if not cls.supports_device(device):
            raise OptionError(f"the device is {device!r}: this backend runs on 'CPU'")
        if options.target != "host":
            raise OptionError(f"the target is {options.target}: this backend compiles for 'host'")
        return PreparedModel(_read(model), options)

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto | str | Path, device: str = "CPU", **_: Any) -> bool:
        """Whether every operator can be lowered, as far as it shows before compiling and without shapes."""
        from lwc_compiler.codegen.frontend import check_supported

        try:
            check_supported(normalize(_read(model), fold_batch_norm=False).proto)
        except LwcError:
            return False
        return cls.supports_device(device)

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto | str | Path, inputs: Any, device: str = "CPU", **options: Any
    ) -> tuple[NDArray[Any], ...]:
        """`prepare(model, device, ...).run(inputs)`."""
        return cls.prepare(model, device, **options).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Sequence[_Array],
        device: str = "CPU",
        outputs_info: Any = None,
        **options: Any,
    ) -> tuple[NDArray[Any], ...]:
        """Compiles and runs a single node.

        Args:
            node: of the newest version of its operator, or of that of the option `opset_version`.
            inputs: arrays for the node's inputs, without those left out.
            device: `CPU`.
            outputs_info: of no use: the outputs' types follow from the node.
            **options: `opset_version`, and those of `prepare`.

        Raises:
            ModelError: the node is not valid.
            LwcError: see `prepare`.
        """
        try:
            super().run_node(node, inputs, device, outputs_info, **options)
        except onnx.checker.ValidationError as error:
            raise ModelError(f"the node {node.op_type} is not valid: {error}") from error
        version = options.pop("opset_version", onnx.defs.onnx_opset_version())
        names = [name for name in node.input if name]
        values = [np.asarray(value) for value in inputs]
        if len(values) != len(names):
            raise DataError(f"there are {len(values)} inputs; the node takes {len(names)}: {names}")
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in zip(names, values, strict=True)
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "node", infos, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, version)])
        try:
            model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        except onnx.shape_inference.InferenceError as error:
            raise ModelError(f"the node {node.op_type} is not valid: {error}") from error
        return cls.prepare(model, device, **options).run(values)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models can be prepared for `device`, e.g. `CPU` or `CUDA:1`."""
        return device.partition(":")[0] == "CPU"


def _read(model: onnx.ModelProto | str | Path) -> Model:
    return model_of(model) if isinstance(model, onnx.ModelProto) else load_model(model)


def _dtype(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _is_static(value: onnx.ValueInfoProto) -> bool:
    return all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)


def _converted(name: str, value: _Array, own: np.dtype[Any], dtype: str) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype != own:
        raise DataError(f"input '{name}' is {array.dtype}; the model takes {own}")
    return array.astype(dtype)


is_compatible = LwcBackend.is_compatible
prepare = LwcBackend.prepare
run_model = LwcBackend.run_model
run_node = LwcBackend.run_node
supports_device = LwcBackend.supports_device
