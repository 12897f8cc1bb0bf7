import json
import math
from dataclasses import replace

import pytest

from lwc_compiler.errors import ArtifactError, OptionError
from lwc_compiler.sparsity.allocation import Budget
from lwc_compiler.sparsity.curves import Point, Sensitivity, SiteCurve, Suggestion, load_sensitivity

CONV = SiteCurve(
    *("conv.weight", ("conv",), "Conv", (8, 4, 3, 3), 288, 28800),
    (Point(1.0, 0.1, 0.99), Point(0.5, 0.2, 0.985, 0.6), Point(0.3, 0.5, 0.9, 1.1), Point(0.1, 0.4, 0.985, 1.6)),
)
FC = SiteCurve(
    *("fc.weight", ("fc", "fc_again"), "Gemm", (10, 40), 400, 800),
    (Point(1.0, 0.1, 0.99), Point(0.5, 0.11, 0.99, 0.5), Point(0.1, 0.2, 0.8, 1.5)),
)
FOUND = Sensitivity("net", "accuracy", "element", "magnitude", 1000, Point(1.0, 0.1, 0.99), (CONV, FC))
LOSSES = replace(
    FOUND,
    metric="loss",
    dense=Point(1.0, 0.0, None),
    sites=(replace(FC, points=(Point(1.0, 0.0, None), Point(0.5, 0.01, None, 0.5), Point(0.1, 1.0, None, 1.5))),),
)


def test_json_and_back(tmp_path):
    suggestion = Suggestion(Budget("density", 0.3), {"fc.weight": 0.1}, {"fc.weight": 1.5})
    FOUND.save(tmp_path / "found.json", suggestion)
    assert load_sensitivity(tmp_path / "found.json") == FOUND
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["suggestion"]["budget"] == {"kind": "density", "limit": 0.3}
    assert written["sites"][1]["points"][2] == {"density": 0.1, "loss": 0.2, "accuracy": 0.8, "quality": 1.5}
    assert Sensitivity.from_json(LOSSES.to_json()) == LOSSES


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sites": [{"weight": 1}]}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(OptionError, match=r"other\.json"):
        load_sensitivity(tmp_path / "other.json")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="cannot write"):
        FOUND.save(tmp_path / "missing" / "found.json")


def test_the_lowest_density_that_holds_comes_before_the_first_that_does_not():
    # The accuracy at 0.1 is good again, but not that at 0.3.
    assert FOUND.lowest_held(CONV).density == 0.5
    assert FOUND.lowest_held(CONV, 0.0).density == 1.0
    assert FOUND.lowest_held(CONV, 0.1).density == 0.1
    assert FOUND.lowest_held(FC, 0.0).density == 0.5
    # 1 % of the way to the highest loss.
    assert LOSSES.lowest_held(LOSSES.sites[0]).density == 0.5
    assert LOSSES.lowest_held(LOSSES.sites[0], 0.005).density == 1.0


def test_densities_for_a_budget():
    found = FOUND.densities(Budget("density", 0.4))
    assert set(found) == {"conv.weight", "fc.weight"}
    assert math.isclose(288 * found["conv.weight"] + 400 * found["fc.weight"], 0.4 * 688, rel_tol=1e-6)
    assert FOUND.densities(Budget("density", 0.4), ["fc.weight"]) == pytest.approx({"fc.weight": 0.4})


def test_densities_are_within_the_structure():
    found = replace(FOUND, structure="2:4").densities(Budget("density", 0.4))
    assert all(density <= 0.5 for density in found.values())
    assert math.isclose(288 * found["conv.weight"] + 400 * found["fc.weight"], 0.4 * 688, rel_tol=1e-6)


def test_a_curve_is_for_one_weight_structure_and_score():
    curve = FOUND.curve("fc.weight", (10, 40), "element", "magnitude")
    assert (curve.points, curve.size, curve.flops) == ({1.0: 0.1, 0.5: 0.11, 0.1: 0.2}, 400, 800)
    with pytest.raises(OptionError, match=r"no weight 'fc\.weight' of shape \(10, 39\)"):
        FOUND.curve("fc.weight", (10, 39), "element", "magnitude")
    with pytest.raises(OptionError, match=r"structure 'element' .* takes '2:4'"):
        FOUND.curve("fc.weight", (10, 40), "2:4", "magnitude")
    with pytest.raises(OptionError, match="scan again"):
        FOUND.curve("fc.weight", (10, 40), "element", "activation")


def test_the_table():
    columns, rows = FOUND.cells()
    shown = [f"accuracy % at {density}" for density in (0.5, 0.3, 0.1)]
    assert columns == ["layer", "weights", *shown, "holds to", "quality"]
    assert rows == [
        ["conv.weight", "288", "98.50", "90.00", "98.50", "0.5", "0.60"],
        ["fc.weight", "400", "99.00", "-", "80.00", "0.5", "0.50"],
    ]
    suggestion = Suggestion(Budget("density", 0.3), {"fc.weight": 0.123}, {"fc.weight": 1.5})
    columns, rows = FOUND.cells(suggestion)
    assert columns[-2:] == ["suggested", "its quality"]
    assert [row[-2:] for row in rows] == [["-", "-"], ["0.123", "1.50"]]
    assert "| fc.weight | 400 | 99.00 | - | 80.00 | 0.5 | 0.50 |\n" in FOUND.to_markdown()
    assert LOSSES.cells()[1] == [["fc.weight", "400", "0.01", "1", "0.5", "0.50"]]
