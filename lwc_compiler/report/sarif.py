"""A report as SARIF 2.1.0: why a model cannot be compiled, for viewers of code analysis.

The nodes of a model have no lines: a result is in the first line of the model's file, and names its node as a logical
location. A model that can be compiled gives a log without results, which closes what an earlier one opened.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from lwc_compiler.errors import Refusal
from lwc_compiler.report.document import Report

_RULES = {
    "refused-node": "The node cannot be compiled",
    "refused-model": "The model cannot be compiled",
}


def to_sarif(report: Report) -> dict[str, Any]:
    """The content of `report.sarif`."""
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "lwc",
                        "version": report.lwc_version,
                        "rules": [
                            {
                                "id": rule,
                                "shortDescription": {"text": f"{text}."},
                                "defaultConfiguration": {"level": "error"},
                            }
                            for rule, text in _RULES.items()
                        ],
                    }
                },
                "results": [_result(refusal, _uri(report)) for refusal in report.refused],
            }
        ],
    }


def sarif_text(report: Report) -> str:
    """`report.sarif` as text."""
    return json.dumps(to_sarif(report), indent=2, ensure_ascii=False) + "\n"


def _result(refusal: Refusal, uri: str) -> dict[str, Any]:
    rule = "refused-node" if refusal.node else "refused-model"
    # Some viewers show nothing without a line.
    place = {"artifactLocation": {"uri": uri, "uriBaseId": "%SRCROOT%"}, "region": {"startLine": 1}}
    location: dict[str, Any] = {"physicalLocation": place}
    text = refusal.reason
    if refusal.node:
        location["logicalLocations"] = [
            {"name": refusal.node, "fullyQualifiedName": f"{refusal.operator}:{refusal.node}", "kind": "element"}
        ]
        text = f"node '{refusal.node}' ({refusal.operator}): {text}"
    return {
        "ruleId": rule,
        "ruleIndex": list(_RULES).index(rule),
        "level": "error",
        # Braces hold placeholders (section 3.11.5), unless they are doubled.
        "message": {"text": text.replace("{", "{{").replace("}", "}}")},
        "locations": [location],
        "partialFingerprints": {"node/v1": f"{refusal.operator}:{refusal.node}:{refusal.reason}"},
    }


def _uri(report: Report) -> str:
    return quote(PurePath(report.source or f"{report.model}.onnx").as_posix())
