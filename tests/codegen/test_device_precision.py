"""A network in less than float32, launch by launch: its CUDA text runs on the processor, in its library's memory."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lwc_compiler.codegen.assemble import assemble
from lwc_compiler.codegen.batch import cut_batch
from lwc_compiler.codegen.frontend import import_onnx
from lwc_compiler.codegen.layers import layer_call
from lwc_compiler.kernels.choice import Candidate, Task, predicted
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.model import Model
from lwc_compiler.passes.lower import tensor_specs
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.passes.prune import prune
from lwc_compiler.recipe.options import PruneOptions
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import relative_error, tolerance_of
from lwc_compiler.targets import find_target
from tests.codegen.test_device_lower import small_resnet
from tests.cuda_harness import Network


@pytest.mark.parametrize(("precision", "format_"), [("tf32", "1:2"), ("float16", "2:4")])
def test_a_network_on_sparse_tensor_cores_computes_what_onnx_runtime_does(tmp_path, precision, format_) -> None:
    """Every layer by them for which they are offered, measured or not: all pruned convolutions."""

    def pick(task: Task, candidates: Sequence[Candidate]) -> Plan:
        sparse = [replace(each, unproven=False) for each in candidates if each.format == format_]
        return predicted(task, sparse or candidates)

    model = normalize(Model(small_resnet(), "net"), batch=2, fold_batch_norm=True)
    model = prune(model, PruneOptions(sparsity=0.5, structure=format_))
    target = find_target("cuda:sm_80")
    target = replace(target, gpu=replace(target.gpu, precision=precision))
    (part,) = cut_batch(model, target, pick)
    takes, gives = tensor_specs(part.rest.graph.input), tensor_specs(part.rest.graph.output)
    stage = assemble(import_onnx(part.rest, layer_call), part.layers, takes, gives, "net_kernel", target)
    used = [call.info.kernel for call in stage.calls]
    assert used.count("gpu_mma_sparse") == 5
    inputs = random_inputs(model.proto, takes, 0)
    outputs = Network(stage, tmp_path).run(inputs)
    (expected,) = reference_session(model.proto, 1).run(list(outputs), inputs)
    (result,) = outputs.values()
    assert 1e-6 < relative_error(result, expected) <= tolerance_of(precision)
