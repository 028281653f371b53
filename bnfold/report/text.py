"""Tables for a terminal. The same tables, without colour, are what results print as."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import rich.table
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType
from rich.segment import Segment
from rich.text import Text

from bnfold.algebra.plan import Count, Plan
from bnfold.errors import shortened
from bnfold.report.document import Document, Section, Table, visible
from bnfold.report.ops import ops_table
from bnfold.report.sites import MOST_ROWS, SiteList
from bnfold.verification import Row, Verification
from bnfold.verification.gate import HEADINGS, NUMERIC

WIDTH = 100
"""Columns of a rendered string; a terminal gives its own."""


def render(document: Document) -> str:
    """The document as plain text."""
    return plain(parts(document))


def plain(renderables: Iterable[RenderableType]) -> str:
    """What rich would show, as plain text."""
    buffer = io.StringIO()
    show(Console(file=buffer, width=WIDTH, color_system=None, legacy_windows=False), renderables)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).rstrip("\n")


def show(console: Console, renderables: Iterable[RenderableType]) -> None:
    """Print them; what is wider than the console is not cut off."""
    for each in renderables:
        console.print(_Visible(each), crop=False)


@dataclass(frozen=True, slots=True)
class _Visible:
    """Shows the control characters of a model's own names, which could rewrite the verdict."""

    inner: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def parts(document: Document) -> list[RenderableType]:
    """A document as it is told, section by section."""
    told: list[RenderableType] = []
    if document.failure is not None:
        told.append(Text(f"error: {document.failure.message}", style="bold red"))
        told += [Text(f"hint: {document.failure.hint}")] if document.failure.hint else []
    for position, section in enumerate(document.sections):
        told += [Text()] if position else []
        told += _section(section, document.everything)
    return told


def _section(section: Section, everything: bool) -> Iterator[RenderableType]:
    """Plan, notes, how the result compares with the original, and what became of it."""
    if section.name:
        yield Text(section.name, style="bold")
    yield from (Text(shortened(line)) for line in section.lines)
    if section.plan is not None:
        yield from (Text(),) if section.lines else ()
        yield plan_part(section.plan, everything)
    for note in section.notes:
        yield Text(shortened(f"note: {note}"), style="yellow")
    for position, table in enumerate(section.tables):
        yield from (Text(),) if position or section.lines else ()
        yield _table(table)
    if section.graph is not None:
        yield Text(f"\n{section.graph}")
    if section.verification is not None:
        yield verification_part(section.verification, everything)
    if section.ending:
        yield Text(section.ending, style="" if section.passed else "bold red")


def _table(table: Table) -> RenderableType:
    shown = rich.table.Table(box=None, pad_edge=False)
    for heading in table.headings:
        right = heading in table.numeric
        justify: JustifyMethod = "right" if right else "left"
        shown.add_column(heading, justify=justify, overflow="fold", no_wrap=right)
    for number, row in enumerate(table.rows):
        shown.add_row(
            *(Text(shortened(cell)) for cell in row),
            style="yellow" if number in table.wanting else "",
        )
    return shown


def plan_part(plan: Plan, everything: bool = False) -> RenderableType:
    """Every affine with its fate (with `everything`, each of many), and the counts."""
    if not plan.sites:
        return Group(
            Text("Nothing to fold: the model has no BatchNorm and no other affine."),
            _ops(plan, everything),
        )
    counts = Text(f"\nBatchNorms: {_count(plan.batchnorms)}")
    others = plan.affines.found - plan.batchnorms.found
    if others:
        counts.append(f"\nall affines: {_count(plan.affines)}")
    return Group(SiteList(plan, everything), counts, _ops(plan, everything))


def _ops(plan: Plan, everything: bool) -> RenderableType:
    if plan.ops.unchanged:
        return Text(f"ops: {plan.ops}")
    return Group(Text(), _table(ops_table(plan, everything)))


def _count(count: Count) -> str:
    return f"{count.found} found, {count.folded} folded, {count.kept} kept"


def _place(row: Row) -> str:
    return f"{row.place.provider}, {row.place.case}, {row.place.output}"


def verification_part(verification: Verification, everything: bool = False) -> RenderableType:
    """One line per place and output, the worst of its cases; then the verdict.

    With `everything`, what assert_close would have said as well.
    """
    table = rich.table.Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        numeric = heading in NUMERIC
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    worst = verification.worst_rows()
    if not everything and len(worst) > MOST_ROWS:
        most = sorted(worst, key=lambda row: row.badness, reverse=True)[: MOST_ROWS // 2]
        shown = [row for row in worst if row in most]
    else:
        shown = worst
    for row in shown:
        *cells, verdict = row.cells()
        style = "green" if row.passed else "bold red"
        table.add_row(*(Text(shortened(cell)) for cell in cells), Text(verdict, style=style))
    parts: list[RenderableType] = [Text(), table] if verification.rows else []
    if rest := len(worst) - len(shown):
        parts.append(Text(f"and {rest} more, which came no nearer to failing: --all lists them"))
    parts += [  # the summary tells of the worst of all
        Text(shortened(f"{_place(row)}: {row.why}"), style="red")
        for row in shown
        if row.why and row is not verification.worst
    ]
    style = "bold green" if verification.passed else "bold red"
    parts.append(Text(f"\n{shortened(verification.summary)}", style=style))
    asides = [*verification.asides, *(verification.closeness if everything else ())]
    return Group(*parts, *(Text(shortened(aside)) for aside in asides))
