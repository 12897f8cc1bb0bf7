"""What a sensitivity scan found: for every layer alone, how good the network is at each density.

As JSON, as a table, and as densities that meet a budget. `lwc_compiler.passes.sensitivity` makes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lwc_compiler.errors import ArtifactError, OptionError
from lwc_compiler.sparsity.allocation import Budget, Curve, allocate
from lwc_compiler.sparsity.masks import parse_structure

_SHOWN = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)  # densities that get a column in the table
_TOLERANCE = 0.01
_OPEN = "-"


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        density: kept / all weights of the layer, as asked for; the mask meets it to within a weight or block.
        loss: mean loss of the network.
        accuracy: its accuracy, or agreement with the dense model; None where there are no classes.
        quality: the threshold with this density / the standard deviation of the layer's weights (Han et al. 2015,
            section 3); 0 where nothing is pruned.
    """

    density: float
    loss: float
    accuracy: float | None
    quality: float = 0.0


@dataclass(frozen=True)
class SiteCurve:
    """The measurements of one layer.

    Attributes:
        weight: name of the weight.
        nodes: labels of the nodes that use it.
        op: ONNX operator type of the first of them.
        shape: of the weight.
        size: number of weights.
        flops: FLOPs of the dense layer in one run of the model; None where shapes are not known.
        points: densities falling; the first is the layer as it is in the model.
    """

    weight: str
    nodes: tuple[str, ...]
    op: str
    shape: tuple[int, ...]
    size: int
    flops: int | None
    points: tuple[Point, ...]

    @property
    def curve(self) -> Curve:
        """What `allocate` reads."""
        return Curve({point.density: point.loss for point in self.points}, self.size, self.flops)


@dataclass(frozen=True)
class Suggestion:
    """The densities that meet a budget with the least loss.

    Attributes:
        budget: for the layers in `densities`.
        densities: weight -> kept / all.
        quality: weight -> threshold with this density / standard deviation of the weights.
    """

    budget: Budget
    densities: Mapping[str, float]
    quality: Mapping[str, float]


