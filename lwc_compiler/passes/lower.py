"""Lowering: a pruned model to a shared library with a plain C ABI (design: docs/design.md).

The linear layers get kernels of ours, in the format that fits their zeros; everything else goes through Relax with our
schedules; every buffer has its place in one workspace. The library needs no Python, TVM or ONNX Runtime.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from lwc_compiler.codegen.program import Program
from lwc_compiler.codegen.result import LayerDecision, Lowered, ProgramInfo, TensorSpec
from lwc_compiler.errors import OptionError, UnsupportedError
from lwc_compiler.passes.fit import check_estimate, check_lowered
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.passes.sites import node_label
from lwc_compiler.targets import HOST, all_targets, find_target, missing_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx

    from lwc_compiler.codegen.batch import Part
    from lwc_compiler.codegen.link import Compiler
    from lwc_compiler.codegen.program import Stage
    from lwc_compiler.model import Model
    from lwc_compiler.recipe.options import LowerOptions
    from lwc_compiler.targets.target import Target

_TUNE = 6
_AMPERE = 80  # the first compute capability, times ten, that multiplies tf32 and bfloat16
_MOST_ELEMENTS = 2**31 - 1  # indices on a GPU have 32 bits


def lower(model: Model, options: LowerOptions) -> Lowered:
    """Lowers `model` for a target.

    Args:
        model: masks need not be set: the zeros in the weights count.
        options: target, batch, shapes, threads.

    Raises:
        UnsupportedError: an operator, a type or a dimension that cannot be lowered; found before any long work.
        TargetError: the target is unknown, or the model does not fit its memory.
        ToolchainError: there is no C compiler, or it failed.
    """
    find_target(options.target)
    return lower_static(
        normalize(model, shapes=dict(options.shapes), batch=options.batch, fold_batch_norm=True), options
    )


def lower_static(model: Model, options: LowerOptions) -> Lowered:
    """`lower` for a model that is normalized already, with static shapes and BatchNormalization folded."""
    target = find_target(options.target)
    check_precision(options, target)
    check_weight_type(options)
    check_estimate(model, target, options.weight_type)

    # TVM takes a second to import: everything that can be refused without it has been by now.
    from lwc_compiler.codegen.cuda_compiler import find_cuda_compiler
    from lwc_compiler.codegen.frontend import check_supported
    from lwc_compiler.codegen.link import find_compiler

    if target.gpu is not None:
        gpu = replace(target.gpu, precision=options.precision)
        target = replace(target, gpu=gpu)
        check_for_device(model.proto.graph, options)
        find_cuda_compiler(gpu.architectures)
    check_supported(model.proto)
    compiler = None if target.source else find_compiler(target, options.cc)
    chosen = []
    for variant in target.variants or (target,):
        asked = replace(variant, threads=options.threads, weight_type=options.weight_type)
        chosen.append((variant, _cut(model, asked, options, compiler)))
    lowered = lower_parts(model, target, options, chosen)
    size, tensors = len(lowered.library or b""), (*lowered.inputs, *lowered.outputs)
    if target.gpu is not None:  # its memory holds weights and workspace
        size, tensors = lowered.weight_bytes, ()
    check_lowered(target, lowered.footprint, size, lowered.workspace_bytes, tensors)
    return lowered


def _cut(model: Model, target: Target, options: LowerOptions, compiler: Compiler | None) -> list[Part]:
    """The stages of a network, whose kernels are predicted or measured."""
    from lwc_compiler.codegen.batch import cut_batch
    from lwc_compiler.codegen.device_tune import DeviceTuner
    from lwc_compiler.codegen.tune import Tuner
    from lwc_compiler.kernels.choice import narrowest, predicted

    count = measured_candidates(options, target)
    if options.weight_type != "float32":
        return cut_batch(model, target, narrowest)
    if not count or compiler is None:
        return cut_batch(model, target, predicted)
    if target.gpu is None:
        return cut_batch(model, target, Tuner(target, count, compiler))
    tuner = DeviceTuner(target, count)
    parts = cut_batch(model, target, tuner)
    return cut_batch(model, target, tuner) if tuner.measure() else parts


def lower_parts(
    model: Model, target: Target, options: LowerOptions, chosen: Sequence[tuple[Target, Sequence[Part]]]
) -> Lowered:
    """`lower_static` where kernels were chosen, and whatever memory there is.

    Args:
        model: as for `lower_static`.
        target: what `options` name.
        options: of the lowering.
        chosen: the target's variants, or it alone, and the stages for each.
    """
    if target.gpu is not None:
        ((_, (part,)),) = chosen
        return _lower_device(model, target, options, part)
    from lwc_compiler.codegen.c_source import print_kernels
    from lwc_compiler.codegen.c_text import c_identifier
    from lwc_compiler.codegen.emit import emit
    from lwc_compiler.codegen.footprint import footprint
    from lwc_compiler.codegen.header import emit_header
    from lwc_compiler.codegen.kernel_build import compile_kernels
    from lwc_compiler.codegen.link import compile_objects, find_compiler, link_library, make_archive
    from lwc_compiler.codegen.stack import stack_use

    compiler = None if target.source else find_compiler(target, options.cc)
    inputs, outputs = tensor_specs(model.proto.graph.input), tensor_specs(model.proto.graph.output)
    symbol = c_identifier(model.name)
    programs = []
    files, printed = {}, None
    for variant, parts in chosen:
        stages = assemble_parts(parts, f"{symbol}_kernel_{c_identifier(variant.name)}", variant)
        programs.append((variant, Program(tuple(stages))))
        kernels = {name: kernel for stage in stages for name, kernel in stage.kernels.items()}
        if target.source:
            printed = print_kernels(kernels)
        elif kernels:
            files[f"kernels-{variant.name}.o"] = compile_kernels(kernels, variant.llvm())
    apart = options.weights == "file"
    emitted = emit(programs, inputs, outputs, model.name, symbol, options.threads, weights_file=apart, kernels=printed)
    header = emit_header(model.name, symbol, inputs, outputs, emitted, threads=target.os != "none")
    files |= {f"{model.name}.h": header.encode(), "program.c": emitted.source.encode()}
    if not apart:
        files["weights.bin"] = emitted.weights
    library = archive = None
    if compiler is not None:
        objects = compile_objects(compiler, files)
        archive = make_archive(compiler, objects)
        if target.os != "none":
            library = link_library(compiler, objects, hidden=(f"{symbol}_kernel_*", "__truncsfhf2", "__extendhfsf2"))
    memory = stack = None
    if archive is not None and target.os == "none":
        memory, stack = footprint(archive), stack_use(archive, f"{symbol}_run")
    return Lowered(
        name=model.name,
        symbol=symbol,
        library=library,
        archive=archive,
        header=header,
        inputs=inputs,
        outputs=outputs,
        workspace_bytes=emitted.workspace_bytes,
        least_workspace_bytes=emitted.least_workspace_bytes,
        weight_bytes=len(emitted.weights),
        weights=emitted.weights if apart else None,
        source=emitted.source if target.source else None,
        layers=tuple(
            _of_the_model(decision, model.proto.graph, part.runs)
            for part in parts
            for layer in part.layers
            for decision in layer.decisions
        ),
        programs=tuple(ProgramInfo(variant.name, program.steps) for variant, program in programs),
        target=target.name,
        threads=options.threads,
        compiler=compiler.version if compiler else "",
        footprint=memory,
        stack=stack,
    )


def assemble_parts(parts: Sequence[Part], prefix: str, target: Target) -> list[Stage]:
    """The stages that parts of a network are.

    Args:
        parts: as `cut_batch` gives them.
        prefix: of the kernels' C symbols.
        target: what they are made for.
    """
    from lwc_compiler.codegen.assemble import assemble
    from lwc_compiler.codegen.bands import join_in_bands
    from lwc_compiler.codegen.frontend import import_onnx
    from lwc_compiler.codegen.layers import layer_call
    from lwc_compiler.codegen.over import write_over

    stages = []
    for number, part in enumerate(parts):
        takes, gives = tensor_specs(part.rest.graph.input), tensor_specs(part.rest.graph.output)
        stage = assemble(import_onnx(part.rest, layer_call), part.layers, takes, gives, f"{prefix}_{number}", target)
        if target.gpu is None:
            stage = join_in_bands(write_over(replace(stage, runs=part.runs)), target, part.sharing)
        stages.append(stage)
    return stages


def _lower_device(model: Model, target: Target, options: LowerOptions, part: Part) -> Lowered:
    """`lower_parts` for a target with a GPU."""
    from lwc_compiler.codegen.c_text import c_identifier
    from lwc_compiler.codegen.cuda_compiler import compile_all, find_cuda_compiler
    from lwc_compiler.codegen.device_build import check_launches, compile_device
    from lwc_compiler.codegen.device_emit import emit_device
    from lwc_compiler.codegen.header import emit_device_header
    from lwc_compiler.codegen.link import compile_objects, find_compiler, link_library, make_archive

    assert target.gpu is not None
    gpu = target.gpu
    compiler, cuda = find_compiler(target, options.cc), find_cuda_compiler(gpu.architectures)
    inputs, outputs = tensor_specs(model.proto.graph.input), tensor_specs(model.proto.graph.output)
    symbol = c_identifier(model.name)
    (stage,) = assemble_parts([part], f"{symbol}_kernel", target)
    check_launches(stage.kernels)
    source = compile_device(stage.kernels, "cuda")
    codes = compile_all(source, gpu.architectures, ptx=gpu.ptx, threads=os.cpu_count() or 1)
    emitted = emit_device(stage, codes, inputs, outputs, symbol, target)
    header = emit_device_header(model.name, symbol, inputs, outputs)
    objects = compile_objects(compiler, emitted.files | {f"{symbol}.h": header.encode()})
    return Lowered(
        name=model.name,
        symbol=symbol,
        library=link_library(compiler, objects, hidden=(f"{symbol}_code_*",), libraries=("dl",)),
        archive=make_archive(compiler, objects),
        header=header,
        inputs=inputs,
        outputs=outputs,
        workspace_bytes=emitted.arena_bytes,
        least_workspace_bytes=emitted.arena_bytes,
        weight_bytes=emitted.weight_bytes,
        layers=tuple(
            _of_the_model(decision, model.proto.graph, 1) for layer in part.layers for decision in layer.decisions
        ),
        programs=(ProgramInfo(target.name, Program((stage,)).steps),),
        target=target.name,
        threads=options.threads,
        compiler=f"{compiler.version}; {cuda}",
        precision=options.precision,
    )


def check_precision(options: LowerOptions, target: Target) -> None:
    """Refuses a precision that the target does not compute in.

    Raises:
        OptionError: it is no GPU, or has code for one whose tensor cores do not take it.
    """
    if options.precision == "float32":
        return
    if target.gpu is None:
        raise OptionError(
            f"precision {options.precision}: {target.name} computes in float32; the others are for GPUs (`lwc targets`)"
        )
    oldest = target.gpu.architectures[0]
    if options.precision != "float16" and oldest < _AMPERE:
        raise OptionError(
            f"precision {options.precision}: {target.name} has code for sm_{oldest}, whose tensor cores take float16; "
            f"give float16, or a target from sm_{_AMPERE} on, like cuda:sm_{_AMPERE}"
        )


def check_for_device(graph: onnx.GraphProto, options: LowerOptions) -> None:
    """Refuses what cannot be lowered for a GPU.

    Args:
        graph: normalized, static shapes.
        options: of the lowering.

    Raises:
        OptionError: weights in a file are asked for.
        UnsupportedError: a tensor has more elements than an index of 32 bits counts.
    """
    if options.weights == "file":
        raise OptionError("weights file: a library for GPUs holds its weights, and copies them to the GPU once")
    for value in (*graph.input, *graph.value_info, *graph.output):
        elements = math.prod(d.dim_value for d in value.type.tensor_type.shape.dim)
        if elements > _MOST_ELEMENTS:
            raise UnsupportedError(
                f"'{value.name}' has {elements} elements; for GPUs lwc lowers tensors of at most {_MOST_ELEMENTS}: "
                "compile the model for a smaller batch"
            )


def check_weight_type(options: LowerOptions) -> None:
    """Refuses a type of weights that kernels for the target do not have.

    Raises:
        OptionError: there is none.
    """
    asked = options.weight_type
    if asked not in find_target(options.target).weight_types:
        able = ", ".join(target.name for target in all_targets() if asked in target.weight_types)
        raise OptionError(
            f"weight_type {asked}: code for {options.target} has its weights in float32; {asked} is there for {able}, "
            "and boards with these. Leave --weight-type out"
        )


def _of_the_model(decision: LayerDecision, graph: onnx.GraphProto, runs: int) -> LayerDecision:
    """The decision in the terms of the user's graph, whatever the layer was rewritten to, for the whole batch."""
    node = next(node for node in graph.node if node_label(node) == decision.node)
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    site = next(name for name in (decision.site, node.input[1], node.input[0]) if name in dims)
    return replace(
        decision,
        site=site,
        op=node.op_type,
        shape=dims[site],
        flops=runs * decision.flops,
        dense_flops=runs * decision.dense_flops,
    )


def measured_candidates(options: LowerOptions, target: Target) -> int:
    """How many kernels are measured for each layer.

    Raises:
        OptionError: measurements are asked for, and this machine cannot run the target's code.
    """
    if options.tune is None:
        return _TUNE if options.target == HOST else 0
    missing = ", ".join(missing_features(target))
    if options.tune and missing:
        raise OptionError(
            f"tune {options.tune}: this machine cannot measure kernels for {target.name}, it lacks {missing}; "
            "tune 0 takes what is predicted to be the fastest"
        )
    return options.tune


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Name, type and static shape of graph inputs or outputs.

    Raises:
        UnsupportedError: a dimension is open.
    """
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        if not all(d.HasField("dim_value") for d in tensor.shape.dim):
            raise UnsupportedError(
                f"'{value.name}' has a shape that depends on the input's values; lwc lowers static shapes"
            )
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        specs.append(TensorSpec(value.name, dtype, tuple(d.dim_value for d in tensor.shape.dim)))
    return tuple(specs)
