"""Tables 1 to 5 of Han et al. 2015, figure by figure as printed.

Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015,
arXiv 1506.02626.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True)
class Figure:
    """A number as the paper prints it: `25K`, `0.5K`, `7.5`."""

    text: str

    @property
    def value(self) -> float:
        """The number; percentages stay percentages."""
        return float(self._digits) * self.unit

    @property
    def unit(self) -> int:
        """What K, M or B stand for; 1 without them."""
        return _UNITS[self.text.removeprefix(self._digits)]

    @property
    def step(self) -> float:
        """What one more in the last digit is worth."""
        return self.unit / 10.0**self._decimals

    def printed(self, value: float) -> float:
        """`value` to the precision of this figure, halves rounded up."""
        return math.floor(value / self.step + 0.5) * self.step

    def like(self, value: float) -> str:
        """`value` as this figure is printed."""
        return f"{self.printed(value) / self.unit:.{self._decimals}f}{self.text.removeprefix(self._digits)}"

    @property
    def _digits(self) -> str:
        return self.text.rstrip("".join(_UNITS))

    @property
    def _decimals(self) -> int:
        return len(self._digits.partition(".")[2])


@dataclass(frozen=True)
class Row:
    """A row of tables 2 to 5.

    Attributes:
        layer: its name in the paper, and in `lwc_compiler.reproduce.networks`; `total` for the last row.
        weights: number of weights, without biases.
        flops: FLOPs of the dense layer; a multiply-add counts as two.
        activations: Act%, activations that are not zero, after the activation function and pooling.
        kept: Weights%, weights that are left.
        flops_kept: FLOP%, weights left times activations of the layer before that are not zero.
    """

    layer: str
    weights: Figure
    flops: Figure
    activations: Figure
    kept: Figure
    flops_kept: Figure


@dataclass(frozen=True)
class Network:
    """A network of the paper.

    Attributes:
        title: its name in table 1.
        error: top-1 error in percent (table 1): MNIST for the LeNets, ImageNet for the others.
        pruned_error: the same after pruning.
        parameters: of the dense network, biases included (table 1).
        pruned_parameters: left after pruning.
        rate: how many times fewer.
        table: the number of its table of layers.
        layers: that table, without its last row.
        total: the last row.
    """

    title: str
    error: Figure
    pruned_error: Figure
    parameters: Figure
    pruned_parameters: Figure
    rate: Figure
    table: int
    layers: tuple[Row, ...]
    total: Row

    @property
    def densities(self) -> dict[str, float]:
        """Layer -> kept / all weights."""
        return {row.layer: row.kept.value / 100 for row in self.layers}


def _network(title: str, summary: str, table: int, rows: str) -> Network:
    """A network from the words of its row in table 1 and the lines of its own table."""
    error, pruned_error, parameters, pruned_parameters, rate = map(Figure, summary.split())
    *layers, total = (
        Row(layer, *map(Figure, figures)) for layer, *figures in map(str.split, rows.strip().splitlines())
    )
    return Network(
        title, error, pruned_error, parameters, pruned_parameters, rate, table=table, layers=tuple(layers), total=total
    )


NETWORKS = {
    "lenet-300-100": _network(
        "LeNet-300-100",
        "1.64 1.59 267K 22K 12",
        2,
        """
        fc1     235K   470K   38   8    8
        fc2     30K    60K    65   9    4
        fc3     1K     2K     100  26   17
        total   266K   532K   46   8    8
        """,
    ),
    "lenet-5": _network(
        "LeNet-5",
        "0.80 0.77 431K 36K 12",
        3,
        """
        conv1   0.5K   576K   82   66   66
        conv2   25K    3200K  72   12   10
        fc1     400K   800K   55   8    6
        fc2     5K     10K    100  19   10
        total   431K   4586K  77   8    16
        """,
    ),
    "alexnet": _network(
        "AlexNet",
        "42.78 42.77 61M 6.7M 9",
        4,
        """
        conv1   35K    211M   88   84   84
        conv2   307K   448M   52   38   33
        conv3   885K   299M   37   35   18
        conv4   663K   224M   40   37   14
        conv5   442K   150M   34   37   14
        fc1     38M    75M    36   9    3
        fc2     17M    34M    40   9    3
        fc3     4M     8M     100  25   10
        total   61M    1.5B   54   11   30
        """,
    ),
    "vgg-16": _network(
        "VGG-16",
        "31.50 31.34 138M 10.3M 13",
        5,
        """
        conv1_1 2K     0.2B   53   58   58
        conv1_2 37K    3.7B   89   22   12
        conv2_1 74K    1.8B   80   34   30
        conv2_2 148K   3.7B   81   36   29
        conv3_1 295K   1.8B   68   53   43
        conv3_2 590K   3.7B   70   24   16
        conv3_3 590K   3.7B   64   42   29
        conv4_1 1M     1.8B   51   32   21
        conv4_2 2M     3.7B   45   27   14
        conv4_3 2M     3.7B   34   34   15
        conv5_1 2M     925M   32   35   12
        conv5_2 2M     925M   29   29   9
        conv5_3 2M     925M   19   36   11
        fc6     103M   206M   38   4    1
        fc7     17M    34M    42   4    2
        fc8     4M     8M     100  23   9
        total   138M   30.9B  64   7.5  21
        """,
    ),
}
