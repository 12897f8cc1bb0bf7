import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from lwc_compiler.errors import ArtifactError
from lwc_compiler.kernels.kernel import Trial
from lwc_compiler.report.activations import measure_activations
from lwc_compiler.report.document import Report, from_json, json_schema, json_text, read_report, to_json
from lwc_compiler.report.table import layer_report, with_lowered
from tests.report.conftest import CHECKED, decision, iterated, lowered

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "report.schema.json"


def retrained(best):
    return {"pass": "retrain", "metric": "accuracy", "best_epoch": best, "history": [{"metric": 0.5}, {"metric": 0.9}]}


def test_json(pruned):
    trials = (Trial("csr 2x3", 9000.0, 1.25e-6), Trial("dense", 8000.0, None))
    chosen = decision("w2", "conv", "why not", *trials)
    merged = with_lowered(layer_report(pruned, measure_activations(pruned)), lowered(chosen), CHECKED)
    content = json.loads(json.dumps(to_json(merged), allow_nan=False))
    assert content["model"] == "net"
    stem, conv, _ = content["layers"]
    assert stem["kept_because"] == "first layer (keep_first)"
    assert stem["decision"] is None
    assert conv["decision"]["format"] == "csr"
    assert conv["decision"]["trials"] == [
        {"name": "csr 2x3", "cycles": 9000.0, "seconds": 1.25e-6},
        {"name": "dense", "cycles": 8000.0, "seconds": None},
    ]
    assert conv["density"] == 29 / 288
    assert conv["flops_kept"] == pytest.approx(conv["density"] * conv["inputs"][0] / conv["inputs"][1])
    assert content["total"]["kept"] == 36 + 29 + 128
    assert content["passes"][0]["pass"] == "prune"
    assert content["sizes"]["library"] == 4


def test_the_published_schema_is_that_of_the_code():
    text = json.dumps(json_schema(), indent=2) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == text, "lwc report schema > docs/report.schema.json"
    Draft202012Validator.check_schema(json_schema())


def test_reports_have_the_published_schema(whole, refused, pruned, artifact):
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    for report in (whole, refused, layer_report(pruned), layer_report(pruned, measure_activations(pruned))):
        validator.validate(json.loads(json_text(report)))
    validator.validate(artifact.report)
    broken = to_json(whole)
    broken["gates"][0]["verdict"] = "perhaps"
    del broken["layers"][0]["density"]
    assert len(list(validator.iter_errors(broken))) == 2


def test_what_is_written_is_read(whole, refused, tmp_path):
    for report in (whole, refused):
        file = tmp_path / "report.json"
        file.write_text(json_text(report), encoding="utf-8")
        assert read_report(file) == read_report(tmp_path) == report


def test_fields_of_a_later_lwc_are_passed_over(whole):
    values = to_json(whole)
    values["mood"] = "good"
    values["layers"][0]["mood"] = "good"
    assert from_json(values) == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no report .*report.json: give an artifact, a report directory or a report.json"),
        ("{", "report.json is no JSON: "),
        ("[]", "report.json has no schema_version; this lwc .* reads reports of schema_version 1"),
        ('{"schema_version": 2}', "report.json has schema_version 2"),
        ('{"schema_version": 1}', "report.json is damaged: model: Field required"),
        ('{"schema_version": 1, "model": "m", "layers": [{"node": 1}]}', "damaged: layers.0.node: "),
        ('{"schema_version": 1, "model": "m", "passes": [{"pass": "iterate"}]}', "damaged: metric: Field required"),
        (
            json.dumps({"schema_version": 1, "model": "m", "passes": [{**retrained(3), "history": []}]}),
            "damaged: passes: the best epoch is not in the history",
        ),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("passes", "quality"),
    [
        ((), None),
        ((iterated(),), ("accuracy", 0.98125, 0.9836)),
        (({**iterated(), "best_round": 0},), ("accuracy", 0.9836, 0.9836)),
        ((retrained(1),), ("accuracy", 0.9, None)),
        ((retrained(0), {"pass": "compact"}), ("accuracy", 0.5, None)),
        ((retrained(1), {"pass": "prune"}), None),
    ],
)
def test_quality_is_that_of_the_last_training(passes, quality):
    found = Report("net", passes=passes).quality
    assert (found and (found.metric, found.value, found.dense)) == quality
