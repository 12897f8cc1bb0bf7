"""How each network is trained and pruned by `lwc reproduce`: the settings, and nothing else.

They were chosen on the validation images. To try others, change them here: a folder of results made with older settings
is refused, not mixed.
"""

from __future__ import annotations

from dataclasses import dataclass

from lwc_compiler.recipe.options import IterateOptions, PruneOptions, RetrainOptions


@dataclass(frozen=True)
class Stage:
    """What ends in one network of the results: one call of `lwc_compiler.iterate`, or of `retrain` without rounds.

    Attributes:
        name: fit for a file.
        retrain: how every round retrains; the seed is that of the run.
        rounds: what the last round prunes to, and the rounds; None: nothing is pruned.
        start: the stage whose network it starts from, or `dense`.
    """

    name: str
    retrain: RetrainOptions
    rounds: tuple[PruneOptions, IterateOptions] | None
    start: str = "dense"


@dataclass(frozen=True)
class Variant:
    """A curve of figure 5, validation error against density.

    Attributes:
        name: for the legend.
        l1: whether the dense network is trained with L1 regularization; else with L2.
        retrain: how the pruned network is retrained; None: not at all.
        iterative: whether each density is pruned from the retrained network of the one before; else from the dense one.
    """

    name: str
    l1: bool
    retrain: RetrainOptions | None
    iterative: bool = False


@dataclass(frozen=True)
class Figure5:
    """What the trade-off curves are made of.

    Attributes:
        sparsities: zeros / all, from few to many.
        prune: how; its sparsity is replaced by each of these.
        l1: dense training for the curves with L1 regularization.
        variants: the five curves of the figure, and L1 followed by L2 (section 3.1).
    """

    sparsities: tuple[float, ...]
    prune: PruneOptions
    l1: RetrainOptions
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Schedule:
    """Everything that is done to one network.

    Attributes:
        dense: training from scratch.
        stages: in the order they are done.
        note: what table 1 has to say of the training.
        figure_5: the trade-off curves.
    """

    dense: RetrainOptions
    stages: tuple[Stage, ...]
    note: str
    figure_5: Figure5


def _figure_5(dense: RetrainOptions, sparsities: tuple[float, ...], epochs: int, rate: float) -> Figure5:
    """The curves, with `epochs` of retraining a density at learning rate `rate`."""
    l1_dense = dense.model_copy(update={"l1": 1e-5, "weight_decay": 0.0})
    again = {"epochs": epochs, "learning_rate": rate}
    l1_again, l2_again = l1_dense.model_copy(update=again), dense.model_copy(update=again)
    return Figure5(
        sparsities=sparsities,
        prune=_fewer(2),
        l1=l1_dense,
        variants=(
            Variant("L2, no retraining", l1=False, retrain=None),
            Variant("L1, no retraining", l1=True, retrain=None),
            Variant("L1, retrained with L1", l1=True, retrain=l1_again),
            Variant("L1, retrained with L2", l1=True, retrain=l2_again),
            Variant("L2, retrained with L2", l1=False, retrain=l2_again),
            Variant("L2, pruned and retrained iteratively", l1=False, retrain=l2_again, iterative=True),
        ),
    )


_LENET_300_100 = RetrainOptions(
    optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, batch_size=64, epochs=30, threads=1
)
# Images deformed at random keep a network from learning the training images by heart.
_DEFORMED = "lwc_compiler.reproduce.augment:deform"
_LENET_300_100_LONG = RetrainOptions(
    optimizer="sgd", learning_rate=0.1, weight_decay=2e-5, batch_size=128, epochs=60, mask_interval=50, threads=1
)
_LENET_300_100_DEFORMED = _LENET_300_100_LONG.model_copy(update={"augment": _DEFORMED})

_LENET_5 = RetrainOptions(
    optimizer="sgd",
    learning_rate=0.02,
    weight_decay=1e-4,
    batch_size=64,
    epochs=12,
    clip_norm=1.0,
    mask_interval=100,
    augment="lwc_compiler.reproduce.augment:deform_slightly",
    threads=1,
)
_LENET_5_SPARSER = _LENET_5.model_copy(
    update={"learning_rate": 0.05, "weight_decay": 2e-5, "epochs": 24, "grow": "gradient"}
)


def _sparse(name: str, prune: PruneOptions, retrain: RetrainOptions, start: str) -> Stage:
    """A network pruned step by step in one training from that of stage `start`."""
    return Stage(name, retrain, (prune, IterateOptions(schedule="gradual", ramp=0.5)), start)


def _shared(start: str) -> Stage:
    """The network of a stage with shared weights: 2^8 values in a convolution, 2^5 in a fully connected layer."""
    retrain = RetrainOptions(epochs=5, batch_size=64, learning_rate=1e-4, codebook={"conv": 8, "fc": 5}, threads=1)
    return Stage(f"{start}-shared", retrain, None, start)


def _fewer(factor: float) -> PruneOptions:
    """`factor` times fewer weights, distributed by the layers' shapes."""
    return PruneOptions(criterion="erdos-renyi-kernel", sparsity=1 - 1 / factor, keep_first=False)


def _kept(**densities: float) -> PruneOptions:
    """Density of each layer. Shapes alone would leave a convolution of LeNet-5 with hardly a weight a filter."""
    return PruneOptions(criterion="per-layer", densities=densities, keep_first=False)


# Stages that are done on every data set. The sparser ones were tuned on MNIST, and are for MNIST alone.
ANY_DATA = ("12x", "12x-shared")

SCHEDULES = {
    "lenet-300-100": Schedule(
        dense=_LENET_300_100,
        stages=(
            Stage(
                "12x",
                _LENET_300_100.model_copy(update={"epochs": 15, "learning_rate": 0.05}),
                (_fewer(13), IterateOptions(schedule="geometric", rounds=4)),
            ),
            _shared("12x"),
            _sparse("40x", _fewer(40.4), _LENET_300_100_LONG, "12x"),
            _sparse("40x-deformed", _fewer(40.4), _LENET_300_100_DEFORMED, "12x"),
            _shared("40x-deformed"),
            _sparse("68x-deformed", _fewer(68.7), _LENET_300_100_DEFORMED, "40x-deformed"),
            _shared("68x-deformed"),
            _sparse("100x-deformed", _fewer(101), _LENET_300_100_DEFORMED, "68x-deformed"),
        ),
        note="`deformed` networks were trained on images deformed at random.",
        figure_5=_figure_5(_LENET_300_100, (0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99), epochs=8, rate=0.01),
    ),
    "lenet-5": Schedule(
        dense=_LENET_5,
        stages=(
            _sparse("12x", _fewer(13), _LENET_5, "dense"),
            _shared("12x"),
            _sparse("100x", _kept(conv1=0.4, conv2=0.05, fc1=0.0054, fc2=0.12), _LENET_5_SPARSER, "12x"),
            _shared("100x"),
        ),
        note="All networks were trained on images deformed at random.",
        figure_5=_figure_5(_LENET_5, (0.6, 0.9, 0.95, 0.98, 0.99), epochs=2, rate=0.005),
    ),
}
