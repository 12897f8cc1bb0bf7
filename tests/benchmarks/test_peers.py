import numpy as np
import pytest
from onnx import numpy_helper

import benchmarks.peers.__main__ as command
from benchmarks.models import MODELS
from benchmarks.peers.measure import relative_error
from benchmarks.peers.table import best_of, best_peer, markdown, merge, ours, ratio, timing
from benchmarks.variants import make_variant, prune, set_batch


def times(engine, zeros, seconds, error=0.0):
    return timing(engine, zeros, [[value] for value in seconds], error, limited=True)


def row(variant="90", batch=1, timings=()):
    return {
        "model": "lenet5", "variant": variant, "batch": batch, "threads": 1, "isa": "native", "date": "2026-01-01",
        "machine": {"cpu": "cpu", "caches": "L1d 32K", "python": "3.11"}, "versions": {"lwc": "1"}, "missing": {},
        "probe_gflops": [100.0, 90.0], "timings": list(timings),
    }  # fmt: skip


@pytest.mark.parametrize("block", [1, 4])
def test_prune_keeps_the_largest_blocks_and_the_variance(block):
    weight = np.random.default_rng(0).standard_normal((8, 5, 3, 3), np.float32)
    pruned = prune(weight, 0.2, block)
    assert np.count_nonzero(pruned) == round(weight.size / block * 0.2) * block
    zeros = (pruned == 0).reshape(8 // block, block, -1)
    assert (zeros == zeros[:, :1]).all()
    assert np.square(pruned).sum() == pytest.approx(np.square(weight).sum(), rel=1e-5)
    sizes = np.square(weight).reshape(8 // block, block, -1).sum(axis=1)
    assert sizes[~zeros[:, 0]].min() >= sizes[zeros[:, 0]].max()


def test_variants_leave_a_first_convolution_dense_and_follow_the_paper():
    for variant, expected in (("90", [1, 0.1, 0.1, 0.1]), ("han", [0.66, 0.12, 0.08, 0.19])):
        model = MODELS["lenet5"]()
        make_variant(model, "lenet5", variant)
        set_batch(model, 16)
        weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith(".weight")]
        assert [np.count_nonzero(w) / w.size for w in weights] == pytest.approx(expected, abs=0.002)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 16


def test_the_best_peer_is_the_fastest_that_is_right():
    entries = [
        times("lwc", True, [1, 1, 2]),
        times("lwc", False, [0.5, 0.5, 0.5]),
        times("mnn", True, [0.1, 0.1, 0.1], error=0.5),
        times("mnn", False, [4, 4, 4]),
        times("onnxruntime", False, [3, 3, 6]),
    ]
    result = row(timings=entries)
    assert ours(result) is entries[0]
    assert best_of(result, "mnn") is entries[3]
    assert best_peer(result) is entries[4]
    assert ratio(result, entries[4]) == pytest.approx((3, 3, 3))
    assert "| lenet5-90 | 1000 | 500 | **3000** | - | - | 4000 d | - | 3.00x (3.00-3.00) |" in markdown([result])


@pytest.mark.parametrize(("ours", "theirs", "status"), [(0.0, 0.5, 0), (0.5, 0.0, 1)])
def test_a_wrong_output_is_marked_and_only_ours_is_an_error(monkeypatch, capsys, tmp_path, ours, theirs, status):
    rows = [row(timings=[times("lwc", True, [1], ours), times("deepsparse", True, [2], theirs)])]
    monkeypatch.setattr(command, "usable", lambda names: ([], {}))
    monkeypatch.setattr(command, "make_networks", lambda *network: {})
    monkeypatch.setattr(command, "measure", lambda *arguments: rows)
    monkeypatch.setattr("sys.argv", ["peers", "--models", "lenet5", "--batch", "1", "--output", str(tmp_path)])
    if status:
        with pytest.raises(SystemExit, match="lenet5-90, batch 1: off by"):
            command.main()
    else:
        command.main()
    assert ("1000 wrong" if status else "2000 wrong") in capsys.readouterr().out


def test_a_new_row_takes_the_place_of_the_old_one_of_the_same_network_and_no_other():
    old = [row(batch=16), row("dense"), row()]
    new = row(timings=[times("lwc", True, [1])])
    assert merge(old, [new]) == [old[1], new, old[0]]


def test_relative_error_of_outputs_that_cannot_be_compared_is_infinite():
    expected = np.array([[1, -2]], np.float32)
    assert relative_error(np.array([1, -2.5], np.float32), expected) == 0.25
    assert relative_error(np.array([1, np.nan], np.float32), expected) == np.inf
    assert relative_error(np.ones(3, np.float32), expected) == np.inf
