import dataclasses

import pytest
from onnx import helper

import lwc_compiler as lwc
from lwc_compiler.errors import DataError
from lwc_compiler.model import save_model
from lwc_compiler.runtime.bench import _summary, bench

SECONDS = 0.01


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("lwc_compiler.runtime.bench._WARM_UP_SECONDS", 0.001)
    monkeypatch.setattr("lwc_compiler.runtime.bench._BLOCK_SECONDS", 0.002)


def test_artifact_alone(artifact):
    result = bench(artifact.directory, seconds=SECONDS)
    (timing,) = result.timings
    assert timing.engine == "lwc"
    assert timing.runs > 5
    assert 0 < timing.min_ms <= timing.median_ms <= timing.p90_ms
    assert result.speedup is result.speedup_spread is None
    assert result.threads == 1


def test_spreads_are_those_of_the_blocks():
    ours = [[0.001, 0.001, 0.009], [0.002], [0.002], [0.003], [0.004]]
    theirs = [[0.004], [0.004], [0.006], [0.009], [0.008]]
    result = _summary(1, {"lwc": ours, "other": theirs}, ())
    assert [timing.spread_ms for timing in result.timings] == pytest.approx([0.5, 2.0])
    assert result.speedup == pytest.approx(6 / 2)
    assert result.speedup_spread == pytest.approx((3 - 2) / 2)  # of 4, 2, 3, 3, 2
    assert result.timings[0].runs == 7


@pytest.mark.parametrize("from_file", [False, True])
def test_against_onnx_runtime(artifact, twice_model, tmp_path, from_file):
    save_model(twice_model, tmp_path / "dense.onnx")
    against = tmp_path / "dense.onnx" if from_file else twice_model
    result = bench(artifact.directory, against=against, threads=2, seconds=SECONDS)
    ours, reference = result.timings
    assert reference.engine.startswith("ONNX Runtime ")
    assert result.speedup == pytest.approx(reference.median_ms / ours.median_ms)
    assert result.threads == 2


def test_layers_of_the_artifact_alone(artifact):
    result = bench(artifact.directory, seconds=SECONDS, layers=True)
    assert [timing.engine for timing in result.timings] == ["lwc"]
    first, second, copies = result.layers
    assert (first.layer, first.kernel, first.density, first.ms) == ("fc", "csr_gemm", 0.5, 3.0)
    assert (second.layer, second.kernel, second.share) == ("", "add", 0.25)
    assert copies.ms == 0
    assert {entry.dense_ms for entry in result.layers} == {None}


@pytest.mark.parametrize("threads", [1, 2])
def test_layers_beside_the_dense_model(mlp, tmp_path, threads):
    lwc.compile(mlp, tmp_path / "mlp.lwc", lwc.Recipe(prune=lwc.PruneOptions(sparsity=0.5, keep_first=False)))
    result = bench(tmp_path / "mlp.lwc", against=mlp, threads=threads, seconds=SECONDS, layers=True)
    assert [timing.engine.split()[0] for timing in result.timings] == ["lwc", "ONNX", "lwc,"]
    assert [entry.layer for entry in result.layers] == ["fc1", "fc2", ""]
    assert all(entry.ms > 0 and entry.dense_ms > 0 for entry in result.layers)
    assert [entry.density is not None and entry.density < 0.6 for entry in result.layers] == [True, True, False]
    assert sum(entry.share for entry in result.layers) == pytest.approx(1)


def renamed(model, change):
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    change(proto.graph)
    return dataclasses.replace(model, proto=proto)


def test_model_with_other_inputs_is_refused(artifact, twice_model):
    def rename(graph):
        graph.input[1].name = graph.node[1].input[0] = "tokens"

    with pytest.raises(DataError, match="has inputs tokens, values, the artifact ids, values"):
        bench(artifact.directory, against=renamed(twice_model, rename), seconds=SECONDS)


def test_model_with_other_shapes_is_refused(artifact, twice_model):
    def enlarge(graph):
        for value in (graph.input[0], graph.output[0]):
            value.CopyFrom(helper.make_tensor_value_info(value.name, 1, [5, 3]))

    with pytest.raises(DataError, match=r"input 'values' of model 'twice' has shape \[5, 3\], .* for \[2, 3\]"):
        bench(artifact.directory, against=renamed(twice_model, enlarge), seconds=SECONDS)
