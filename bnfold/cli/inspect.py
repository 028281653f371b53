"""`bnfold inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bnfold.cli.options import Source, isolation_options, listing_option, source_options
from bnfold.cli.output import output_options, tell
from bnfold.cli.session import GATE_FAILED, Isolation, working


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
@click.option(
    "--compact",
    is_flag=True,
    help="For weights: without regard to their class, for bnfold.load alone.",
)
@click.option("--require-folded", is_flag=True, help="Exit 1 if any BatchNorm would be kept.")
@click.option(
    "--no-move", is_flag=True, help="Leave 1x1 convolutions and linear layers where they are."
)
@source_options
@isolation_options
@listing_option
@output_options
def inspect(
    path: Path,
    form: Any,
    show_graph: bool,
    compact: bool,
    require_folded: bool,
    no_move: bool,
    source: Source,
    isolation: Isolation,
    everything: bool,
) -> int:
    """Say what `fold` would do with every affine of MODEL, and why; change nothing.

    \b
    bnfold inspect model.onnx
    bnfold inspect model.pt --input 1x3x224x224 --graph
    """
    from bnfold.report.document import Document, Section
    from bnfold.verbs import folding, results

    with working(path, isolation):
        model, plan = folding.inspect(
            path,
            source.inputs,
            form=form,
            compact=compact,
            move=not no_move,
            opening=source.opening,
        )
    described = results.describe(path, model)
    data = {
        "schema_version": results.SCHEMA_VERSION,
        "source": described.to_json(),
        "inputs": [str(spec) for spec in model.inputs],
        **results.counts(plan),
        "sites": [site.to_json() for site in plan.sites],
        "notes": list(model.notes),
    }
    specs = ", ".join(map(str, model.inputs))
    section = Section(
        lines=(f"{path}: {model.format}, inputs {specs}",),
        plan=plan,
        graph=plan.before if show_graph else None,
        notes=model.notes,
        require_folded=require_folded,
    )
    document = Document("bnfold inspect", str(path), (section,), data)
    tell(document, everything=everything)
    return 0 if document.passed else GATE_FAILED
