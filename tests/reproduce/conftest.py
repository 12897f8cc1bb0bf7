import numpy as np
import pytest

from lwc_compiler.demo import load_digits
from lwc_compiler.recipe.options import IterateOptions, PruneOptions, RetrainOptions
from lwc_compiler.reproduce.datasets import Files
from lwc_compiler.reproduce.networks import lenet_300_100
from lwc_compiler.reproduce.run import Experiment
from lwc_compiler.reproduce.schedules import Figure5, Schedule, Stage, Variant

TRAINING = RetrainOptions(epochs=15, batch_size=32, learning_rate=3e-3, threads=1)
PRUNING = PruneOptions(criterion="erdos-renyi-kernel", sparsity=0.92, keep_first=False)


def tiny_schedule(training=TRAINING):
    """One stage of one round, and two curves of one point each."""
    short = training.model_copy(update={"l1": 1e-5, "epochs": 2})
    variants = (
        Variant("L2, no retraining", l1=False, retrain=None),
        Variant("L1, retrained", l1=True, retrain=short, iterative=True),
    )
    stage = Stage("12x", training, (PRUNING, IterateOptions(rounds=1)))
    return Schedule(training, (stage,), "Digits.", Figure5((0.75,), PRUNING, short, variants))


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The bundled images of 8 x 8 pixels; half of their validation images play the test images."""
    folder = tmp_path_factory.mktemp("digits")
    files = Files(folder / "train.npz", folder / "validation.npz", folder / "test.npz")
    data = load_digits()
    half = len(data["validation_labels"]) // 2
    np.savez(files.train, pixels=data["train_pixels"], labels=data["train_labels"])
    for file, part in ((files.validation, slice(half)), (files.test, slice(half, None))):
        np.savez(file, pixels=data["validation_pixels"][part], labels=data["validation_labels"][part])
    return files


@pytest.fixture(scope="session")
def tiny(digits):
    """Makes an experiment with LeNet-300-100 on these images."""

    def make(schedule=None):
        return Experiment(
            "lenet-300-100", lambda draw: lenet_300_100(draw, pixels=64), "mnist", digits, schedule or tiny_schedule()
        )

    return make
