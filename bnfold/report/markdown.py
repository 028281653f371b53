"""Markdown, for pull requests, step summaries and wikis (tables as GitHub writes them)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bnfold.algebra.plan import Outcome, Plan
from bnfold.algebra.refusal import listed
from bnfold.report.document import Document, Section, visible
from bnfold.report.ops import ops_table
from bnfold.report.sites import MOST_ROWS
from bnfold.verification import Verification
from bnfold.verification.gate import HEADINGS, NUMERIC

_SPECIAL = re.compile(r"([\\`*_\[\]<|#~])")


def render(document: Document) -> str:
    """A heading, then for each section its tables, notes and verdict."""
    heading = _plain(f"{document.title} {document.source}".strip())
    blocks = [f"## {heading}" + (f": {document.verdict}" if document.verdict else "")]
    if document.failure is not None:
        blocks.append(f"**error** {_plain(document.failure.message)}")
        blocks += [f"hint: {_plain(document.failure.hint)}"] if document.failure.hint else []
    for section in document.sections:
        blocks += _section(section, document.everything)
    return "\n\n".join(blocks)


def _section(section: Section, everything: bool) -> Iterator[str]:
    if section.name:
        yield f"### {_plain(section.name)}"
    yield from map(_plain, section.lines)
    if section.plan is not None:
        yield from _plan(section.plan, everything)
    for table in section.tables:
        yield _table(table.headings, table.rows, table.numeric)
    if section.graph is not None:
        yield "\n".join(f"    {line}" for line in str(section.graph).splitlines())
    if section.verification is not None:
        yield from _verification(section.verification)
    if section.notes:
        yield "\n".join(f"- note: {_plain(note)}" for note in section.notes)
    if section.ending:
        yield _plain(section.ending)


def _plan(plan: Plan, everything: bool) -> Iterator[str]:
    count = plan.batchnorms
    yield f"BatchNorms: {count.found} found, {count.folded} folded, {count.kept} kept."
    shown = plan.sites if everything else plan.sites[:MOST_ROWS]
    rows = [
        (site.name, site.op, str(site.outcome), site.why or listed(site.into)) for site in shown
    ]
    if any(site.outcome is Outcome.KEPT for site in plan.sites[len(shown) :]):
        yield "Of the affines that are not shown, some are kept."
    if rows:
        yield _table(("affine", "op", "outcome", "into, or why not"), rows)
    if rest := len(plan.sites) - len(shown):
        yield f"and {rest} more: `--all` lists them"
    ops = ops_table(plan)
    yield _table(ops.headings, ops.rows, ops.numeric)


def _verification(verification: Verification) -> Iterator[str]:
    rows = verification.worst_rows()
    if rows:
        yield _table(HEADINGS, [row.cells() for row in rows], NUMERIC)
    yield f"**{_plain(verification.summary)}**"
    yield from map(_plain, verification.asides)


def _table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: frozenset[str] = frozenset(),
) -> str:
    rule = ["---:" if heading in numeric else "---" for heading in headings]
    cells = [headings, rule, *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", visible(" ".join(text.split())))
