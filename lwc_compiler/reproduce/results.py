"""What a reproduction of the LeNets measured, and the tables that show it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lwc_compiler.reproduce import paper
from lwc_compiler.reproduce.tables import Layer, Summary, TextTable, layer_table, mean_like
from lwc_compiler.version import __version__


@dataclass(frozen=True)
class Round:
    """A round of pruning and retraining on the way to a network; errors are fractions of the validation images."""

    density: float
    error_before_retraining: float | None
    error: float


@dataclass(frozen=True)
class Trained:
    """One finished network.

    Attributes:
        name: `dense`, or the stage it came from.
        weights: number of weights, without biases.
        kept: weights that are not zero.
        parameters: weights and biases that are not zero, as table 1 counts.
        packed_bytes: size of the file that `lwc pack` writes, bit for bit the same weights.
        validation_error: share of the validation images that ONNX Runtime gets wrong with the network's file.
        test_error: the same of the test images; measured once, when all training was done.
        rounds: the way to it from the stage before.
        layers: rows as in the paper's table, the total last.
        seconds: time the training took; where it was interrupted, since it last went on.
        interrupted: whether it was.
    """

    name: str
    weights: int
    kept: int
    parameters: int
    packed_bytes: int
    validation_error: float
    test_error: float
    rounds: tuple[Round, ...]
    layers: tuple[Layer, ...]
    seconds: float
    interrupted: bool

    @property
    def rate(self) -> float:
        """How many times fewer weights."""
        return self.weights / self.kept


@dataclass(frozen=True)
class TradeOff:
    """A curve of figure 5: validation errors (fractions) of networks of falling density."""

    name: str
    densities: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Results:
    """A whole reproduction.

    Attributes:
        network: its name in `paper.NETWORKS`.
        dataset: what it was trained on.
        seeds: seed -> its networks: the dense one, then one a stage.
        figure_5: the trade-off curves of the first seed; empty when they were not asked for.
        threads: threads of the training.
        note: what else there is to say of the training.
    """

    network: str
    dataset: str
    seeds: dict[int, tuple[Trained, ...]]
    figure_5: tuple[TradeOff, ...]
    threads: int
    note: str

    def networks(self) -> list[tuple[Trained, ...]]:
        """For the dense network and each stage, the networks of all seeds."""
        return list(zip(*self.seeds.values(), strict=True))


def summary(results: Results) -> Summary:
    """All of it: errors and densities are fractions, times seconds; tables 1, one of layers a stage, and figure 5."""
    printed = paper.NETWORKS[results.network]
    _, *stages = results.networks()
    note = f"lwc: {_seeds(results)}. Act% was measured on the validation images."
    if results.dataset != "mnist":
        note += " The paper's figures are for MNIST."
    layers = [layer_table(printed, stage[0].name, [one.layers for one in stage], note) for stage in stages]
    tables = (_table_1(results), *layers, *([_figure_5(results)] if results.figure_5 else []))
    title = f"{printed.title} on {_DATASETS[results.dataset]}"
    return Summary(title, {"lwc": __version__, **asdict(results)}, tables)


# How figures are printed that the paper has no pattern for.
_TENTHS, _HUNDREDTHS, _THOUSANDS = paper.Figure("0.0"), paper.Figure("0.00"), paper.Figure("0.0K")
_DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}


def _table_1(results: Results) -> TextTable:
    printed = paper.NETWORKS[results.network]
    columns = (
        *("", "test error %", "validation error %", "parameters", "weights", "rate"),
        *("packed bytes", "smaller", "minutes"),
    )
    dense_bytes = 4 * results.networks()[0][0].parameters
    pruned = (printed.pruned_error.text, "-", printed.pruned_parameters.text, "-", f"{printed.rate.text}x")
    theirs = (("paper, dense", printed.error.text, "-", printed.parameters.text), ("paper, pruned", *pruned))
    ours = [
        (
            f"lwc, {seeds[0].name}",
            mean_like(_HUNDREDTHS, [100 * one.test_error for one in seeds]),
            mean_like(_HUNDREDTHS, [100 * one.validation_error for one in seeds]),
            mean_like(_THOUSANDS, [one.parameters for one in seeds]),
            mean_like(_THOUSANDS, [one.kept for one in seeds]),
            f"{mean_like(_TENTHS, [one.rate for one in seeds])}x",
            mean_like(_THOUSANDS, [one.packed_bytes for one in seeds]),
            f"{mean_like(_TENTHS, [dense_bytes / one.packed_bytes for one in seeds])}x",
            mean_like(_TENTHS, [one.seconds / 60 for one in seeds]),
        )
        for seeds in results.networks()
    ]
    filled = [(*cells, *["-"] * (len(columns) - len(cells))) for cells in theirs if results.dataset == "mnist"]
    rows: list[tuple[str, ...]] = [*filled, *ours]
    interrupted = any(one.interrupted for seeds in results.networks() for one in seeds)
    note = (
        f"lwc: {_seeds(results)}. The test images were used once, after all training. Parameters include biases, the "
        f"rate counts weights. Packed: the file of `lwc pack`, against 4 bytes for each dense parameter; "
        f"`shared` networks have weights of few values. {results.note} "
        f"Minutes are those of one seed and stage on {results.threads} thread"
        f"{'s' if results.threads > 1 else ''}{'; some runs were interrupted, and count from there' * interrupted}."
    )
    columns = (
        "",
        "test error %",
        "validation error %",
        "parameters",
        "weights",
        "rate",
        "packed bytes",
        "smaller",
        "minutes",
    )
    return TextTable(f"Table 1: {printed.title} on {_DATASETS[results.dataset]}", columns, tuple(rows), note)


def _figure_5(results: Results) -> TextTable:
    """Curves as columns, densities as rows."""
    densities = sorted({round(100 * d, 1) for curve in results.figure_5 for d in curve.densities}, reverse=True)
    found = [
        {round(100 * d, 1): f"{100 * e:.2f}" for d, e in zip(curve.densities, curve.errors, strict=True)}
        for curve in results.figure_5
    ]
    rows = [(f"{density:g}", *(errors.get(density, "-") for errors in found)) for density in densities]
    note = f"Validation error in percent against the weights kept in percent; seed {next(iter(results.seeds))}."
    columns = ("weights kept %", *(curve.name for curve in results.figure_5))
    return TextTable("Figure 5: what is lost without retraining, and what L1 and L2 do", columns, tuple(rows), note)


def _seeds(results: Results) -> str:
    count = len(results.seeds)
    return f"mean ± standard deviation of {count} seeds" if count > 1 else f"seed {next(iter(results.seeds))}"
