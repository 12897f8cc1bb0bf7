"""Processes that run PyTorch beside lwc: each says what it finds; one that fails costs its own results alone."""

import itertools
import json
import sys
import time

import pytest

from benchmarks.gpu.beside import Beside, Job, Process

NETWORKS = [{"model": "a", "batch": 16}, {"model": "a", "batch": 1}, {"model": "a", "batch": 1}]
# A job's program: waits, and says its name and when it ran.
PROGRAM = """
import json, sys, time
job = sys.argv[sys.argv.index("--torch-job") + 1]
{first}
print("a line that is no JSON")
print(json.dumps({{"ready": True}}), flush=True)
assert sys.stdin.readline() == "go\\n"
start = time.monotonic()
{then}
print(json.dumps({{"job": job, "start": start, "end": time.monotonic()}}), flush=True)
"""


def program(tmp_path, first="", then=""):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(first=first, then=then))
    return [sys.executable, str(path)]


def measured(tmp_path, ready=30.0, until=60.0, **parts):
    with Beside(NETWORKS, program(tmp_path, **parts), ("float32", "float16"), tmp_path) as beside:
        return beside.measure(ready, until)


def test_one_after_the_other(tmp_path) -> None:
    """The first precision's networks, small batches first, the layers, and batch 1 in the other precision."""
    found = measured(tmp_path, then="time.sleep(0.05)")
    assert [(row["job"], row["model"], row["batch"], row["precision"]) for row in found["networks"]] == [
        ("2 float32", "a", 1, "float32"), ("0 float32", "a", 16, "float32"), ("2 float16", "a", 1, "float16")
    ]  # fmt: skip
    (layers,) = found["layers"]
    assert layers["job"] == "layers"
    order = [*found["networks"][:2], layers, found["networks"][2]]
    assert all(before["end"] <= after["start"] for before, after in itertools.pairwise(order))


def test_one_that_compiles_for_too_long_starts_anew(tmp_path) -> None:
    found = measured(tmp_path, ready=4.0, first="if job == '0 float32': time.sleep(100)")
    assert [row["job"] for row in found["networks"]] == ["2 float32", "0 float32 uncompiled", "2 float16"]


def test_one_that_fails_says_why(tmp_path) -> None:
    found = measured(tmp_path, then="if job[0] == '0': sys.exit('no memory left')\nif job == 'layers': 1 / 0")
    assert [row.get("missing") for row in found["networks"]] == [None, "no memory left", None]
    assert found["layers"] == [{"name": "all", "missing": "ZeroDivisionError: division by zero"}]


def test_what_is_found_before_all_are_ready_counts(tmp_path) -> None:
    found = measured(tmp_path, first="print(json.dumps({'compile': 'a graph break'}))")
    assert [row["compile"] for row in found["networks"]] == ["a graph break"] * 3
    assert [row["job"] for row in found["networks"]] == ["2 float32", "0 float32", "2 float16"]


def test_when_the_time_is_up(tmp_path) -> None:
    found = measured(tmp_path, until=4.0, then="time.sleep(100 if job == '0 float32' else 0)")
    assert [row.get("missing") for row in found["networks"]] == [None, "the time was up", "the time was up"]


def test_without_a_gpu_no_results(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="PyTorch has no CUDA here"):
        measured(tmp_path, first="print(json.dumps({'missing': 'PyTorch has no CUDA here'})); sys.exit()")


def test_without_pytorch_no_processes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.beside.importlib.util.find_spec", lambda _: None)
    with (
        Beside(NETWORKS, ["/nonexistent"], ("float32",), tmp_path) as beside,
        pytest.raises(ImportError, match="PyTorch is not installed"),
    ):
        beside.measure(1.0, 1.0)


def test_all_end(tmp_path) -> None:
    """Also those that nobody waited for, and what they started."""
    child = "import subprocess; print(subprocess.Popen(['sleep', '100'], stdout=2).pid, file=sys.stderr, flush=True)"
    process = Process([*program(tmp_path, first=child), "--torch-job", "a"], tmp_path, "a")
    assert process.wait_ready(30.0) is None
    (pid,) = (tmp_path / "a.log").read_text().split()
    process.end()
    end = time.monotonic() + 10
    while time.monotonic() < end and _runs(pid):
        time.sleep(0.01)
    assert not _runs(pid)


def _runs(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_job_waits_once(monkeypatch, capsys) -> None:
    lines = iter(["go\n"])
    monkeypatch.setattr(sys, "stdin", type("Input", (), {"readline": lambda _: next(lines, "")})())
    job = Job()
    job.wait()
    job.wait()
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"ready": True}]
    with pytest.raises(SystemExit):  # the one that started it is gone
        Job().wait()
