"""Stages on the way to a goal, against values computed by hand."""

import numpy as np
import pytest

from lwc_compiler.errors import OptionError
from lwc_compiler.recipe.options import IterateOptions, PruneOptions
from lwc_compiler.sparsity.schedule import Densities, between, cubic, partial, rounds, target_of

UNIFORM = PruneOptions(sparsity=0.936)
LAYERS = PruneOptions(criterion="per-layer", densities={"a": 0.25, "b": 1.0})
STD = PruneOptions(criterion="std", quality=0.8)
QUARTER = Densities(0.25, {"a": 0.64})


def sparsities(goal, **options):
    return [stage.sparsity for stage in rounds(goal, IterateOptions(**options))]


def test_cubic():
    """1 - (1 - t)^3."""
    expected = [0, 0.271, 0.488, 0.875, 0.973, 1]
    assert [cubic(t) for t in (0, 0.1, 0.2, 0.5, 0.7, 1)] == pytest.approx(expected)
    assert (cubic(-1), cubic(2)) == (0, 1)


def test_a_share_of_the_zeros():
    assert partial(UNIFORM, 0.5).sparsity == pytest.approx(0.468)
    assert partial(LAYERS, 0.5).densities == pytest.approx({"a": 0.625, "b": 1.0})
    assert partial(STD, 0.5).quality == pytest.approx(0.4)
    assert partial(STD, 0).quality > 0
    for goal in (UNIFORM, LAYERS):
        assert partial(goal, 0.5).model_dump(exclude={"sparsity", "densities"}) == goal.model_dump(
            exclude={"sparsity", "densities"}
        )


def test_a_share_of_the_way_from_what_is_there():
    """`a` comes from 0.64, `c` from 0.25 as the whole; what has to stay denser than it is has no way to go."""
    assert partial(PruneOptions(sparsity=0.95), 0.5, QUARTER).sparsity == pytest.approx(0.85)
    assert partial(PruneOptions(sparsity=0.5), 0.5, QUARTER).sparsity == pytest.approx(0.5)
    goal = PruneOptions(criterion="per-layer", densities={"a": 0.04, "b": 1.0, "c": 0.05})
    assert partial(goal, 0.5, QUARTER).densities == pytest.approx({"a": 0.34, "b": 1.0, "c": 0.15})
    assert between(None, goal, QUARTER).densities == pytest.approx({"a": 0.16, "b": 1.0, "c": 0.0125**0.5})


def test_the_densities_of_masks():
    masks = {"a": np.array([True, False, False, False]), "b": np.ones((2, 3), bool)}
    assert Densities.of(masks) == Densities(0.7, {"a": 0.25, "b": 1.0})
    assert Densities.of({}) == Densities(1.0, {})


def test_a_share_of_the_zeros_is_never_less_than_the_structure_has():
    assert partial(PruneOptions(sparsity=0.9, structure="2:4"), 0.1).sparsity == pytest.approx(0.5)
    assert partial(PruneOptions(sparsity=0.9, structure="1:4"), 0.9).sparsity == pytest.approx(0.81)
    halves = PruneOptions(criterion="per-layer", densities={"a": 0.25, "b": 0.4}, structure="2:4")
    assert partial(halves, 0.2).densities == pytest.approx({"a": 0.5, "b": 0.5})


def test_geometric_rounds_keep_the_same_share_of_what_is_left():
    """0.064 = 0.4^3."""
    assert sparsities(UNIFORM, rounds=3) == pytest.approx([0.6, 0.84, 0.936])
    stages = rounds(LAYERS, IterateOptions(rounds=2))
    assert [stage.densities for stage in stages] == [pytest.approx({"a": 0.5, "b": 1.0}), LAYERS.densities]
    assert rounds(UNIFORM, IterateOptions(rounds=4))[-1] is UNIFORM


