"""The schedules are complete: every stage has a start, and a goal that its rounds reach."""

import pytest

import lwc_compiler as lwc
from lwc_compiler.reproduce.measure import count
from lwc_compiler.reproduce.networks import BUILDERS, he_normal
from lwc_compiler.reproduce.schedules import SCHEDULES
from lwc_compiler.sparsity.schedule import rounds


@pytest.mark.parametrize("network", SCHEDULES)
def test_stages_follow_each_other_and_reach_their_goal(network):
    dense = BUILDERS[network](he_normal(0))
    done = ["dense"]
    for stage in SCHEDULES[network].stages:
        assert stage.start in done
        assert stage.name not in done
        done.append(stage.name)
        if stage.rounds is None:
            assert stage.retrain.codebook
            continue
        goal, iterate = stage.rounds
        # Every round takes more, and the last one keeps what the name promises.
        counts = [count(lwc.prune(dense, part))[:2] for part in rounds(goal, iterate)]
        kept = [kept for _, kept in counts]
        assert kept == sorted(set(kept), reverse=True)
        weights = counts[-1][0]
        promised = weights / float(stage.name.partition("x")[0])
        assert 0.9 * promised <= kept[-1] <= promised


@pytest.mark.parametrize("network", SCHEDULES)
def test_curves_have_names_of_their_own_and_falling_densities(network):
    plan = SCHEDULES[network].figure_5
    assert len({variant.name for variant in plan.variants}) == len(plan.variants) == 6
    assert list(plan.sparsities) == sorted(set(plan.sparsities))
    assert plan.l1.l1 > 0
    for variant in plan.variants:
        assert variant.retrain is None or (variant.retrain.l1 > 0) != (variant.retrain.weight_decay > 0)
