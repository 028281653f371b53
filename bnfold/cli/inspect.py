"""`bnfold inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from bnfold.cli.session import (
    GATE_FAILED,
    model_options,
    opening,
    report_options,
    tell,
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
@model_options
@report_options
def inspect(
    path: Path,
    form: Any,
    show_graph: bool,
    require_folded: bool,
    inputs: tuple[str, ...],
    factory: str | None,
    model_args: str | None,
    allow: tuple[str, ...],
    trust: bool,
    style: str,
    reports: tuple[Path, ...],
    debug: bool,
) -> int:
    """Say what `fold` would do with every affine of MODEL, and why; change nothing.

    \b
    bnfold inspect model.onnx
    bnfold inspect model.pt --input 1x3x224x224 --graph
    """
    from bnfold import folding
    from bnfold.report.text import plan_part

    with working():
        model, plan = folding.inspect(
            path, list(inputs), form=form, opening=opening(factory, model_args, allow, trust)
        )
    source = folding.describe(path, model)
    data = {
        "schema_version": folding.SCHEMA_VERSION,
        "source": source.to_json(),
        "inputs": [str(spec) for spec in model.inputs],
        **folding.counts(plan),
        "sites": [site.to_json() for site in plan.sites],
        "notes": list(model.notes),
    }
    specs = ", ".join(map(str, model.inputs))
    parts = [Text(f"{path}: {model.format}, inputs {specs}\n"), plan_part(plan)]
    parts += [Text(f"note: {note}", style="yellow") for note in model.notes]
    if show_graph:
        parts.append(Text(f"\n{plan.before}"))
    tell(style, reports, parts, data)
    return GATE_FAILED if require_folded and plan.batchnorms.kept else 0
