"""Steps are done once, go on after an interruption, and are not mixed with others."""

import json

import pytest

from lwc_compiler.errors import ArtifactError
from lwc_compiler.reproduce.networks import he_normal, lenet_300_100
from lwc_compiler.reproduce.steps import take_step, write_text


@pytest.fixture
def model():
    return lenet_300_100(he_normal(0), pixels=4)


def test_step_is_done_once(tmp_path, model):
    calls = []

    def work(folder):
        calls.append(folder)
        folder.mkdir()
        (folder / "checkpoint").write_text("")
        return model

    first = take_step(tmp_path / "a" / "b", {"epochs": 3, "ratio": (1, 2)}, work)
    again = take_step(tmp_path / "a" / "b", {"epochs": 3, "ratio": (1, 2)}, work)
    assert len(calls) == 1
    assert first == again
    assert first.settings == {"epochs": 3, "ratio": [1, 2]}
    assert not first.interrupted
    assert first.load().proto.graph.initializer == model.proto.graph.initializer
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "done.json",
        "model.onnx",
        "settings.json",
    ]


def test_interrupted_step_goes_on_where_it_was(tmp_path, model):
    def interrupted(folder):
        folder.mkdir()
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    def goes_on(folder):
        assert (folder / "checkpoint").read_text() == "half"
        return model

    with pytest.raises(KeyboardInterrupt):
        take_step(tmp_path / "step", {}, interrupted)
    step = take_step(tmp_path / "step", {}, goes_on)
    assert step.interrupted
    assert json.loads((tmp_path / "step" / "done.json").read_text())["interrupted"]


def test_other_settings_are_refused(tmp_path, model):
    take_step(tmp_path / "step", {"epochs": 3}, lambda folder: model)
    before = (tmp_path / "step" / "model.onnx").read_bytes()
    with pytest.raises(ArtifactError, match=r"step holds a step with other settings .* delete it, or give another"):
        take_step(tmp_path / "step", {"epochs": 4}, lambda folder: pytest.fail("done again"))
    assert (tmp_path / "step" / "model.onnx").read_bytes() == before


def test_folder_that_cannot_be_made_is_an_error(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot keep results in"):
        take_step(tmp_path / "file" / "step", {}, lambda folder: model)


def test_text_replaces_a_file_whole(tmp_path):
    write_text(tmp_path / "a", "one")
    write_text(tmp_path / "a", "two")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["two"]
