"""Whole networks are right on every class of processors, with 90 % of the weights pruned."""

import numpy as np
import pytest
from batch import TARGETS

import lwc_compiler
from benchmarks import models
from lwc_compiler.errors import ToolchainError
from lwc_compiler.model import Model, load_model
from lwc_compiler.runtime.elsewhere import emulator_of
from lwc_compiler.runtime.reference import random_inputs, reference_session
from lwc_compiler.runtime.verify import TOLERANCE, relative_error

# Of 96 x 96 pixels where there is a choice: the kernels are those of 224 x 224, the emulated time is a fifth.
NETWORKS = {
    "lenet5": models.lenet5,
    "mobilenet_v2": lambda: models.mobilenet_v2(96),
    "resnet18": lambda: models.resnet18(96),
}
CASES = [
    pytest.param(target, name, id=f"{target.name}-{name}", marks=pytest.mark.xdist_group(f"emulated-{target.name}"))
    for target in TARGETS
    for name in NETWORKS
]


@pytest.mark.parametrize(("target", "name"), CASES)
def test_same_as_onnx_runtime(target, name, tmp_path) -> None:
    try:
        emulator_of(target)
    except ToolchainError as error:
        pytest.skip(str(error))
    recipe = lwc_compiler.Recipe(
        prune=lwc_compiler.PruneOptions(sparsity=0.9), lower=lwc_compiler.LowerOptions(target=target.name)
    )
    artifact = lwc_compiler.compile(Model(NETWORKS[name](), name), tmp_path / "net.lwc", recipe)
    # The compiler's own check, on one thread.
    verification = artifact.manifest.verification
    assert verification.skipped == ""
    assert verification.emulator.startswith("qemu-")
    assert 0 < verification.worst <= TOLERANCE
    # And on two, with other inputs.
    model = load_model(artifact.model)
    inputs = random_inputs(model.proto, artifact.manifest.inputs, seed=9)
    with lwc_compiler.load(artifact.directory, 2, via="qemu") as session:
        (output,) = session.run(inputs).values()
    (expected,) = reference_session(model.proto, 1).run(None, inputs)
    assert relative_error(output, expected) <= TOLERANCE
    assert np.abs(output).max() > 0
