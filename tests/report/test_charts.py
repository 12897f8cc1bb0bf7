import math

import pytest

from lwc_compiler.report.charts import density_chart
from lwc_compiler.report.plots import Curve

SIZE = (300, 200)


def chart(curves, metric="accuracy", dense=0.98, depth=0.05, beside=()):
    return density_chart(curves, metric, dense, depth=depth, size=SIZE, beside=beside)


def test_more_pruning_is_to_the_right_and_better_is_above():
    found = chart([Curve("a", [1.0, 0.1, 0.01], [0.98, 0.97, 0.5], missed=[False, False, True])])
    marks = found.lines["a"]
    first, second, third = marks
    assert first.x == found.left
    assert third.x == found.right
    assert second.x == pytest.approx((found.left + found.right) / 2)
    assert found.top < first.y < second.y < found.bottom < third.y
    assert found.dense == first.y
    assert [mark.missed for mark in marks] == [False, False, True]
    assert second.text == "10 % kept: 97.00 %"
    assert found.summary.endswith("a: 100 % kept: 98.00 %, 10 % kept: 97.00 %, 1 % kept: 50.00 %")


def test_ticks_are_round_numbers_inside_the_frame():
    found = chart([Curve("a", [1.0, 0.3, 0.03], [0.981, 0.972, 0.953])])
    assert [tick.text for tick in found.y_ticks] == ["96", "97", "98"]
    for tick in found.y_ticks:
        assert found.top <= tick.at <= found.bottom
    for tick in found.x_ticks:
        assert found.left <= tick.at <= found.right
    places = {float(tick.text): tick.at for tick in found.x_ticks}
    assert list(places) == sorted(places, reverse=True)
    assert list(places.values()) == sorted(places.values())


@pytest.mark.parametrize(("metric", "best", "worst"), [("error", 0.01, 0.9), ("accuracy", 0.99, 0.1)])
def test_fractions_are_shown_from_the_best_on(metric, best, worst):
    found = chart([Curve("a", [1.0, 0.1], [best, worst])], metric, dense=best)
    inside, outside = found.lines["a"]
    assert found.top <= inside.y <= found.bottom
    assert not found.top <= outside.y <= found.bottom


def test_a_loss_is_shown_whole():
    found = chart([Curve("a", [1.0, 0.1], [0.1, 40.0])], "loss", dense=0.1)
    assert all(found.top <= mark.y <= found.bottom for mark in found.lines["a"])
    assert found.metric == "loss"


def test_charts_beside_each_other_share_their_axes():
    one, other = Curve("a", [1.0, 0.5], [0.98, 0.97]), Curve("b", [1.0, 0.01], [0.98, 0.94])
    left, right = (chart([curve], beside=[one, other]) for curve in (one, other))
    assert (left.x_ticks, left.y_ticks, left.dense) == (right.x_ticks, right.y_ticks, right.dense)


@pytest.mark.parametrize(
    "curve",
    [
        Curve("a", [1.0], [0.98]),
        Curve("a", [0.0], [0.1]),
        Curve("a", [1.0, 0.1], [math.nan, math.inf]),
        Curve("a", [0.5, 0.5], [0.98, 0.98]),
    ],
    ids=["one point", "nothing kept", "no numbers", "all the same"],
)
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_odd_curves_have_finite_places(curve, metric):
    found = chart([curve], metric)
    places = [place for mark in found.lines["a"] for place in (mark.x, mark.y)]
    places += [tick.at for tick in (*found.x_ticks, *found.y_ticks)] + [found.dense]
    assert all(math.isfinite(place) for place in places)
