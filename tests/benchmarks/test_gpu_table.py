"""The tables of `make gpu` have all that was measured, and say which goals are reached."""

from benchmarks.gpu.goals import goals
from benchmarks.gpu.table import markdown

LAYER = {"layer": "1 x 2 x 3", "purpose": "", "precision": "float32", "candidate": "csr", "format": "csr",
         "chosen": True, "predicted_ms": 0.5, "flops": 1e6, "bytes": 1e6, "error": 1e-7}  # fmt: skip


def results(**parts):
    return {
        "made": {"lwc": "1", "target": "h100", "compiler": "NVRTC 13"},
        "missing": {},
        "gpu": {
            "name": "GPU", "driver": "CUDA 13.0", "multiprocessors": 2, "gigahertz": 1.5, "gigabytes_a_second": 2000.0
        },
        "copy_gigabytes_a_second": 1000.0,
        **parts,
    }  # fmt: skip


def test_tables_have_all_that_was_measured() -> None:
    found = results(
        checks=[{"name": "a", "error": 1e-7}, {"name": "b", "error": 0.5, "wrong": "error above 1e-05"}],
        layers=[
            {**LAYER, "name": "n", "ms": 0.01},
            {**LAYER, "name": "o", "candidate": "dense", "chosen": False, "ms": 0.02},
        ],
        networks=[
            {
                "model": "m", "variant": "90", "batch": 1, "precision": "float32", "error": 1e-6,
                "ms": 0.5, "host_ms": 1.0,
                "steps": [["fc", "gpu_gemm", 0.3], ["", "copies", 0.1]],
            },
            {"model": "m", "variant": "90", "batch": 1, "precision": "float16", "wrong": "no memory"},
        ],
        sanitizer={"memcheck": "0 found"},
        torch={
            "layers": [
                {"name": "1 x 2 x 3", "dense float32": 0.02, "dense float16": 0.01, "csr float32 rows": 0.04,
                 "csr float32 columns": 0.03, "2:4 float16 default": "not here | there"},
            ],
            "networks": [
                {"model": "m", "batch": 1, "precision": "float32", "eager_ms": 3.0, "graph_ms": 2.0, "compile": "why"},
                {"model": "m", "batch": 1, "precision": "tf32", "missing": "the time was up"},
            ],
        },
    )  # fmt: skip
    lines = markdown(found).splitlines()
    assert "2 cases, 1 wrong; the largest error is 5.0e-01 of the result's scale." in lines
    assert "| memcheck | 0 found |" in lines
    assert "| m | 90 | 1 | float32 | 1.0e-06 | 0.5 | 1 | 2 | graph | 4.00 |" in lines
    assert "| m | 90 | 1 | float16 | no memory |  |  |  |  |  |" in lines
    assert "| m | 1 | float32 | 3 | 2 |  |  | why |" in lines
    assert "| m | 1 | tf32 |  |  |  |  | the time was up |" in lines
    assert "| m | 1 | float32 | fc | gpu_gemm | 0.3 | 75% |" in lines
    assert "| 1 x 2 x 3 | float32 | csr | 0.01 | 10% | 0.02 | 0.03 |  |" in lines
    assert "| 1 x 2 x 3 | csr * | 1.0e-07 | 0.01 | 0.5 | 100 | 100 |" in lines
    assert "| 1 x 2 x 3 | dense | 1.0e-07 | 0.02 | 0.5 | 50 | 50 |" in lines
    assert "- 1 x 2 x 3, 2:4 float16 default: not here | there" in lines


def test_without_results_no_goal_is_reached() -> None:
    found = goals(results())
    assert {goal.reached for goal in found} == {None}
    assert "0 of 19 are reached. Ratios are of times; more is better." in markdown(results())


def network_goal(ms, torch, **more):
    row = {"model": "resnet50", "variant": "90", "batch": 1, "precision": "float32", "ms": ms, **more}
    beside = {"model": "resnet50", "batch": 1, "precision": "float32", **torch}
    half = {"model": "resnet50", "batch": 1, "precision": "float16", "graph_ms": 0.001}
    found = goals(results(networks=[row], torch={"networks": [half, beside]}))
    (goal,) = (goal for goal in found if goal.reached is not None)
    return goal


