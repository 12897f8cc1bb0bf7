"""Every real model compiles for this machine, dense and pruned, and computes what ONNX Runtime computes."""

import pytest

from lwc_compiler.model import Model
from lwc_compiler.passes.lower import lower
from lwc_compiler.passes.prune import prune
from lwc_compiler.recipe.options import LowerOptions, PruneOptions
from lwc_compiler.runtime.verify import TOLERANCE, verify
from tests import zoo

# Hundreds of megabytes of weights: pruned only.
LARGE = ("light_bvlc_alexnet", "light_vgg19", "light_zfnet512")
CASES = [(name, sparsity) for name in zoo.NAMES for sparsity in (0.0, 0.9) if sparsity or name not in LARGE]


@pytest.mark.parametrize(("name", "sparsity"), CASES)
def test_outputs_match(name, sparsity):
    if name in zoo.FROM_TORCH:
        pytest.importorskip("torch")
    model = Model(zoo.load(name), name)
    if sparsity:
        model = prune(model, PruneOptions(sparsity=sparsity))
    lowered = lower(model, LowerOptions(shapes=zoo.SHAPES.get(name, {})))
    verification = verify(model, lowered)
    assert verification.errors
    assert verification.worst <= TOLERANCE
