from benchmarks.run import measure, table


def test_a_pruned_network_is_timed_beside_both_dense_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("LWC_CACHE", str(tmp_path))
    pruned, dense = (measure("lenet5", threads=1, sparsity=sparsity, seconds=0) for sparsity in (0.9, 0))
    assert pruned["error"] < 1e-4
    assert len({id(pruned[engine]) for engine in ("lwc", "lwc_dense", "onnxruntime")}) == 3
    assert pruned["lwc_dense"]["engine"] == "lwc, not pruned"
    assert dense["lwc_dense"] == dense["lwc"]
    about = {"date": "2026-01-01", "cpu": "cpu", "onnxruntime": "1", "lwc": "1", "python": "3.11"}
    *_, header, _, first, second, _ = table({"machine": about, "rows": [pruned, dense]}).split("\n")
    assert header.count("|") == first.count("|") == second.count("|")
    assert first.startswith("| lenet5 | 1 | 0.9 | ")
    assert second.split(" | ")[4] == second.split(" | ")[5]