def test_geometric_rounds_start_at_the_density_that_is_there():
    """0.1 is the mean of 0.25 and 0.04; a goal above what is there is no way up."""
    stages = rounds(PruneOptions(sparsity=0.96), IterateOptions(rounds=2), QUARTER)
    assert [stage.sparsity for stage in stages] == pytest.approx([0.9, 0.96])
    stages = rounds(PruneOptions(sparsity=0.5), IterateOptions(rounds=2), QUARTER)
    assert [stage.sparsity for stage in stages] == pytest.approx([0.5, 0.5])


def test_geometric_rounds_with_a_quality_factor_take_all_of_it():
    assert rounds(STD, IterateOptions(rounds=3)) == [STD] * 3


def test_cubic_rounds():
    goal = PruneOptions(sparsity=0.8)
    assert sparsities(goal, schedule="cubic", rounds=4) == pytest.approx([0.4625, 0.7, 0.7875, 0.8])
    qualities = [stage.quality for stage in rounds(STD, IterateOptions(schedule="cubic", rounds=2))]
    assert qualities == pytest.approx([0.7, 0.8])


@pytest.mark.parametrize("schedule", ["geometric", "cubic", "gradual"])
def test_one_round_is_one_shot(schedule):
    assert rounds(UNIFORM, IterateOptions(schedule=schedule, rounds=1)) == [UNIFORM]


def test_gradual_is_one_round():
    assert rounds(UNIFORM, IterateOptions(schedule="gradual", rounds=5)) == [UNIFORM]


def test_targets():
    assert sparsities(UNIFORM, schedule="targets", targets=(0.5, 0.5, 0.9)) == [0.5, 0.5, 0.9]
    stages = rounds(STD, IterateOptions(schedule="targets", targets=(0.5, 1.5, 1.0)))
    assert [stage.quality for stage in stages] == [0.5, 1.5, 1.0]


@pytest.mark.parametrize(
    ("goal", "options", "message"),
    [
        (UNIFORM, {"targets": (0.5,)}, "take the schedule 'targets'"),
        (UNIFORM, {"targets": (0.5,), "schedule": "gradual"}, "the schedule is 'gradual'"),
        (UNIFORM, {"schedule": "targets"}, "one sparsity or quality factor a round"),
        (UNIFORM, {"schedule": "targets", "targets": (0.9, 0.5)}, "rise from round to round"),
        (UNIFORM, {"schedule": "targets", "targets": (0.5, 1.0)}, "below 1"),
        (LAYERS, {"schedule": "targets", "targets": (0.5,)}, "takes another schedule"),
    ],
)
def test_targets_that_do_not_fit(goal, options, message):
    with pytest.raises(OptionError, match=message):
        rounds(goal, IterateOptions(**options))


def test_between_is_the_geometric_mean_of_densities():
    """0.4 is the mean of 1 and 0.16, 0.2 of 0.4 and 0.1."""
    assert between(None, PruneOptions(sparsity=0.84)).sparsity == pytest.approx(0.6)
    assert between(PruneOptions(sparsity=0.6), PruneOptions(sparsity=0.9)).sparsity == pytest.approx(0.8)
    assert between(None, LAYERS).densities == pytest.approx({"a": 0.5, "b": 1.0})
    sparser = LAYERS.model_copy(update={"densities": {"a": 0.01, "b": 1.0}})
    assert between(LAYERS, sparser).densities == pytest.approx({"a": 0.05, "b": 1.0})


def test_between_quality_factors_is_their_mean():
    assert between(None, STD).quality == pytest.approx(0.4)
    assert between(STD.model_copy(update={"quality": 0.4}), STD).quality == pytest.approx(0.6)
    assert between(STD, STD) is None


def test_between_stays_within_the_structure():
    layers = PruneOptions(criterion="per-layer", densities={"a": 0.36, "b": 0.01}, structure="2:4")
    assert between(None, layers).densities == pytest.approx({"a": 0.5, "b": 0.1})
    assert between(None, PruneOptions(sparsity=0.5, structure="2:4")) is None


def test_target_of():
    assert [target_of(goal) for goal in (UNIFORM, STD, LAYERS)] == [0.936, 0.8, None]
