"""Tables for a terminal. The same tables, without colour, are what results print as."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bnfold.plan import Count, Plan
from bnfold.report.sites import SiteList
from bnfold.verification import Verification

WIDTH = 100
"""Columns of a rendered string; a terminal gives its own."""


def render(parts: Iterable[RenderableType]) -> str:
    """The parts as plain text."""
    buffer = io.StringIO()
    show(Console(file=buffer, width=WIDTH, color_system=None, legacy_windows=False), parts)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).rstrip("\n")


def show(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print the parts; what is wider than the console is not cut off."""
    for part in parts:
        console.print(part, crop=False)


def fold_text(plan: Plan, verification: Verification | None, notes: Sequence[str] = ()) -> str:
    return render(fold_parts(plan, verification, notes))


def fold_parts(
    plan: Plan,
    verification: Verification | None,
    notes: Sequence[str] = (),
    everything: bool = False,
) -> list[RenderableType]:
    """A fold as it is told: the plan, notes, and how the result compares with the original."""
    parts: list[RenderableType] = [plan_part(plan, everything)]
    parts += [Text(f"note: {note}", style="yellow") for note in notes]
    if verification is not None:
        parts.append(verification_part(verification))
    return parts


def plan_part(plan: Plan, everything: bool = False) -> RenderableType:
    """Every affine with its fate (with `everything`, each of many), and the counts."""
    if not plan.sites:
        return Group(
            Text("Nothing to fold: the model has no BatchNorm and no other affine."),
            Text(f"ops: {plan.ops}"),
        )
    counts = Text(f"\nBatchNorms: {_count(plan.batchnorms)}")
    others = plan.affines.found - plan.batchnorms.found
    if others:
        counts.append(f"\nall affines: {_count(plan.affines)}")
    return Group(SiteList(plan, everything), counts, Text(f"ops: {plan.ops}"))


def _count(count: Count) -> str:
    return f"{count.found} found, {count.folded} folded, {count.kept} kept"


def verification_part(verification: Verification) -> RenderableType:
    """One line per place and output, the worst of its cases; then the verdict."""
    table = Table(box=None, pad_edge=False)
    for heading in ("verified on", "output", "worst case", "floor", "error", "ratio", "verdict"):
        numeric = heading in ("floor", "error", "ratio")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    for row in verification.worst_rows():
        *cells, verdict = row.cells()
        style = "green" if row.passed else "bold red"
        table.add_row(*(Text(cell) for cell in cells), Text(verdict, style=style))
    parts: list[RenderableType] = [Text(), table] if verification.rows else []
    parts += [
        Text(f"{row.provider}, {row.case}, {row.output}: {row.why}", style="red")
        for row in verification.worst_rows()
        if row.why
    ]
    style = "bold green" if verification.passed else "bold red"
    return Group(*parts, Text(f"\n{verification.summary}", style=style))