@dataclass(frozen=True)
class Sensitivity:
    """The measurements of all layers.

    Attributes:
        model: name of the model.
        metric: what the layers are compared by: `accuracy` where labels are classes, `agreement` with the dense model
            where there are classes but no labels, otherwise `loss`.
        structure: of the masks.
        score: of the masks.
        samples: how many samples each measurement is the mean over.
        dense: the model as it is.
        sites: in the order of the graph.
    """

    model: str
    metric: str
    structure: str
    score: str
    samples: int
    dense: Point
    sites: tuple[SiteCurve, ...]

    def value(self, point: Point) -> float:
        """The metric of one of the measurements."""
        return point.loss if point.accuracy is None or self.metric == "loss" else point.accuracy

    def curve(self, weight: str, shape: tuple[int, ...], structure: str, score: str) -> Curve:
        """The curve of a weight that is going to be pruned with `structure` and `score`.

        Raises:
            OptionError: the scan was made for something else.
        """
        if (structure, score) != (self.structure, self.score):
            raise OptionError(
                f"the sensitivity was measured with structure '{self.structure}' and score '{self.score}', but pruning "
                f"takes '{structure}' and '{score}'; scan again with those"
            )
        found = next((site for site in self.sites if site.weight == weight), None)
        if found is None or found.shape != shape:
            raise OptionError(
                f"the sensitivity of model '{self.model}' has no weight '{weight}' of shape {shape}; scan the model "
                "that is pruned"
            )
        return found.curve

    def densities(self, budget: Budget, weights: Iterable[str] | None = None) -> dict[str, float]:
        """The densities of `weights` (None: all that were scanned) that meet `budget` with the least loss.

        Raises:
            OptionError: the budget is out of reach.
        """
        wanted = {site.weight for site in self.sites} if weights is None else set(weights)
        curves = {site.weight: site.curve for site in self.sites if site.weight in wanted}
        return allocate(curves, budget, dict.fromkeys(curves, parse_structure(self.structure).highest_density))

    def lowest_held(self, site: SiteCurve, drop: float | None = None) -> Point:
        """The sparsest point down to which no measurement of `site` is worse than the dense model by more than `drop`.

        Args:
            site: one of `sites`.
            drop: of the metric; None: 0.01 of accuracy or agreement, or, where there is only a loss, 1 % of the
                difference between the dense model and the highest loss of the whole scan.
        """
        if self.metric != "loss":
            limit = _TOLERANCE if drop is None else drop
            worse = [(self.dense.accuracy or 0.0) - (point.accuracy or 0.0) for point in site.points]
        else:
            highest = max(point.loss for each in self.sites for point in each.points)
            limit = _TOLERANCE * (highest - self.dense.loss) if drop is None else drop
            worse = [point.loss - self.dense.loss for point in site.points]
        first = next((index for index, value in enumerate(worse) if value > limit + 1e-12), len(worse))
        return site.points[max(first - 1, 0)]

    def to_json(self, suggestion: Suggestion | None = None) -> dict[str, Any]:
        """As plain dicts and lists; `suggestion` under a key of that name."""
        return asdict(self) | ({} if suggestion is None else {"suggestion": asdict(suggestion)})

    @staticmethod
    def from_json(values: Any, where: str = "sensitivity") -> Sensitivity:
        """What `to_json` gave; `where` it was found, for the error.

        Raises:
            OptionError: it is not that.
        """
        try:
            sites = tuple(_site(each) for each in values["sites"])
            own = {field.name: values[field.name] for field in fields(Sensitivity)}
            return Sensitivity(**{**own, "dense": Point(**own["dense"]), "sites": sites})
        except (KeyError, TypeError, ValueError) as error:
            raise OptionError(f"{where}: this is not the result of a sensitivity scan: {error!r}") from None

    def save(self, path: str | Path, suggestion: Suggestion | None = None) -> None:
        """Writes `to_json` to a file that is never half there.

        Raises:
            ArtifactError: it cannot be written.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self.to_json(suggestion), indent=2) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error

    def cells(self, suggestion: Suggestion | None = None) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of the table, as text.

        A row has the metric at some densities, then the lowest density that holds it (`lowest_held`) and the quality
        factor there, then those of `suggestion`.
        """
        shown = [density for density in _SHOWN if any(density == p.density for s in self.sites for p in s.points)]
        unit = self.metric if self.metric == "loss" else f"{self.metric} %"
        columns = ["layer", "weights", *(f"{unit} at {density:g}" for density in shown), "holds to", "quality"]
        rows = []
        for site in self.sites:
            known = {point.density: self._metric(point) for point in site.points}
            held = self.lowest_held(site)
            row = [site.weight, f"{site.size:,}", *(known.get(density, _OPEN) for density in shown)]
            row += [f"{held.density:.3g}", f"{held.quality:.2f}"]
            if suggestion is not None and site.weight in suggestion.densities:
                row += [f"{suggestion.densities[site.weight]:.3g}", f"{suggestion.quality[site.weight]:.2f}"]
            elif suggestion is not None:
                row += [_OPEN, _OPEN]
            rows.append(row)
        if suggestion is not None:
            columns += ["suggested", "its quality"]
        return columns, rows

    def to_markdown(self, suggestion: Suggestion | None = None) -> str:
        """The table as Markdown."""
        columns, rows = self.cells(suggestion)
        lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"

    def _metric(self, point: Point) -> str:
        if self.metric == "loss":
            return f"{point.loss:.4g}"
        return f"{100 * (point.accuracy or 0.0):.2f}"


def load_sensitivity(path: str | Path) -> Sensitivity:
    """Reads what `Sensitivity.save` wrote.

    Raises:
        OptionError: the file is missing, or is something else.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"sensitivity {path}: {error}") from None
    return Sensitivity.from_json(values, f"sensitivity {path}")


def _site(values: Mapping[str, Any]) -> SiteCurve:
    return SiteCurve(
        weight=str(values["weight"]),
        nodes=tuple(values["nodes"]),
        op=str(values["op"]),
        shape=tuple(values["shape"]),
        size=int(values["size"]),
        flops=values["flops"],
        points=tuple(Point(**point) for point in values["points"]),
    )
