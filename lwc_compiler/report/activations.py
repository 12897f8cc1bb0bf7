"""Measures how many activations of each layer are zero, by running the model in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from lwc_compiler.codegen.result import TensorSpec
from lwc_compiler.errors import DataError
from lwc_compiler.model import Model, infer_shapes
from lwc_compiler.passes.sites import find_sites
from lwc_compiler.report.table import Activations, handed_on_tensors, static_shapes
from lwc_compiler.runtime.reference import random_inputs, reference_session

Feed = Mapping[str, NDArray[Any]]

_SAMPLES = 128  # of a data set, that activation densities are measured on


def measure_activations(
    model: Model, feeds: Iterable[Feed] = (), *, source: str = "given data", threads: int = 1
) -> Activations:
    """Counts the zeros among the inputs and the activations of every site's nodes.

    Args:
        model: any opset.
        feeds: input name -> array, one mapping a run; empty: one run with random inputs, and the result says so.
        source: what `feeds` are, for the reader of the report.
        threads: threads of ONNX Runtime.

    Raises:
        DataError: the feeds do not fit the model, or there are none and the model's input shapes are open.
        UnsupportedError: ONNX Runtime does not take the model.
    """
    sites = find_sites(model.proto)
    wanted = {name for site in sites for name in site.inputs} | set(handed_on_tensors(model.proto, sites).values())
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    known = {value.name for value in proto.graph.output}
    inner = [value for value in infer_shapes(proto).graph.value_info if value.name in wanted - known]
    for value in inner:
        # The type is enough: shapes that ONNX infers for open dimensions can be wrong about what is fed.
        tensor_type = value.type.tensor_type.elem_type
        proto.graph.output.append(helper.make_tensor_value_info(value.name, tensor_type, None))
    names = [value.name for value in proto.graph.output if value.name in wanted]
    feeds = list(feeds)
    if not feeds:
        feeds, source = [_random_feed(model.proto)], "random inputs, not data: densities on real inputs differ"
    session = reference_session(proto, threads)
    counts = dict.fromkeys(wanted, (0, 0))
    for feed in feeds:
        try:
            outputs = session.run(names, dict(feed)) if names else []
        except Exception as error:  # ONNX Runtime's own exception classes share no other base
            raise DataError(f"the inputs do not fit model '{model.name}': {error}") from error
        for name, array in [*zip(names, outputs, strict=True), *feed.items()]:
            if name in wanted:
                kept, total = counts[name]
                counts[name] = (kept + int(np.count_nonzero(array)), total + array.size)
    return Activations(source, {name: count for name, count in counts.items() if count[1]})


def activations_on(model: Model, data: str) -> Activations:
    """`measure_activations` on the first samples of a data set.

    Args:
        model: any opset.
        data: where samples come from, see `lwc_compiler.retrain`.

    Raises:
        DataError: the data cannot be read or do not fit the model.
        UnsupportedError: ONNX Runtime does not take the model.
    """
    return measure_activations(model, sample_feeds(model, data), source=f"samples of {data}")


def sample_feeds(model: Model, data: str) -> list[Feed]:
    """The first samples of a data set, as the inputs of runs.

    Raises:
        DataError: the data cannot be read or do not fit the model.
    """
    from lwc_compiler.training.batching import fixed_batch, input_specs
    from lwc_compiler.training.data import open_source

    specs = input_specs(model.proto)
    fixed = fixed_batch(specs)
    size = fixed or _SAMPLES
    batches = islice(open_source(data, specs).batches(size), max(1, _SAMPLES // size))
    return [batch.inputs for batch in batches if fixed in (None, batch.samples)]


def _random_feed(proto: onnx.ModelProto) -> Feed:
    shapes = static_shapes(proto)
    specs = []
    for value in proto.graph.input:
        if value.name not in shapes:
            raise DataError(
                f"input '{value.name}' has open dimensions, so random inputs cannot be made: give its shape, or data"
            )
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        specs.append(TensorSpec(value.name, dtype, shapes[value.name]))
    return random_inputs(proto, tuple(specs), seed=0)
