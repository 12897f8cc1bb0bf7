"""A whole run of a recipe: one model, pruned and retrained once, compiled for every target, measured, and judged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lwc_compiler.errors import ArtifactError, DataError, LwcError, OptionError
from lwc_compiler.figures import Figures, Speed, TargetFigures, read_figures
from lwc_compiler.files import check_place, sha256_of, written_whole
from lwc_compiler.gates import GateResult, judge, raise_failed
from lwc_compiler.model import Model, load_model
from lwc_compiler.passes.fit import bytes_of
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.passes.pipeline import check_complete, check_lowerable, make_artifact, pruned_and_retrained, timed
from lwc_compiler.passes.reuse import Reuse
from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.report.document import read_report, source_of, to_json
from lwc_compiler.report.outputs import write_outputs
from lwc_compiler.runtime.artifact import Artifact, read_artifact
from lwc_compiler.targets import find_target, host_cpu, missing_features
from lwc_compiler.training.data import is_function

if TYPE_CHECKING:
    from lwc_compiler.recipe.build import BuildRecipe, GateOptions, TargetOptions
    from lwc_compiler.runtime.timing import Bench
    from lwc_compiler.targets.target import Target
    from lwc_compiler.training.progress import Progress
    from lwc_compiler.training.quality import Judge

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Build:
    """What a run made.

    Attributes:
        directory: where it is.
        artifacts: name of a target -> its artifact.
        packed: the packed file; None where none was asked for.
        figures: what was measured.
        gates: what became of each gate.
    """

    directory: Path
    artifacts: Mapping[str, Artifact]
    packed: Path | None
    figures: Figures
    gates: tuple[GateResult, ...]

    def check(self) -> None:
        """Raises the error of the gates that failed.

        Raises:
            GateError: a gate failed; the class says of which kind.
        """
        raise_failed(self.gates, f"; the results are in {self.directory} all the same")

    @property
    def report(self) -> dict[str, Any]:
        """What `report.json` holds: the report of the first target, with the figures and gates of the run."""
        return to_json(read_report(self.directory))


@dataclass(frozen=True)
class Checked:
    """A recipe of which nothing is known to stand in the way.

    Attributes:
        recipe: the recipe.
        directory: what it will write.
        original: the model before pruning, normalized.
        targets: name -> target, complete.
    """

    recipe: BuildRecipe
    directory: Path
    original: Model
    targets: Mapping[str, TargetOptions]


def check_recipe(recipe: BuildRecipe, directory: Path | None, *, force: bool) -> Checked:
    """Refuses what can be refused without long work: nothing is measured, and data is not read.

    Args:
        recipe: what to do.
        directory: what to write; None: what the recipe says.
        force: replace the run that is there.

    Raises:
        LwcError: the recipe contradicts itself, or its model, targets or output cannot be what they have to be.
    """
    check_complete(recipe)
    targets = recipe.each_target()
    for name, target in targets.items():
        if find_target(target.target).os == "none" and target.via is not None:
            raise OptionError(
                f"targets.{name}.via: code for {target.target} becomes part of your program, which lwc does not time"
            )
    for data in (recipe.train_data, recipe.val_data):
        if data is not None and not is_function(data) and not Path(data).exists():
            raise DataError(f"data {data}: there is no such file or folder")
    place = directory or Path(recipe.outputs.directory or f"{Path(recipe.model).stem}.build")
    check_build_destination(place, force=force)
    original = normalize(load_model(recipe.model), fold_batch_norm=False)
    for target in targets.values():
        check_lowerable(original, recipe.for_target(target).lower, thorough=recipe.train_data is not None)
    return Checked(recipe, place, original, targets)


def run_recipe(
    recipe: BuildRecipe,
    directory: Path | None = None,
    *,
    force: bool = False,
    cache: bool = False,
    workdir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Build:
    """Does everything `lwc_compiler.build` does, whose arguments and errors these are."""
    recipe = recipe.settled()
    checked = check_recipe(recipe, directory, force=force)
    original, targets = checked.original, checked.targets
    baseline = None if recipe.gates.baseline is None else read_figures(Path(recipe.gates.baseline))
    judged = _judge_for(original, recipe)
    reuse = Reuse.of(original, recipe) if cache else Reuse(None)
    model = reuse.model(recipe, original.name, lambda: pruned_and_retrained(original, recipe, workdir, progress))
    quality = None
    if judged is not None:
        with timed("measure the pruned model"):
            quality = judged.judge(model.proto)
    source, packed = sha256_of(Path(recipe.model)), None
    with written_whole(checked.directory) as new:
        check_build_destination(checked.directory, force=force)  # what another process has written in the meantime
        figures, reports = {}, []
        for name, target in targets.items():
            alone, place = recipe.for_target(target), new / artifact_name(name)
            make = partial(make_artifact, original, model, source, place, alone)
            artifact = reuse.artifact(source, alone, find_target(alone.lower.target), place, make)
            limits = (target.gates.max_latency_ms, target.gates.min_speedup, recipe.gates.max_latency_regression)
            wanted = any(limit is not None for limit in limits)
            figures[name], times = measure(artifact, recipe.model if wanted else None, target.via, recipe.gates.seconds)
            reports.append(replace(read_report(artifact.directory), times=times))
        if recipe.pack is not None:
            from lwc_compiler.packing import pack, save_packed

            packed = f"{model.name}.lwcp"
            save_packed(pack(model, recipe.pack), new / packed)
        found = Figures(quality, None if packed is None else (new / packed).stat().st_size, figures)
        results = judge(recipe.gates, {name: target.gates for name, target in targets.items()}, found, baseline)
        report = replace(reports[0], figures=found, gates=tuple(results), source=source_of(Path(recipe.model)))
        write_outputs(to_json(report), new, list(dict.fromkeys(("json", *recipe.outputs.reports))))
    return Build(
        checked.directory,
        {name: read_artifact(checked.directory / artifact_name(name)) for name in targets},
        None if packed is None else checked.directory / packed,
        found,
        tuple(results),
    )


def gate_artifact(
    directory: Path, gates: GateOptions, *, against: Path | None, data: str | None, via: str | None
) -> list[GateResult]:
    """Judges an artifact that is there; see `lwc gate`.

    Args:
        directory: the artifact.
        gates: limits.
        against: the model before pruning; None: only bytes are judged.
        data: what accuracy is measured on.
        via: where to time the code; None: here, where this machine can.

    Raises:
        OptionError: there is no gate, or one needs `against` or `data`.
        ArtifactError: the baseline cannot be read, or is not of a run.
        LwcError: the artifact, the model or the data cannot be read, or do not fit each other.
    """
    if not any(limit is not None for name, limit in gates if name != "seconds"):
        raise OptionError("there is no gate to judge: give one, for example --max-bytes")
    artifact = read_artifact(directory)
    baseline = None if gates.baseline is None else read_figures(Path(gates.baseline))
    on_data = (gates.max_accuracy_drop, gates.min_metric, gates.max_disagreement, gates.max_accuracy_regression)
    judged = any(limit is not None for limit in on_data)
    wanted = any(limit is not None for limit in (gates.max_latency_ms, gates.min_speedup, gates.max_latency_regression))
    if judged and data is None:
        raise OptionError("a gate on accuracy needs --data to measure on")
    if (judged or wanted) and against is None:
        raise OptionError("a gate on accuracy or speed needs --against, the model before pruning")
    quality = None
    if judged and against is not None:
        from lwc_compiler.training.quality import Judge

        original = normalize(load_model(against), fold_batch_norm=False)
        options, disagreement = RetrainOptions(), gates.max_disagreement is not None
        found = Judge(original.proto, None, data, options, disagreement=disagreement)
        _check_metric(found.metric, gates)
        quality = found.judge(load_model(artifact.model).proto)
    figures, _ = measure(artifact, against if wanted else None, via, gates.seconds)
    name = _name_in(baseline, figures)
    return judge(gates, {name: gates}, Figures(quality, None, {name: figures}), baseline)


def _name_in(baseline: Figures | None, figures: TargetFigures) -> str:
    """What the recipe of a baseline calls the target of an artifact; the target's own name where it has none."""
    alike = (
        {} if baseline is None else {n: t.artifact for n, t in baseline.targets.items() if t.target == figures.target}
    )
    names = [name for name, artifact in alike.items() if artifact == figures.artifact] or list(alike)
    return names[0] if len(names) == 1 else figures.target


