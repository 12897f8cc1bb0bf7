import json
import logging

import pytest
from onnx import numpy_helper

from lwc_compiler.errors import ArtifactError, ModelError
from lwc_compiler.model import load_model
from lwc_compiler.passes.prune import prune
from lwc_compiler.recipe.options import PruneOptions
from lwc_compiler.report import write as module
from lwc_compiler.report.plots import files
from lwc_compiler.report.table import Activations
from lwc_compiler.report.write import write_report


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def dense(mlp):
    return load_model(mlp)


@pytest.fixture
def pruned(dense):
    return prune(dense, PruneOptions(sparsity=0.5, keep_first=False))


@pytest.fixture
def without_matplotlib(monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)


def test_a_report_is_a_directory_of_files_that_link_each_other(tmp_path, pruned, dense):
    report = write_report(tmp_path / "report", pruned, dense)
    assert report.total.kept == (16 * 12 + 12 * 4) // 2
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    plots = [name for name in content(tmp_path / "report") if name.startswith("plots/")]
    names = ["density", "histogram", "mask-1", "mask-2"]
    assert sorted(plots) == sorted(f"plots/{name}.{kind}" for name in names for kind in ("png", "svg"))
    assert text.endswith("\n## Plots\n\n" + "\n\n".join(f"![{name}](plots/{name}.svg)" for name in names) + "\n")
    values = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert values["total"]["kept"] == report.total.kept
    assert values["passes"][-1]["pass"] == "prune"


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_report_says_that_it_has_no_plots(tmp_path, pruned, caplog):
    with caplog.at_level(logging.WARNING):
        write_report(tmp_path / "report", pruned)
    assert caplog.messages == ["reports come without plots: install lwc-compiler[plots]"]
    assert sorted(content(tmp_path / "report")) == ["report.json", "report.md"]
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert text.endswith("\nreports come without plots: install lwc-compiler[plots]\n")


@pytest.mark.usefixtures("without_matplotlib")
def test_measured_activations_are_in_the_table(tmp_path, pruned):
    report = write_report(tmp_path / "report", pruned, activations=Activations("ones", {"active": (3, 12)}))
    assert report.layers[0].activation_density == 0.25
    assert "(ones)" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_matplotlib")
def test_a_report_is_replaced_with_force_alone(tmp_path, pruned, dense):
    write_report(tmp_path / "report", dense)
    before = content(tmp_path / "report")
    with pytest.raises(ArtifactError, match="exists: give another place, or --force to replace it"):
        write_report(tmp_path / "report", pruned)
    assert content(tmp_path / "report") == before
    write_report(tmp_path / "report", pruned, force=True)
    assert content(tmp_path / "report") != before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["report"]


@pytest.mark.parametrize("kind", ["file", "other files", "artifact", "link"])
@pytest.mark.usefixtures("without_matplotlib")
def test_force_replaces_nothing_but_reports(tmp_path, pruned, kind):
    place = tmp_path / "mine"
    if kind == "file":
        place.write_text("precious")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
        (place / "report.json").write_text("{}")
        (place / ("manifest.json" if kind == "artifact" else "thesis.tex")).write_text("precious")
    before = content(tmp_path)
    with pytest.raises(
        ArtifactError, match="is not a directory" if kind in ("file", "link") else "is not an lwc report"
    ):
        write_report(place, pruned, force=True)
    assert content(tmp_path) == before


def test_a_write_that_fails_leaves_what_was_there(tmp_path, pruned, dense, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "find_spec", lambda name: None)
        write_report(tmp_path / "report", dense)
    before = content(tmp_path)

    def full(figures, directory):
        directory.mkdir()
        (directory / "half.png").write_bytes(b"half")
        raise ArtifactError("no space left")

    monkeypatch.setattr(module, "save_plots", full)
    with pytest.raises(ArtifactError, match="no space left"):
        write_report(tmp_path / "report", pruned, force=True)
    assert content(tmp_path) == before


@pytest.mark.usefixtures("without_matplotlib")
def test_another_dense_model_is_refused(tmp_path, pruned, dense):
    for tensor in dense.proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), f"other.{tensor.name}"))
    with pytest.raises(
        ModelError, match=r"'mlp' has no weight 'w1', nor any other layer of 'mlp': give the model that"
    ):
        write_report(tmp_path / "report", pruned, dense)
    assert not (tmp_path / "report").exists()
