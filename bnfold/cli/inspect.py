"""`bnfold inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from bnfold.cli.session import (
    GATE_FAILED,
    Source,
    Telling,
    listing_option,
    missed,
    source_options,
    tell,
    telling_options,
    working,
)


@click.command()
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--form",
    type=click.Choice(["auto", "module", "graph"]),
    default="auto",
    show_default=True,
    help="For a module: what can be done in place, or in its graph.",
)
@click.option("--graph", "show_graph", is_flag=True, help="Print the neutral graph as well.")
@click.option("--require-folded", is_flag=True, help="Exit 1 if any BatchNorm would be kept.")
@source_options
@listing_option
@telling_options
def inspect(
    path: Path,
    form: Any,
    show_graph: bool,
    require_folded: bool,
    source: Source,
    everything: bool,
    telling: Telling,
) -> int:
    """Say what `fold` would do with every affine of MODEL, and why; change nothing.

    \b
    bnfold inspect model.onnx
    bnfold inspect model.pt --input 1x3x224x224 --graph
    """
    from bnfold import folding
    from bnfold.report.text import plan_part

    with working():
        model, plan = folding.inspect(path, source.inputs, form=form, opening=source.opening)
    described = folding.describe(path, model)
    data = {
        "schema_version": folding.SCHEMA_VERSION,
        "source": described.to_json(),
        "inputs": [str(spec) for spec in model.inputs],
        **folding.counts(plan),
        "sites": [site.to_json() for site in plan.sites],
        "notes": list(model.notes),
    }
    specs = ", ".join(map(str, model.inputs))
    parts = [Text(f"{path}: {model.format}, inputs {specs}\n"), plan_part(plan, everything)]
    parts += [Text(f"note: {note}", style="yellow") for note in model.notes]
    if show_graph:
        parts.append(Text(f"\n{plan.before}"))
    unfolded = require_folded and plan.batchnorms.kept > 0
    if unfolded:
        parts.append(missed(plan))
    tell(telling, parts, data)
    return GATE_FAILED if unfolded else 0