def artifact_name(target: str) -> str:
    """The directory of a target's artifact in that of a run."""
    return f"{target}.lwc"


def _judge_for(original: Model, recipe: BuildRecipe) -> Judge | None:
    """What measures the models of a recipe; None without data."""
    if recipe.train_data is None and recipe.val_data is None:
        return None
    from lwc_compiler.training.quality import Judge

    logger.info("measuring the original model")
    with timed("measure the original model"):
        found = Judge(
            original.proto,
            recipe.train_data,
            recipe.val_data,
            recipe.retrain or RetrainOptions(),
            metric=recipe.metric,
            disagreement=recipe.gates.max_disagreement is not None,
        )
    _check_metric(found.metric, recipe.gates)
    return found


def _check_metric(metric: str, gates: GateOptions) -> None:
    """Refuses a gate that does not fit the metric.

    Raises:
        OptionError: there is a least value for the loss.
    """
    if metric == "loss" and gates.min_metric is not None:
        raise OptionError(
            "gate 'min_metric': the metric is the loss here, which is better when it is lower: limit its rise by "
            "'max_accuracy_drop', or choose another 'metric'"
        )


def measure(
    artifact: Artifact, against: str | Path | None, via: str | None, seconds: float
) -> tuple[TargetFigures, Bench | None]:
    """The figures of an artifact, and the times that its speed is from.

    Args:
        artifact: read.
        against: the file of the model before pruning, which it is timed against; None: it is not timed.
        via: where to time it; None: here, where this machine can.
        seconds: time for each engine.
    """
    manifest, sizes = artifact.manifest, artifact.report["sizes"]
    apart = manifest.files[artifact.weights.name].bytes if artifact.weights else 0
    ram = None
    if "RAM, static" in sizes:
        ram = sizes["RAM, static"] + manifest.workspace_bytes + bytes_of((*manifest.inputs, *manifest.outputs))
    times, not_timed = None, "no gate asks for it"
    if against is not None and not (not_timed := _why_not_timed(find_target(manifest.target), via)):
        from lwc_compiler.runtime.bench import bench

        logger.info("timing the code for %s", manifest.target)
        try:
            times = bench(artifact.directory, against=against, seconds=seconds, via=via)
        except LwcError as error:
            if via is None:
                raise
            not_timed = str(error)
    figures = TargetFigures(
        target=manifest.target,
        artifact=artifact.directory.name,
        bytes=sizes["library"] + apart,
        flash_bytes=sizes.get("flash"),
        ram_bytes=ram,
        speed=None if times is None else _speed(times, host_cpu(find_target(manifest.target))),
        not_timed=not_timed,
        via=via or "",
    )
    return figures, times


