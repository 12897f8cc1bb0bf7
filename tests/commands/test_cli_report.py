"""`lwc report`, `lwc report diff` and `--sarif`."""

import json
from dataclasses import asdict
from pathlib import Path

import onnx
from jsonschema import Draft202012Validator

from lwc_compiler.commands import report as cli_report
from lwc_compiler.report.document import json_schema, read_report
from lwc_compiler.report.outputs import FORMATS
from lwc_compiler.runtime.timing import Bench, Timing
from lwc_compiler.sparsity.curves import Point, Sensitivity


def test_the_formats_are_those_that_there_are():
    (option,) = [option for option in cli_report.write.params if option.name == "formats"]
    assert tuple(option.type.choices) == FORMATS


def test_reports_of_an_artifact_in_every_format(lwc, mlp, tmp_path):
    first, second, out = tmp_path / "first", tmp_path / "second.lwc", tmp_path / "out"
    assert lwc("report", "--format", "json", mlp, "-o", first).code == 0
    assert lwc("compile", mlp, "-o", second, "--sparsity", "0.9", "--prune-first", "--target", "x86-64-v3").code == 0
    scan, times = tmp_path / "scan.json", tmp_path / "times.json"
    point = Point(1.0, 0.5, None)
    Sensitivity("mlp", "loss", "element", "magnitude", 8, point, ()).save(scan)
    bench = Bench(1, (Timing("lwc", 3, 0.5, 0.4, 0.6, 0.1),), None, None)
    times.write_text(json.dumps(asdict(bench)), encoding="utf-8")
    formats = [word for name in ("json", "html", "junit", "sarif", "badges") for word in ("--format", name)]
    done = lwc("report", second, "-o", out, *formats, "--times", times, "--sensitivity", scan)
    assert (done.code, done.err) == (0, "")
    assert "fc1" in done.out
    names = {"report.json", "report.html", "junit.xml", "report.sarif", "badges"}
    assert {path.name for path in out.iterdir()} == names
    Draft202012Validator(json_schema()).validate(json.loads((second / "report.json").read_text(encoding="utf-8")))
    found = read_report(out)
    assert (found.times, found.sensitivity.dense) == (bench, point)
    assert found.target == "x86-64-v3"
    assert lwc("report", out, "-o", out, "--force").code == 0
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md"}
    assert read_report(out) == found
    for arguments in (("--dense", mlp), ("--data", "data.npz")):
        done = lwc("report", second, "-o", out, "--force", *arguments)
        assert (done.code, "second.lwc is a report already" in done.err) == (2, True)
    done = lwc("report", second, "-o", out, "--force", "--times", scan)
    assert (done.code, "is not what `lwc bench --json` prints" in done.err) == (9, True)

    done = lwc("report", "diff", first, second)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("mlp -> mlp for x86-64-v3\n")
    assert "fc1: weights kept" in done.out
    values = json.loads(lwc("report", "diff", first, second / "report.json", "--json").out)
    kept = [change for change in values["changes"] if (change["name"], change["field"]) == ("fc1", "weights kept")]
    assert [(change["before"], change["after"]) for change in kept] == [(192, 19)]
    assert "| fc1: weights kept | 192 | 19 | -90.1 % |" in lwc("report", "diff", first, out, "--markdown").out
    assert lwc("report", "diff", first, first).out == "nothing differs\n"
    done = lwc("report", "diff", first, tmp_path / "none")
    assert (done.code, "there is no report" in done.err) == (9, True)


def test_a_refused_model_leaves_sarif_and_a_fine_one_clears_it(lwc, mlp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    proto = onnx.load(mlp)
    proto.graph.node[1].op_type = "NonZero"
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    (tmp_path / "models").mkdir()
    onnx.save(proto, "models/bad.onnx")
    for command in ("compile", "lower"):
        done = lwc(command, "models/bad.onnx", "-o", "bad.lwc", "--sarif", f"{command}.sarif")
        assert done.code == 4
        (run,) = json.loads(Path(f"{command}.sarif").read_text(encoding="utf-8"))["runs"]
        place = run["results"][0]["locations"][0]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "models/bad.onnx"
        assert place["logicalLocations"][0]["name"] == "relu"
        assert not Path("bad.lwc").exists()
    done = lwc("lower", mlp, "-o", "good.lwc", "--target", "x86-64-v3", "--sarif", "lower.sarif")
    assert (done.code, "exists" in done.err) == (9, True)
    done = lwc("lower", mlp, "-o", "good.lwc", "--target", "x86-64-v3", "--sarif", "lower.sarif", "--force")
    assert done.code == 0
    assert json.loads(Path("lower.sarif").read_text(encoding="utf-8"))["runs"][0]["results"] == []


def test_the_schema_is_printed(lwc):
    assert json.loads(lwc("report", "schema").out) == json_schema()


def test_other_errors_are_no_refusal(lwc, mlp, tmp_path):
    done = lwc("compile", mlp, "-o", tmp_path / "net.lwc", "--target", "nowhere", "--sarif", tmp_path / "net.sarif")
    assert done.code == 7
    assert list(tmp_path.glob("*.sarif")) == []
