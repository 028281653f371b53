"""`bnfold prove`."""

from __future__ import annotations

from pathlib import Path

import click

from bnfold.cli.options import isolation_options
from bnfold.cli.output import output_options, tell
from bnfold.cli.session import GATE_FAILED, Isolation, working


@click.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@isolation_options
@output_options
def prove(reference: Path, candidate: Path, isolation: Isolation) -> int:
    """Is CANDIDATE the same function as REFERENCE for every input? Exit 1 if that stays open.

    Both are ONNX, and neither is run. They are held against each other node by node: what is proved
    is the same for all inputs of all sizes, up to rounding. What is not proved may still be right:
    `bnfold verify` measures it.

    \b
    bnfold prove model.onnx model.folded.onnx
    """
    from bnfold.report.document import Check, Document, Section
    from bnfold.verbs import proving
    from bnfold.verbs.results import SCHEMA_VERSION

    with working(reference, isolation) as progress:
        progress("prove")
        proof = proving.prove(reference, candidate)
    data = {
        "schema_version": SCHEMA_VERSION,
        "verdict": "pass" if proof.proved else "fail",
        "reference": str(reference),
        "candidate": str(candidate),
        "proof": proof.to_json(),
    }
    section = Section(
        str(candidate),
        lines=tuple(proof.lines),
        checks=tuple(
            Check("proof", each.output, None if each.proved else str(each.open[0]))
            for each in proof.findings
        ),
    )
    tell(Document("bnfold prove", str(reference), (section,), data))
    return 0 if proof.proved else GATE_FAILED