def _why_not_timed(target: Target, via: str | None) -> str:
    """Why the code for a target cannot be timed; empty where it can."""
    if via is not None:
        return ""
    if target.source:
        return "C source is as fast as the compiler that takes it"
    if target.os == "none":
        return f"code for {target.name} becomes part of your program, which lwc does not time"
    missing = ", ".join(missing_features(target))
    return (
        f"this machine cannot run code for {target.name}: no {missing}; 'via' says where to time it" if missing else ""
    )


def _speed(times: Bench, processor: str) -> Speed:
    own, other = times.timings[:2]
    assert times.speedup is not None
    assert times.speedup_spread is not None
    return Speed(
        median_ms=own.median_ms,
        spread_ms=own.spread_ms,
        speedup=times.speedup,
        speedup_spread=times.speedup_spread,
        against=other.engine,
        where=times.where or processor,
        threads=times.threads,
    )


def check_build_destination(directory: Path, *, force: bool) -> None:
    """Refuses, before any work, a place that a run could not be written to.

    Raises:
        ArtifactError: the parent directory is missing or read-only; something is there and `force` is not given; what
            is there is no run, which `force` never replaces.
    """
    check_place(directory, force=force)
    if not directory.is_symlink() and (not directory.exists() or _is_run(directory)):
        return
    raise ArtifactError(
        f"{directory} is not what `lwc build` wrote: --force replaces only that; give another directory"
    )


def _is_run(directory: Path) -> bool:
    try:
        return next(directory.iterdir(), None) is None or read_figures(directory) is not None
    except (OSError, ArtifactError):
        return False
