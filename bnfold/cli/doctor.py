"""`bnfold doctor`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bnfold.cli.options import listed
from bnfold.cli.output import output_options, tell
from bnfold.cli.session import working
from bnfold.environment import LACKING, TASKS, Finding, examine
from bnfold.report.document import Check, Document, Section, Table


@click.command()
@click.option(
    "--for",
    "tasks",
    default="onnx",
    show_default=True,
    metavar="LIST",
    help=f"What this host is for, with commas: {', '.join(TASKS)}. Exit 4 if it lacks what that "
    "needs.",
)
@output_options
def doctor(tasks: str) -> int:
    """Show versions, which execution providers load, what this host can do, and how to mend it.

    \b
    bnfold doctor
    bnfold doctor --for torch,export
    """
    with working():
        found = examine(listed(tasks))
    data = {
        "schema_version": 1,
        "findings": [
            {"what": f.what, "state": f.state, "fine": f.fine, "mend": f.mend} for f in found
        ],
    }
    tell(Document("bnfold doctor", sections=(_section(found),), data=data))
    broken = any(not finding.fine and finding.needed for finding in found)
    return LACKING if broken else 0


def _section(found: Sequence[Finding]) -> Section:
    """A row for each finding; what has to be there and is not is a failed check."""
    rows = tuple((finding.what, finding.state, finding.mend or "") for finding in found)
    checks = tuple(
        Check("environment", f.what, f.state if f.needed and not f.fine else None, f.state)
        for f in found
    )
    wanting = frozenset(row for row, finding in enumerate(found) if not finding.fine)
    return Section(
        tables=(Table(("what", "state", "what to do"), rows, wanting=wanting),), checks=checks
    )
