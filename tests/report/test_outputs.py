import json

import pytest

from lwc_compiler.errors import ArtifactError, OptionError
from lwc_compiler.report.document import read_report, to_json
from lwc_compiler.report.outputs import FORMATS, write_outputs

FILES = {
    "json": ["report.json"],
    "markdown": ["report.md"],
    "junit": ["junit.xml"],
    "sarif": ["report.sarif"],
    "html": ["report.html"],
    "badges": ["badges/accuracy.svg", "badges/size.svg", "badges/speedup.svg", "badges/gates.svg"],
}


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_format_has_its_files(whole, refused, tmp_path):
    assert set(FILES) == set(FORMATS)
    for name, report in {"whole": whole, "refused": refused}.items():
        for kind, files in FILES.items():
            folder = tmp_path / f"{name}-{kind}"
            assert write_outputs(to_json(report), folder, [kind]) == [folder / file for file in files]
            assert sorted(content(folder)) == sorted(files)


def test_the_report_that_is_written_is_the_report(whole, tmp_path):
    values = json.loads(json.dumps(to_json(whole)))
    write_outputs(values, tmp_path, ["json"])
    assert read_report(tmp_path) == whole
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == values


def test_the_same_report_gives_the_same_bytes(whole, tmp_path):
    for folder in ("first", "again"):
        write_outputs(to_json(whole), tmp_path / folder, FORMATS)
    assert content(tmp_path / "first") == content(tmp_path / "again")


def test_an_artifact_s_report_can_be_written(artifact, tmp_path):
    paths = write_outputs({**artifact.report, "gates": []}, tmp_path / "out", FORMATS)
    assert all(path.stat().st_size for path in paths)


def test_what_cannot_be_written_is_refused_whole(whole, tmp_path):
    with pytest.raises(OptionError, match="there is no report format 'pdf': choose from json, markdown"):
        write_outputs(to_json(whole), tmp_path / "out", ["json", "pdf"])
    with pytest.raises(ArtifactError, match="report has no schema_version"):
        write_outputs({"model": "net"}, tmp_path / "out", ["json"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("precious")
    with pytest.raises(ArtifactError, match=r"cannot write .*out"):
        write_outputs(to_json(whole), tmp_path / "out", ["json"])
    assert (tmp_path / "out").read_text() == "precious"
