"""Masks that change while a network trains: when, to what, and what is 0 after every step."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from lwc_compiler.errors import OptionError
from lwc_compiler.model import Model
from lwc_compiler.passes.prune import prune
from lwc_compiler.passes.sites import find_sites
from lwc_compiler.recipe.options import PruneOptions, RetrainOptions
from lwc_compiler.sparsity.masks import parse_structure
from lwc_compiler.training.batching import input_specs
from lwc_compiler.training.data import ArraySource
from lwc_compiler.training.loop import Job, Trainer
from lwc_compiler.training.masking import MaskChanges, Pruning

BATCH, STEPS_PER_EPOCH, EPOCHS = 8, 3, 4
STEPS = EPOCHS * STEPS_PER_EPOCH
RAMP, LAST = 6, 9  # half and three quarters of the steps

# Where masks come from: (ramp, growth).
SCHEDULES = {
    "fixed": (None, "none"),
    "gradual": (0.5, "none"),
    "shadow": (0.0, "shadow"),
    "gradient": (0.0, "gradient"),
    "gradual and shadow": (0.5, "shadow"),
    "gradual and gradient": (0.5, "gradient"),
}
DENSITIES = {"k": 0.5, "w0": 0.2, "w1": 0.4}
GOALS = {
    "uniform": {"sparsity": 0.65},
    "global": {"sparsity": 0.65},
    "erdos-renyi-kernel": {"sparsity": 0.65},
    "per-layer": {"densities": DENSITIES},
    "std": {"quality": 0.9},
}


@pytest.fixture
def network(build, rng):
    """A convolution and two fully connected layers, in which no weight has a gradient of exactly 0."""
    weights = {
        "k": rng.normal(size=(4, 2, 3, 3)) / 2,
        "kb": np.zeros(4),
        "w0": rng.normal(size=(36, 8)) / 4,
        "b0": np.zeros(8),
        "w1": rng.normal(size=(3, 8)) / 2,
        "b1": np.zeros(3),
    }
    text = """(float[n,2,5,5] x) => (float[n,3] y) {
        c = Conv(x, k, kb) t = Tanh(c) f = Flatten(t) h = Gemm(f, w0, b0) s = Tanh(h) y = Gemm<transB=1>(s, w1, b1)
    }"""
    return Model(build(text, weights), "network")


@pytest.fixture
def source(network, rng):
    samples = BATCH * STEPS_PER_EPOCH
    arrays = {"x": rng.normal(size=(samples, 2, 5, 5)).astype(np.float32), "labels": rng.integers(0, 3, samples)}
    return ArraySource("samples", arrays, input_specs(network.proto))


@pytest.fixture
def trainer_for(network, source):
    """A trainer of the network: pruned to `goal` before, or while it trains; and the density every layer is to have."""

    def make(goal, ramp, **options):
        options = RetrainOptions(threads=1, batch_size=BATCH, epochs=EPOCHS, mask_interval=2, **options)
        pruned = prune(network, goal)
        sites = pruned.provenance[-1]["sites"]
        model = network if ramp else pruned
        pruning = None if ramp is None else Pruning(goal, tuple(sites), ramp)
        job = Job(model.proto, model.masks, "samples", None, options, Path("none"), "", pruning=pruning)
        return Trainer(job, source, source.labels), {name: entry["requested"] for name, entry in sites.items()}

    return make


def goal_for(criterion, structure="element"):
    return PruneOptions(criterion=criterion, structure=structure, keep_first=False, **GOALS[criterion])


def assert_structure(site, mask, text):
    """Blocks are kept or pruned whole, and groups keep no more than they may."""
    structure, matrix = parse_structure(text), site.to_matrix(mask)
    channels = matrix.reshape(len(matrix), -1, site.positions)
    for start in range(0, len(matrix), structure.block_rows):
        block = matrix[start : start + structure.block_rows]
        np.testing.assert_array_equal(block.any(axis=0), block.all(axis=0))
    if structure.group_size:
        for start in range(0, channels.shape[1], structure.group_size):
            assert channels[:, start : start + structure.group_size].sum(axis=1).max() <= structure.group_kept


def assert_zeros(trainer, shadows):
    """What is pruned is +0: in the network always, for the optimizer unless it learns unseen."""
    assert trainer.masks.keys() == DENSITIES.keys()
    for name, mask in trainer.masks.items():
        arrays = [trainer.weights.trained[name]]
        if not shadows:
            arrays += [array for key, array in trainer.optimizer.state.items() if key.endswith(f"/{name}")]
            arrays.append(trainer.optimizer.weights[name])
            assert len(arrays) > 2
        for array in arrays:
            assert not array[~mask].any()
            assert not np.signbit(array[~mask]).any()
        np.testing.assert_array_equal(trainer.weights.trained[name][mask], trainer.optimizer.weights[name][mask])


def assert_density(trainer, goal, requested):
    """To within one unit, in every layer, or in all together where the criterion sets none for a layer."""
    unit = parse_structure(goal.structure).block_rows
    kept = {name: int(mask.sum()) for name, mask in trainer.masks.items()}
    if goal.criterion == "global":
        total = sum(mask.size for mask in trainer.masks.values())
        assert abs(sum(kept.values()) - (1 - goal.sparsity) * total) <= unit
    else:
        for name, density in requested.items():
            assert abs(kept[name] - density * trainer.masks[name].size) <= unit, name


@pytest.mark.parametrize(
    ("schedule", "criterion"),
    # Growth by gradients needs a density to keep, and `std` has none.
    [pair for pair in product(SCHEDULES, GOALS) if not ("gradient" in pair[0] and pair[1] == "std")],
)
@pytest.mark.parametrize("structure", ["element", "2x1", "4x1", "2:4"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_step(network, source, trainer_for, optimizer, schedule, structure, criterion):
    ramp, grow = SCHEDULES[schedule]
    goal = goal_for(criterion, structure)
    trainer, requested = trainer_for(
        goal, ramp, optimizer=optimizer, grow=grow, weight_decay=0.1, l1=1e-3, clip_norm=1.0, learning_rate=0.01
    )
    sites = {site.weight: site for site in find_sites(network.proto)}
    last = {"fixed": 0, "gradual": RAMP}.get(schedule, LAST)
    before = {name: mask.copy() for name, mask in trainer.masks.items()}
    changed = set()
    for step, batch in enumerate(batch for _ in range(EPOCHS) for batch in source.batches(BATCH)):
        trainer.step([batch], 0.2)
        assert_zeros(trainer, shadows=grow == "shadow" and step < LAST)
        for name, mask in trainer.masks.items():
            if not np.array_equal(mask, before[name]):
                changed.add(step)
                assert_structure(sites[name], mask, structure)
        if criterion != "std" and (not ramp or step >= RAMP):
            assert trainer.complete()
            assert_density(trainer, goal, requested)
        before = {name: mask.copy() for name, mask in trainer.masks.items()}
    assert step == STEPS - 1
    assert changed <= {step for step in range(1, last + 1) if step % 2 == 0 or step in (RAMP, LAST)}
    assert bool(changed) == (schedule != "fixed")
    for name, mask in trainer.masks.items():
        assert_structure(sites[name], mask, structure)
        assert 0 < mask.sum() < mask.size


def test_accumulated_steps_choose_by_the_mean_gradient(trainer_for, source):
    goal = goal_for("uniform")
    whole, _ = trainer_for(goal, 0.0, grow="gradient", optimizer="sgd")
    whole.optimizer.steps = 2
    batch = next(source.batches(BATCH))
    whole.step([batch, batch], 0.1)
    single, _ = trainer_for(goal, 0.0, grow="gradient", optimizer="sgd")
    single.optimizer.steps = 2
    single.step([batch], 0.1)
    for name, mask in single.masks.items():
        np.testing.assert_array_equal(whole.masks[name], mask)
        np.testing.assert_allclose(whole.weights.trained[name], single.weights.trained[name], rtol=1e-4, atol=1e-6)


def test_what_grows_back_by_its_gradient_starts_at_zero(trainer_for, source):
    trainer, _ = trainer_for(goal_for("uniform"), 0.0, grow="gradient")
    first, second, third = source.batches(BATCH)
    trainer.step([first], 0.01)
    trainer.step([second], 0.01)
    before = {name: (mask.copy(), trainer.weights.trained[name].copy()) for name, mask in trainer.masks.items()}
    trainer.step([third], 0.0)
    for name, (mask, weight) in before.items():
        grown, stayed = trainer.masks[name] & ~mask, trainer.masks[name] & mask
        assert grown.any()
        assert not trainer.weights.trained[name][grown].any()
        np.testing.assert_array_equal(trainer.weights.trained[name][stayed], weight[stayed])


def test_what_grows_back_by_its_shadow_has_its_value(trainer_for, source):
    trainer, _ = trainer_for(goal_for("uniform"), 0.0, grow="shadow")
    first, second, third = source.batches(BATCH)
    trainer.step([first], 0.01)
    trainer.step([second], 0.01)
    places = {name: tuple(np.argwhere(~mask)[0]) for name, mask in trainer.masks.items()}
    for name, place in places.items():
        assert trainer.optimizer.weights[name][place] != 0  # it learned
        assert trainer.weights.trained[name][place] == 0  # unseen
        trainer.optimizer.weights[name][place] = 5
    trainer.step([third], 0.0)
    for name, place in places.items():
        assert trainer.masks[name][place]
        assert trainer.weights.trained[name][place] == 5


def test_shadows_are_given_up_at_the_last_change(trainer_for, source):
    trainer, _ = trainer_for(goal_for("uniform"), 0.0, grow="shadow")
    assert trainer.changes.last == LAST
    batch = next(source.batches(BATCH))
    for step in range(STEPS):
        trainer.step([batch], 0.01)
        for name, mask in trainer.masks.items():
            assert trainer.optimizer.weights[name][~mask].any() == (step < LAST)


@pytest.mark.parametrize("steps", [LAST, LAST + 1])
def test_what_is_restored_around_the_last_change(trainer_for, source, steps):
    """Before it the shadows are there, after it what is pruned is 0 again and stays so."""
    goal = goal_for("uniform")
    first, _ = trainer_for(goal, 0.0, grow="shadow")
    batch = next(source.batches(BATCH))
    for _ in range(steps):
        first.step([batch], 0.1)
    second, _ = trainer_for(goal, 0.0, grow="shadow")
    second.restore(first.state(), steps)
    for _ in range(2):
        for name, mask in first.masks.items():
            np.testing.assert_array_equal(second.masks[name], mask)
            np.testing.assert_array_equal(second.optimizer.weights[name], first.optimizer.weights[name])
            assert second.optimizer.weights[name][~mask].any() == (second.optimizer.steps <= LAST)
        first.step([batch], 0.1)
        second.step([batch], 0.1)


def test_gradual_pruning_follows_the_cubic_curve(trainer_for, source):
    """Zeros at steps 2, 4 and 6 of 6: 19 / 27, 26 / 27 and all of 65 %."""
    trainer, _ = trainer_for(goal_for("uniform"), 0.5)
    batch = next(source.batches(BATCH))
    sizes = {name: mask.size for name, mask in trainer.masks.items()}
    shares = [0, 0, 19 / 27, 19 / 27, 26 / 27, 26 / 27, 1, 1]
    for step, share in enumerate(shares):
        trainer.step([batch], 0.01)
        assert trainer.complete() == (step >= RAMP)
        for name, mask in trainer.masks.items():
            assert int(mask.sum()) == pytest.approx((1 - 0.65 * share) * sizes[name], abs=0.5)
    assert trainer.density == pytest.approx(0.35, abs=0.01)


def test_frozen_weights_are_not_pruned_while_others_are(network, source):
    options = RetrainOptions(threads=1, batch_size=BATCH, epochs=EPOCHS, mask_interval=2)
    pruning = Pruning(goal_for("per-layer"), tuple(DENSITIES), 0.5)
    job = Job(network.proto, {}, "samples", None, options, Path("none"), "", frozen=("k", "kb"), pruning=pruning)
    trainer = Trainer(job, source, source.labels)
    before = trainer.weights.trained["k"].copy()
    for batch in (batch for _ in range(EPOCHS) for batch in source.batches(BATCH)):
        trainer.step([batch], 0.01)
    np.testing.assert_array_equal(trainer.weights.trained["k"], before)
    assert {name: round(float(mask.mean()), 1) for name, mask in trainer.masks.items()} == {
        "k": 1.0,
        "w0": 0.2,
        "w1": 0.4,
    }


def test_training_leaves_the_masks_of_the_job_alone(trainer_for, network, source):
    goal = goal_for("uniform")
    pruned = prune(network, goal)
    before = {name: mask.copy() for name, mask in pruned.masks.items()}
    options = RetrainOptions(threads=1, batch_size=BATCH, epochs=EPOCHS, mask_interval=1, grow="gradient")
    pruning = Pruning(goal, tuple(DENSITIES))
    job = Job(pruned.proto, pruned.masks, "samples", None, options, Path("none"), "", pruning=pruning)
    trainer = Trainer(job, source, source.labels)
    state, steps = trainer.state(), 5
    state = {group: {name: array.copy() for name, array in arrays.items()} for group, arrays in state.items()}
    for mask in state["masks"].values():
        mask[:] = True
    trainer.restore(state, steps)
    for name, mask in pruned.masks.items():
        np.testing.assert_array_equal(mask, before[name])


# -- the rule alone ---------------------------------------------------------------------------------------------------


@pytest.fixture
def changes_for(network):
    def make(goal, ramp=0.0, steps=100, names=("w0",), masks=None, **options):
        sites = {site.weight: site for site in find_sites(network.proto) if site.weight in names}
        masks = {name: np.ones(site.shape, bool) for name, site in sites.items()} if masks is None else masks
        return MaskChanges(sites, Pruning(goal, tuple(names), ramp), RetrainOptions(**options), steps, masks)

    return make


@pytest.mark.parametrize(
    ("ramp", "grow", "interval", "due"),
    [
        (0.5, "none", 20, [20, 40, 50]),
        (0.5, "none", 1000, [50]),
        (0.5, "shadow", 30, [30, 50, 60, 75]),
        (0.0, "gradient", 40, [40, 75]),
        (1.0, "none", 40, [40, 80, 99]),
        (0.001, "none", 40, [1]),
        (0.0, "none", 10, []),
    ],
)
def test_when_masks_change(changes_for, ramp, grow, interval, due):
    changes = changes_for(PruneOptions(sparsity=0.5), ramp, grow=grow, mask_interval=interval)
    assert [step for step in range(101) if changes.due(step)] == due
    assert changes.last == max(due, default=0)


def test_the_density_is_reached_after_the_step_that_ends_the_ramp(changes_for):
    changes = changes_for(PruneOptions(sparsity=0.5), 0.5)
    assert [changes.reached(step) for step in (0, 50, 51)] == [False, False, True]
    assert changes_for(PruneOptions(sparsity=0.5), 0.0, grow="shadow").reached(0)


def test_the_ramp_starts_at_the_density_that_is_there(changes_for, rng):
    """Half-way 1/8 of the way from 0.5 to 0.1 is left: 0.15."""
    weight = rng.permutation(288).reshape(36, 8).astype(np.float32) + 1
    masks = {"w0": weight > 144}
    changes = changes_for(PruneOptions(sparsity=0.9), 1.0, masks=masks)
    new = changes.choose(50, {"w0": np.where(masks["w0"], weight, 0)}, masks, {})["w0"]
    np.testing.assert_array_equal(new, weight > 288 - round(0.15 * 288))


def test_the_smallest_make_room_for_the_highest_gradients(changes_for, rng):
    """At a third of the way to the last change the share is 0.3 / 2 (1 + cos(pi / 3)) = 0.225: of 58 weights, 13 go."""
    changes = changes_for(PruneOptions(sparsity=0.8), grow="gradient", mask_interval=25)
    weight = (rng.permutation(288) + 1).reshape(36, 8).astype(np.float32)
    mask = weight > 288 - 58
    gradient = np.where(mask, 1e6, rng.permutation(288).reshape(36, 8) + 1).astype(np.float32)
    new = changes.choose(25, {"w0": np.where(mask, weight, 0)}, {"w0": mask}, {"w0": -gradient})["w0"]
    stays = weight > 288 - 45
    # What has just gone competes by its gradient, too.
    highest = np.sort(gradient[~stays])[-13]
    np.testing.assert_array_equal(new, stays | (gradient >= highest))
    outside = np.where(mask, 0, gradient)
    new = changes.choose(25, {"w0": np.where(mask, weight, 0)}, {"w0": mask}, {"w0": outside})["w0"]
    np.testing.assert_array_equal(new, stays | (outside >= np.sort(outside.ravel())[-13]))


def test_nothing_goes_at_the_last_change(changes_for, rng):
    changes = changes_for(PruneOptions(sparsity=0.8), grow="gradient")
    weight = (rng.permutation(288) + 1).reshape(36, 8).astype(np.float32)
    mask = weight > 288 - 58
    gradient = {"w0": rng.normal(size=(36, 8)).astype(np.float32)}
    new = changes.choose(changes.last, {"w0": np.where(mask, weight, 0)}, {"w0": mask}, gradient)["w0"]
    np.testing.assert_array_equal(new, mask)


def test_high_gradients_of_one_layer_take_nothing_from_another(changes_for, rng):
    """With one threshold for all layers, what stays comes before any gradient."""
    names = ("w0", "w1")
    changes = changes_for(
        PruneOptions(criterion="global", sparsity=0.5), names=names, grow="gradient", grow_fraction=0.02
    )
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in {"w0": (36, 8), "w1": (3, 8)}.items()}
    median = np.median(np.abs(np.concatenate([weight.ravel() for weight in weights.values()])))
    masks = {name: np.abs(weight) > median for name, weight in weights.items()}
    gradients = {"w0": np.full((36, 8), 1e-3, np.float32), "w1": np.full((3, 8), 1e3, np.float32)}
    kept = {name: np.where(masks[name], weight, 0) for name, weight in weights.items()}
    new = changes.choose(1, kept, masks, gradients)
    lost = sum(int((masks[name] & ~new[name]).sum()) for name in names)
    assert 0 < lost <= 3  # 2 % of 156
    assert not (new["w0"] & ~masks["w0"]).any()
    assert sum(int(mask.sum()) for mask in new.values()) == 156


def test_one_weight_that_stays_keeps_its_block(changes_for):
    """A block counts by the root mean square of its weights, and seven of these eight were 0."""
    changes = changes_for(
        PruneOptions(criterion="per-layer", densities={"w0": 2 / 288}, structure="8x1"), grow="shadow"
    )
    changes._grow = "gradient"
    weight = np.zeros((36, 8), np.float32)
    weight[3, 5] = 1
    gradient = np.where(weight == 0, np.float32(9), 0)
    gradient[3] = 0
    new = changes.choose(changes.last, {"w0": weight}, {"w0": weight != 0}, {"w0": gradient})["w0"]
    assert new[3, 5]


@pytest.mark.parametrize("criterion", ["uniform", "erdos-renyi-kernel", "std"])
def test_without_growth_what_is_pruned_stays_pruned(changes_for, rng, criterion):
    changes = changes_for(goal_for(criterion), 1.0, names=("w0", "w1"))
    shapes = {"w0": (36, 8), "w1": (3, 8)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    masks = {name: rng.random(shape) < 0.9 for name, shape in shapes.items()}
    for step, name in product(range(10, 100, 10), shapes):
        new = changes.choose(step, weights, masks, {})
        assert not (new[name] & ~masks[name]).any()
        masks = new


@pytest.mark.parametrize(
    ("goal", "ramp", "options", "message"),
    [
        ({"criterion": "std", "quality": 1.0}, 0.0, {"grow": "gradient"}, "another criterion than 'std'"),
        ({"sparsity": 0.5, "score": "activation"}, 0.5, {}, "score 'magnitude', not 'activation'"),
        ({"sparsity": 0.5, "score": "activation"}, 0.0, {"grow": "shadow"}, "score 'magnitude', not 'activation'"),
        ({"sparsity": 0.5}, 0.5, {"steps": 1}, "two steps at least"),
        ({"sparsity": 0.5}, 0.5, {"names": ()}, "freeze less"),
    ],
)
def test_options_that_do_not_fit(changes_for, goal, ramp, options, message):
    with pytest.raises(OptionError, match=message):
        changes_for(PruneOptions(**goal), ramp, **options)
