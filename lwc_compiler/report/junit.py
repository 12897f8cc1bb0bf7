"""A report as JUnit XML: gates, and refused nodes, as test cases that CI systems show."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from lwc_compiler.gates import GateResult
from lwc_compiler.report.document import Report

# XML 1.0 has no way to write these.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: Report) -> str:
    """The content of `junit.xml`.

    A gate that warned has passed, and says so in `system-out`: JUnit knows no warning. A refused node is an error.
    """
    cases = [_refused(report, each.node, each.operator, each.reason) for each in report.refused]
    cases += [_gate(report, gate) for gate in report.gates]
    count = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    counts = {name: str(number) for name, number in count.items()}
    root = ElementTree.Element("testsuites", {"name": "lwc", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _text(report.model), **counts})
    suite.extend(cases)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _gate(report: Report, gate: GateResult) -> ElementTree.Element:
    case = _case(report, gate.name, gate.target)
    if gate.verdict == "failed":
        ElementTree.SubElement(case, "failure", {"type": gate.kind, "message": _text(gate.message)})
    elif gate.verdict == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": _text(gate.message)})
    else:
        prefix = "warning: " if gate.verdict == "warned" else ""
        ElementTree.SubElement(case, "system-out").text = prefix + _text(gate.message)
    return case


def _refused(report: Report, node: str, operator: str, reason: str) -> ElementTree.Element:
    case = _case(report, f"{node} ({operator})" if node else "compile", "")
    ElementTree.SubElement(case, "error", {"type": "unsupported", "message": _text(reason)})
    return case


def _case(report: Report, name: str, target: str) -> ElementTree.Element:
    # Viewers split class names at dots.
    parts = [part.replace(".", "_") for part in ("lwc", report.model, target) if part]
    return ElementTree.Element("testcase", {"classname": _text(".".join(parts)), "name": _text(name)})


def _text(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
