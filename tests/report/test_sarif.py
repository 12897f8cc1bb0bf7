import json

import pytest
from pydantic import ValidationError
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Sarif

from lwc_compiler.errors import Refusal
from lwc_compiler.report.document import Report
from lwc_compiler.report.sarif import to_sarif
from tests.report.conftest import NASTY


def test_refused_nodes_are_results(refused):
    log = json.loads(json.dumps(to_sarif(refused)))
    read = Sarif.model_validate(log)
    (run,) = read.runs
    assert (run.tool.driver.name, run.tool.driver.version) == ("lwc", refused.lwc_version)
    node, model = run.results
    rules = [rule.id for rule in run.tool.driver.rules]
    assert [rules[result.ruleIndex] for result in run.results] == ["refused-node", "refused-model"]
    assert [result.ruleId for result in run.results] == ["refused-node", "refused-model"]
    text = node.message.text.replace("{{", "{").replace("}}", "}")
    assert text == f"node '{NASTY}' (my.Op): the operator is not handled"
    assert "{" not in node.message.text.replace("{{", "")  # no placeholders
    assert node.locations[0].logicalLocations[0].name == NASTY
    assert model.message.text == "'x' is a sequence"
    assert not model.locations[0].logicalLocations


@pytest.mark.parametrize(
    ("source", "uri"),
    [("models/net 1#2.onnx", "models/net%201%232.onnx"), ("", "net.onnx"), ("net:1.onnx", "net%3A1.onnx")],
)
def test_a_result_is_in_the_file_of_the_model(source, uri):
    log = to_sarif(Report("net", source=source, refused=(Refusal("", "", "why"),)))
    place = Sarif.model_validate(log).runs[0].results[0].locations[0].physicalLocation.artifactLocation
    assert (place.uri, place.uriBaseId) == (uri, "%SRCROOT%")


def test_results_keep_their_fingerprints_and_tell_nodes_apart():
    refusals = tuple(Refusal(node, "Op", "why") for node in ("a", "b"))
    prints = [one["partialFingerprints"] for one in to_sarif(Report("m", refused=refusals))["runs"][0]["results"]]
    again = to_sarif(Report("m", refused=refusals[::-1]))["runs"][0]["results"]
    assert prints[0] != prints[1]
    assert prints == [one["partialFingerprints"] for one in again[::-1]]


def test_a_model_that_compiles_has_no_results(whole):
    log = to_sarif(whole)
    assert Sarif.model_validate(log).runs[0].results == []


def test_the_structure_that_is_checked_against_refuses_others(refused):
    log = to_sarif(refused)
    log["runs"][0]["results"][0]["colour"] = "red"
    with pytest.raises(ValidationError, match="colour"):
        Sarif.model_validate(log)
