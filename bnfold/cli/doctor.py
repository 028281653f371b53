"""`bnfold doctor`."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from bnfold.cli.session import (
    Telling,
    tell,
    telling_options,
    working,
)


@click.command()
@telling_options
def doctor(telling: Telling) -> int:
    """Show versions, which execution providers load, and how to mend what does not."""
    from bnfold import environment

    with working():
        found = environment.examine()
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "state", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in found:
        style_ = "green" if finding.fine else "yellow"
        table.add_row(
            Text(finding.what), Text(finding.state, style=style_), Text(finding.mend or "")
        )
    data = {
        "schema_version": 1,
        "findings": [
            {"what": f.what, "state": f.state, "fine": f.fine, "mend": f.mend} for f in found
        ],
    }
    tell(telling, [table], data)
    broken = any(not finding.fine and finding.needed for finding in found)
    return environment.LACKING if broken else 0