def test_goals_of_networks() -> None:
    """PyTorch's fastest way in float32 counts; a wrong result reaches nothing, whatever it takes."""
    goal = network_goal(1.0, {"eager_ms": 4.0, "graph_ms": 2.0, "compile_ms": 1.6})
    assert (goal.name, goal.asked) == ("resnet50, 90 % zeros, batch 1", ">= 1.5 x PyTorch's best float32")
    assert (goal.measured, goal.reached) == ("1.60: 1 ms, 1.6 by compile", True)
    assert not network_goal(1.0, {"graph_ms": 1.49}).reached
    goal = network_goal(1.0, {"graph_ms": 9.0}, wrong="error above 0.0001")
    assert (goal.measured, goal.reached) == ("error above 0.0001", False)


def layer_goals(layers, torch):
    found = goals(results(layers=layers, torch={"layers": torch}))
    return {(goal.name, goal.asked): goal for goal in found if goal.reached is not None}


def test_goals_of_fully_connected_layers() -> None:
    """The best candidate counts; the one that lwc takes is named where it is another."""
    fc = {**LAYER, "layer": "fc", "purpose": "fully connected"}
    slow = {**fc, "ms": 0.004}
    fast = {**fc, "candidate": "wide", "chosen": False, "ms": 0.00125}
    wrong = {**fast, "ms": 0.0001, "wrong": "runs differ"}
    found = layer_goals([slow, fast, wrong], [{"name": "fc", "dense float32": 0.006, "csr float32 vector": "no"}])
    share = found["fc", ">= 70% of a copy's bandwidth"]
    assert (share.measured, share.reached) == ("80%; lwc takes csr, 0.004 ms", True)
    ratio = found["fc", ">= 5 x cuBLAS"]
    assert (ratio.measured, ratio.reached) == ("4.80: 0.00125 ms, 0.006; lwc takes csr, 0.004 ms", False)
    (share, _) = layer_goals([fast], [{"name": "fc", "dense float32": 0.0125}]).values()
    assert share.measured == "80%; lwc takes one that was not timed"


def test_goals_of_single_weights() -> None:
    """Every layer of a batch has to reach it, by cuSPARSE's faster order."""
    names = ("1 x a", "1 x b", "16 x a")
    rows = [{**LAYER, "layer": name, "purpose": "single weights", "ms": 1.0} for name in names]
    torch = [
        {"name": "1 x a", "csr float32 rows": 9.0, "csr float32 columns": 2.0},
        {"name": "1 x b", "csr float32 rows": 8.0},
        {"name": "16 x a", "csr float32 rows": 1.5},
    ]
    one, sixteen = layer_goals(rows, torch).values()
    assert (one.name, one.asked) == ("ResNet-50's 1x1 layers, batch 1", ">= 2 x cuSPARSE, each")
    assert (one.measured, one.reached) == ("2 of 2; least 2.00 (1 x a), geometric mean 4.00", True)
    assert (sixteen.measured, sixteen.reached) == ("0 of 1; least 1.50 (16 x a), geometric mean 1.50", False)
    one, _ = layer_goals(rows, torch[1:]).values()
    assert (one.measured, one.reached) == ("1 of 2; least 8.00 (1 x b), geometric mean 8.00", False)


def test_goals_of_two_of_four() -> None:
    row = {**LAYER, "layer": "big", "purpose": "2:4", "precision": "float16", "ms": 1.0}
    torch = {"name": "big", "dense float16": 1.5, "dense float32": 9.0}
    torch |= {"2:4 float16 default": 1.0, "2:4 float16 searched": 0.8}
    dense, sparse = layer_goals([row], [torch]).values()
    assert (dense.asked, dense.reached) == (">= 1.4 x cuBLAS on every weight", True)
    assert (sparse.asked, sparse.measured, sparse.reached) == (">= 0.9 x cuSPARSELt", "0.80: 1 ms, 0.8", False)


def test_what_measuring_kernels_would_gain() -> None:
    """Of layers with more than one kernel that was timed, the one that is taken among them."""
    other = {**LAYER, "layer": "of one"}
    slow = {**LAYER, "layer": "3 x 4 x 5", "ms": 0.03}
    rows = [
        {**LAYER, "ms": 0.01}, {**LAYER, "chosen": False, "ms": 0.02}, slow, {**slow, "chosen": False, "ms": 0.02},
        {**slow, "precision": "tf32", "chosen": False, "ms": 0.001}, {**other, "ms": 1.0}, {**other, "chosen": False},
    ]  # fmt: skip
    rows = [{"name": "n", **row} for row in rows]
    said = "It takes 25.0% longer than the fastest, on the average of 2 layers, and 50.0% at most."
    assert f"`*`: the one that lwc takes. {said}" in markdown(results(layers=rows)).splitlines()
