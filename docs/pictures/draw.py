"""Draws the pictures of the documents: `python docs/pictures/draw.py` writes the SVG files beside this one.

Their colours follow the reader's, light or dark, by a media query. Text is in the system's fonts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lwc_compiler.sparsity.formats import gaps_between

STYLE = """<style>
  .ink { fill: #1f2937 } .faint { fill: #6b7280 } .line { stroke: #6b7280; fill: none; stroke-width: 1.5 }
  .box { fill: #e6f4f1; stroke: #0f766e; stroke-width: 1.5 } .file { fill: #fef3e2; stroke: #b45309; stroke-width: 1.5 }
  .zero { fill: none; stroke: #9ca3af } .a { fill: #99d5cb; stroke: #0f766e } .b { fill: #fcd9a8; stroke: #b45309 }
  text { font: 14px system-ui, sans-serif } .small { font-size: 12px } .title { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .ink { fill: #e5e7eb } .faint { fill: #9ca3af } .line { stroke: #9ca3af }
    .box { fill: #134e4a; stroke: #5eead4 } .file { fill: #573a10; stroke: #fbbf24 }
    .zero { stroke: #6b7280 } .a { fill: #0f766e; stroke: #5eead4 } .b { fill: #92580c; stroke: #fbbf24 }
  }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
  <path class="faint" d="M0 0L8 4L0 8z"/></marker></defs>"""
CELL = 26


def svg(width: int, height: int, title: str, shapes: list[str]) -> str:
    """A picture of `width` x `height` pixels; `title` is what a screen reader says."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join([f'{head} role="img">', f"<title>{title}</title>", STYLE, *shapes, "</svg>"]) + "\n"


def text(x: float, y: float, words: object, kind: str = "ink", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="3"/>'


def pipeline() -> str:
    """What flows from the ONNX file to the library."""
    steps = {
        "normalize": "one plain form",
        "prune": "masks",
        "retrain": "the weights left",
        "compact": "dead neurons go",
        "lower": "machine code",
        "verify": "ONNX Runtime",
    }
    shapes = [box(10, 45, 100, 50, "file"), text(60, 75, "model.onnx")]
    for i, (name, note) in enumerate(steps.items()):
        x = 140 + 130 * i
        shapes += [f'<path class="line" marker-end="url(#tip)" d="M{x - 30} 70H{x - 2}"/>', box(x, 45, 100, 50, "box")]
        shapes += [text(x + 50, 75, name, "ink title"), text(x + 50, 115, note, "faint small")]
    x = 140 + 130 * len(steps)
    shapes += [f'<path class="line" marker-end="url(#tip)" d="M{x - 30} 70H{x - 2}"/>', box(x, 45, 110, 50, "file")]
    shapes += [text(x + 55, 75, "model.lwc/")]
    shapes += [
        '<path class="line" marker-end="url(#tip)" stroke-dasharray="4 3" d="M450 43V22H320V43"/>',
        text(385, 15, "next round: sparser", "faint small"),
    ]
    return svg(x + 120, 130, "The passes from an ONNX file to an artifact", shapes)


def matrix(x: int, y: int, values: np.ndarray, block: int = 1) -> list[str]:
    """The cells of a matrix; zeros are empty. Rows of blocks have two colours in turn."""
    shapes = []
    for (row, column), value in np.ndenumerate(values):
        kind = "zero" if value == 0 else "ab"[row // block % 2]
        left, top = x + CELL * column, y + CELL * row
        shapes.append(box(left, top, CELL, CELL, kind))
        if value:
            shapes.append(text(left + CELL / 2, top + 18, value, "ink small"))
    return shapes


def strip(x: int, y: int, label: str, values: list[int], kinds: list[str]) -> list[str]:
    """An array as a row of cells, its name before it."""
    shapes = [text(x - 10, y + 18, label, "faint small", "end")]
    for i, (value, kind) in enumerate(zip(values, kinds, strict=True)):
        shapes += [box(x + CELL * i, y, CELL, CELL, kind), text(x + CELL * (i + 0.5), y + 18, value, "ink small")]
    return shapes


def csr_arrays(values: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """Values, columns and the start of every row, of a matrix in compressed sparse rows."""
    rows, columns = np.nonzero(values)
    starts = np.searchsorted(rows, np.arange(len(values) + 1))
    return values[rows, columns].tolist(), columns.tolist(), starts.tolist()


def formats() -> str:
    """Matrices with single zeros and with zeros in blocks of two outputs, and what is stored of them."""
    single = np.array(
        [[0, 3, 0, 0, 0, 5, 0, 0], [0, 0, 0, 0, 2, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0, 1], [0, 0, 4, 0, 0, 6, 0, 0]]
    )
    blocks = np.array(
        [[0, 3, 0, 0, 0, 5, 0, 0], [0, 8, 0, 0, 0, 2, 0, 0], [7, 0, 0, 0, 0, 0, 0, 1], [4, 0, 0, 0, 0, 0, 0, 6]]
    )
    values, columns, starts = csr_arrays(single)
    kinds = ["ab"[row % 2] for row in np.nonzero(single)[0]]
    shapes = [text(20, 24, "csr: single weights", "ink title", "start"), *matrix(20, 40, single)]
    shapes += strip(360, 48, "values", values, kinds)
    shapes += strip(360, 84, "inputs", columns, kinds)
    shapes += strip(360, 120, "starts", starts, ["zero"] * len(starts))
    pairs = [(row, column) for row in (0, 2) for column in np.flatnonzero(blocks[row])]
    kinds = ["ab"[row // 2] for row, _ in pairs]
    stored = [int(blocks[row + i, column]) for row, column in pairs for i in (0, 1)]
    shapes += [text(20, 194, "2x1: blocks of two outputs", "ink title", "start"), *matrix(20, 210, blocks, block=2)]
    shapes += strip(360, 218, "values", stored, [kind for kind in kinds for _ in (0, 1)])
    shapes += strip(360, 254, "inputs", [int(column) for _, column in pairs], kinds)
    shapes += strip(360, 290, "starts", [0, 2, 4], ["zero"] * 3)
    shapes += [text(600, 272, "one index for two weights", "faint small", "start")]
    gaps = gaps_between(np.flatnonzero(single), bits=2).tolist()
    shapes += [text(20, 364, "a packed file: the first matrix, with gaps of 2 bits", "ink title", "start")]
    shapes += strip(100, 384, "values", values, ["a"] * len(values))
    shapes += strip(100, 420, "gaps", gaps, ["zero" if gap == 3 else "a" for gap in gaps])
    shapes += [
        text(
            100,
            466,
            "0 to 2: so many zeros before the next weight; 3: three zeros and no weight",
            "faint small",
            "start",
        )
    ]
    return svg(780, 480, "A pruned matrix as compressed sparse rows, in blocks, and with relative indices", shapes)


def main() -> None:
    """Writes the pictures."""
    for picture in (pipeline, formats):
        Path(__file__).with_name(f"{picture.__name__}.svg").write_text(picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
