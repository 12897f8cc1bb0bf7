"""`lwc estimate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import lwc_compiler as lwc
from lwc_compiler.commands.output import print_json, print_table
from lwc_compiler.commands.parts import Command, json_option, model_argument


@click.command(cls=Command, parts=("estimate",))
@model_argument
@json_option
def estimate(model: Path, as_json: bool, **options: Any) -> None:
    """Says what to expect of MODEL at several sparsities, before any training.

    Latency is that of one core, or of a GPU; for this machine kernels are measured, for other targets a model of the
    processor predicts. A layer pays up to the density at which it is as fast as with every weight stored.
    """
    from lwc_compiler.commands.options import part_of
    from lwc_compiler.report.estimates import layer_cells, point_cells

    found = lwc.estimate(model, part_of(options, "estimate"))
    if as_json:
        print_json(asdict(found))
        return
    print_table(*point_cells(found))
    print_table(*layer_cells(found))
    for line in found.notes:
        click.echo(line)
