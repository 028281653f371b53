"""What became of the zoo, as the table that stands at the end of a test run."""

from __future__ import annotations

from collections.abc import Iterable

from tests.forms import FORMS, Folded

Row = tuple[str, str, str]
"""Architecture, form, cell."""


def cell(found: Folded) -> str:
    """BatchNorms folded of those found, other affines likewise, and the smallest k that passes."""
    norms, all_ = found.plan.batchnorms, found.plan.affines
    others = f"{all_.folded - norms.folded}/{all_.found - norms.found}"
    worst = found.verification.worst
    assert worst is not None
    return f"{norms.folded}/{norms.found} {others} {worst.ratio:.2f}"


def table(rows: Iterable[Row]) -> list[str]:
    """A line for each architecture, with the cells of its forms."""
    cells: dict[str, dict[str, str]] = {}
    for name, form, text in rows:
        cells.setdefault(name, {})[form] = text
    lines = [["", *FORMS]] + [
        [name, *(found.get(form, "") for form in FORMS)] for name, found in sorted(cells.items())
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(FORMS) + 1)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
