"""The fastest kernel is picked by measurement, once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lwc_compiler.codegen import tune
from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.kernels.choice import Candidate, Task, predicted
from lwc_compiler.kernels.conv import plan_conv
from lwc_compiler.kernels.kernel import Plan
from lwc_compiler.kernels.layer import ConvGeometry, Epilogue
from lwc_compiler.targets import find_target

HOST = find_target("host")
GEOMETRY = ConvGeometry(1, 32, (28, 28), 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
TASK = Task("a layer", 0.1, (4 * 32 * 28 * 28,), 4 * 64 * 28 * 28)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LWC_CACHE", str(tmp_path / "lwc"))
    return tmp_path / "lwc"


def weight(density: float = 0.1) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.standard_normal((64, 32, 3, 3), np.float32) * (generator.random((64, 32, 3, 3)) < density)


def candidates(built: list[str]) -> list[Candidate]:
    """What a convolution offers, each noting when it is built; all are predicted to be worth a measurement."""
    offered: list[Candidate] = []

    def note(task: Task, found: list[Candidate]) -> Plan:
        offered.extend(found)
        return found[0].build()

    plan_conv(weight(), GEOMETRY, Epilogue(), HOST, note)

    def noting(candidate: Candidate) -> Candidate:
        def build() -> Plan:
            built.append(candidate.name)
            return candidate.build()

        return replace(candidate, build=build, cycles=candidate.cycles + 1e6)

    return [noting(candidate) for candidate in offered]


def test_takes_the_fastest_and_says_what_was_measured() -> None:
    plan = tune.Tuner(HOST, 4, find_compiler())(TASK, candidates([]))
    assert len(plan.trials) == 4
    seconds = [trial.seconds for trial in plan.trials]
    assert all(s is not None and 0 < s < 1 for s in seconds)
    assert seconds == sorted(seconds)
    assert "measured fastest" in plan.why


@pytest.mark.parametrize("measured", [False, True])
def test_tiles_that_threads_share_unevenly_cost_more(measured: bool) -> None:
    pick = tune.Tuner(HOST, 4, find_compiler()) if measured else predicted
    offered = candidates([])[:4]
    best = pick(TASK, offered).trials[0].name
    uneven = [replace(candidate, uneven=100.0 if candidate.name == best else 1.0) for candidate in offered]
    assert pick(TASK, uneven).trials[0].name != best


def test_measures_a_layer_once() -> None:
    first = tune.Tuner(HOST, 4, find_compiler())(TASK, candidates([]))
    built: list[str] = []
    second = tune.Tuner(HOST, 4, find_compiler())(TASK, candidates(built))
    assert built == [first.trials[0].name]
    assert second.trials == first.trials


def test_another_density_is_another_layer() -> None:
    tuner = tune.Tuner(HOST, 2, find_compiler())
    tuner(TASK, candidates([]))
    built: list[str] = []
    tuner(replace(TASK, density=0.3), candidates(built))
    assert len(built) == 2


@pytest.mark.parametrize("contents", ["", "[", "[]", '{"other machine": 3}', '{"other machine": {}}'])
def test_a_damaged_or_foreign_cache_is_no_harm(cache: Path, contents: str) -> None:
    tuner = tune.Tuner(HOST, 2, find_compiler())
    tuner(TASK, candidates([]))
    (file,) = cache.iterdir()
    file.write_text(contents, encoding="utf-8")
    plan = tune.Tuner(HOST, 2, find_compiler())(TASK, candidates([]))
    assert len(plan.trials) == 2
    assert len(json.loads(file.read_text(encoding="utf-8"))) == (2 if "{}" in contents else 1)


def test_a_cache_that_cannot_be_written_is_no_harm(cache: Path) -> None:
    cache.write_text("a file where the folder should be", encoding="utf-8")
    tuner = tune.Tuner(HOST, 2, find_compiler())
    first = tuner(TASK, candidates([]))
    assert len(first.trials) == 2
    assert tuner(TASK, candidates([])).trials == first.trials  # a layer that comes again is not measured again


def test_short_layers_are_not_measured(cache: Path) -> None:
    short = [replace(candidate, cycles=100.0) for candidate in candidates([])]
    plan = tune.Tuner(HOST, 4, find_compiler())(TASK, short)
    assert all(trial.seconds is None for trial in plan.trials)
    assert not cache.exists()


def test_kernels_that_are_timed_compute_the_layer() -> None:
    plan = tune.Tuner(HOST, 3, find_compiler())(TASK, candidates([]))
    x = np.random.default_rng(1).standard_normal(GEOMETRY.in_shape, np.float32)
    with tune.Library([plan], HOST, find_compiler()) as library:
        run, result = library.runner(0, [x.reshape(-1)], TASK.output)
        run()
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = np.einsum("nchwrs,ocrs->nohw", windows, weight().astype(np.float64))
    np.testing.assert_allclose(
        result.view(np.float32).reshape(expected.shape), expected, atol=1e-5 * abs(expected).max()
    )
