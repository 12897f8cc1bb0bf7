from xml.etree import ElementTree

from lwc_compiler.report.document import Report
from lwc_compiler.report.junit import to_junit
from tests.report.conftest import NASTY

READ = NASTY.replace("\x07", "\ufffd").replace("\n", "\n")


def test_gates_are_test_cases(whole):
    root = ElementTree.fromstring(to_junit(whole))
    (suite,) = root
    for element in (root, suite):
        assert {name: element.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
            "tests": "4",
            "failures": "1",
            "errors": "0",
            "skipped": "1",
        }
    failed, warned, skipped, passed = suite
    assert failed.get("name") == "max_bytes"
    assert failed.get("classname") == f"lwc.{READ}.host"
    assert failed.find("failure").attrib == {"type": "size", "message": READ}
    assert warned.find("system-out").text == "warning: min_speedup warned"
    assert skipped.find("skipped").get("message") == "max_latency_ms skipped"
    assert skipped.get("classname").endswith(".cortex-m4_x")
    assert [child.tag for child in passed] == ["system-out"]
    assert passed.get("classname") == f"lwc.{READ}"


def test_refused_nodes_are_errors(refused):
    root = ElementTree.fromstring(to_junit(refused))
    assert (root.get("tests"), root.get("errors")) == ("2", "2")
    node, model = root[0]
    assert node.get("name") == f"{READ} (my.Op)"
    assert node.find("error").get("message") == "the operator is not handled"
    assert (model.get("name"), model.find("error").get("message")) == ("compile", "'x' is a sequence")


def test_without_gates_there_are_no_tests():
    assert ElementTree.fromstring(to_junit(Report("net"))).get("tests") == "0"
