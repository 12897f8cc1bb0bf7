"""Plots of the weights themselves: their values, how many are left, and where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.report.plots.style import COLOURS, FAINT, INK, TIMES, new_figure, short, styled
from lwc_compiler.report.render import percent, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 80
# So much of a mask is shown: more would blur.
_MOST_ROWS, _MOST_COLUMNS, _MOST_KERNELS = 100, 300, 120


@styled
def weight_histogram(layers: Mapping[str, tuple[NDArray[Any] | None, NDArray[Any]]]) -> Figure:
    """Distribution of the weights before and after (Han et al. 2015, figure 8), a row for each layer.

    The axis of a layer ends where one weight in a thousand is beyond it.

    Args:
        layers: name -> (weights of the dense layer or None, pruned and retrained weights, whose zeros are left out);
            arrays of any shape.
    """
    columns = 1 if all(before is None for before, _ in layers.values()) else 2
    rows = max(1, len(layers))
    figure = new_figure(3.4 * columns + 0.4, 0.6 + 1.8 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex="row")
    for row, (name, (before, after)) in zip(panels, layers.items(), strict=False):
        kept = after[after != 0].astype(np.float32, copy=False)
        dense = (kept[:0] if before is None else before.ravel()).astype(np.float32, copy=False)
        limit = max(_largest(dense), _largest(kept)) or 1.0
        edges = np.linspace(-limit, limit, _BINS + 1)
        if columns == 2:
            _draw_bins(row[0], dense, edges, COLOURS[0], f"{short(name, 20)}, dense")
        _draw_bins(row[-1], kept, edges, COLOURS[1], f"{short(name, 20)}, pruned")
    for axes in panels[-1]:
        axes.set_xlabel("Value of a weight")
    figure.supylabel("Weights in a bin", fontsize=9)
    return figure


@styled
def layer_density(layers: Mapping[str, tuple[int, int]]) -> Figure:
    """Share of the weights that each layer keeps, and how many it has.

    Args:
        layers: name -> (weights kept, all weights, at least 1), the first on top. Layers that keep all are grey.
    """
    places = range(len(layers))
    shares = [kept / size for kept, size in layers.values()]
    figure = new_figure(6.4, 0.9 + 0.24 * max(2, len(layers)))
    axes = figure.add_subplot()
    axes.barh(places, shares, height=0.68, color=[FAINT if share == 1 else COLOURS[0] for share in shares])
    for place, share, (_, size) in zip(places, shares, layers.values(), strict=True):
        axes.annotate(
            f"{percent(share)} % of {quantity(size)}",
            (share, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, [short(name, 30) for name in layers])
    axes.set_ylim(len(layers) - 0.4, -0.6)
    # Room for the text beside the longest bar.
    axes.set_xlim(0, 1.25 * max(shares, default=1.0) or 1.0)
    axes.set_xticks([share for share in axes.get_xticks() if share <= 1])
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g}")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Weights kept (%)")
    axes.set_title("Density of each layer")
    return figure


@styled
def mask_picture(name: str, mask: NDArray[np.bool_], image: tuple[int, int] | None = None) -> Figure:
    """Sparsity pattern of a matrix (Han et al. 2015, figure 4): kept connections are dark.

    The first 100 rows and 300 columns are shown.

    Args:
        name: of the layer.
        mask: (outputs, inputs).
        image: (height, width) of the images whose pixels the inputs are, channel after channel; a second panel shows
            how many connections each pixel kept. None: the inputs are no pixels.
    """
    shown = mask[:_MOST_ROWS, :_MOST_COLUMNS]
    heights = [min(4.0, 0.9 + 5.8 * shown.shape[0] / shown.shape[1]), *([] if image is None else [3.0])]
    figure = new_figure(6.4, sum(heights))
    axes, *below = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    _draw_mask(axes, shown)
    part = "" if shown.shape == mask.shape else f"first {shown.shape[0]} {TIMES} {shown.shape[1]} of "
    axes.set_title(f"{short(name, 24)}: {_kept(mask)}, {part}{mask.shape[0]} {TIMES} {mask.shape[1]}")
    axes.locator_params(integer=True)
    axes.set_xlabel("Input")
    axes.set_ylabel("Output")
    if image is not None:
        counts = mask.sum(axis=0).reshape(-1, *image).sum(axis=0)
        picture = below[0].imshow(counts, cmap="cividis", interpolation="none", vmin=0)
        below[0].set_title(f"Inputs as {image[0]} {TIMES} {image[1]} image")
        below[0].set_axis_off()
        beside = below[0].inset_axes((1.05, 0, 0.05, 1))
        bar = figure.colorbar(picture, cax=beside, label="Connections kept")
        bar.outline.set_visible(False)
    return figure


@styled
def kernel_picture(name: str, mask: NDArray[np.bool_]) -> Figure:
    """Sparsity pattern of a convolution: kept weights are dark. The first 120 kernels are shown.

    Args:
        name: of the layer.
        mask: (output channels, input channels of a group, then the dimensions of a kernel, of which the last two, or
            the only one, make a tile).
    """
    height, width = (1, *mask.shape[2:])[-2:]
    tiles = mask.reshape(-1, height, width)
    shown = tiles[:_MOST_KERNELS]
    columns = min(len(shown), math.ceil(math.sqrt(2 * len(shown) * (height + 1) / (width + 1))))
    rows = math.ceil(len(shown) / columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for index, tile in enumerate(shown):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = tile
    figure = new_figure(6.4, 0.5 + 6.2 * sheet.shape[0] / sheet.shape[1])
    axes = figure.add_subplot()
    _draw_mask(axes, sheet)
    axes.set_axis_off()
    part = "" if len(shown) == len(tiles) else f"first {len(shown)} of "
    size = f" {TIMES} ".join(str(length) for length in mask.shape[2:])
    axes.set_title(f"{short(name, 24)}: {_kept(mask)}, {part}{len(tiles)} kernels of {size}")
    return figure


def _largest(values: NDArray[np.float32]) -> float:
    """The magnitude that one value in a thousand exceeds, from at most two million of them; 0 without values."""
    sample = values[:: 1 + values.size // 2_000_000]
    return float(np.quantile(np.abs(sample), 0.999)) if values.size else 0.0


def _draw_bins(axes: Axes, values: NDArray[np.float32], edges: NDArray[np.float64], colour: str, title: str) -> None:
    axes.stairs(np.histogram(values, edges)[0], edges, fill=True, color=colour)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter(lambda count, _: quantity(round(count)))
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.grid(visible=False, axis="x")
    axes.set_title(f"{title}: {quantity(values.size)} weights", fontsize=9)


def _draw_mask(axes: Axes, mask: NDArray[Any]) -> None:
    """Kept entries dark, pruned ones light, NaN not at all."""
    from matplotlib.colors import ListedColormap

    axes.imshow(mask, cmap=ListedColormap(["#E9ECEF", INK]), vmin=0, vmax=1, interpolation="none")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _kept(mask: NDArray[np.bool_]) -> str:
    return f"{percent(np.count_nonzero(mask) / mask.size)} % kept"
