"""Records the quick start: `python docs/pictures/record.py` runs it and draws the terminal as quick-start.svg.

The network and its data are those of `lwc demo`. Nothing in the picture is a time: `lwc bench` is for a quiet machine.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

import lwc_compiler as lwc
from lwc_compiler import demo

COMMANDS = (
    "lwc compile model.onnx --sparsity 0.9 --train-data train.npz --val-data validation.npz -o small.lwc",
    "lwc inspect small.lwc",
    "lwc pack small.lwc/model.onnx -o small.lwcp --values codebook",
)
WIDTH = 142
# A terminal in SVG, in the reader's own monospaced font: rich's template would load one from a server.
FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>The quick start in a terminal</title>
<style>
  .{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px; line-height: {line_height}px }}
  {styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
  <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
<rect class="background" fill="#0c1117" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def prepare(folder: Path) -> None:
    """Writes the trained model and its data."""
    images = demo.load_digits()
    for part in ("train", "validation"):
        np.savez(folder / f"{part}.npz", pixels=images[f"{part}_pixels"], labels=images[f"{part}_labels"])
    data = (str(folder / "train.npz"), str(folder / "validation.npz"))
    options = lwc.RetrainOptions(epochs=demo.DENSE_EPOCHS, batch_size=demo.BATCH)
    lwc.save(lwc.retrain(demo.lenet_300_100(), *data, options), folder / "model.onnx")


def main() -> None:
    """Writes the picture; raises CalledProcessError when a command fails."""
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True)
    environment = {
        **os.environ,
        "COLUMNS": str(WIDTH),
        "FORCE_COLOR": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for command in COMMANDS:
            done = subprocess.run(command.split(), cwd=folder, env=environment, check=True, stdout=subprocess.PIPE)
            console.print(Text(f"$ {command}", style="bold"))
            console.print(Text.from_ansi(done.stdout.decode()))
    picture = console.export_svg(code_format=FRAME, unique_id="lwc")
    Path(__file__).with_name("quick-start.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
