"""What the ops of a model, its parameters and its multiply-adds were and are, as a table."""

from __future__ import annotations

from collections.abc import Iterator

from bnfold.algebra.cost import cost
from bnfold.algebra.plan import Plan
from bnfold.report.document import Table

HEADINGS = ("ops", "before", "after")


MOST_KINDS = 10
"""Kinds of op that are told of one by one; of more, those that stay as they are become one row."""


def ops_table(plan: Plan, everything: bool = True) -> Table:
    """A row for each kind of op, those that changed first; then the totals."""
    return Table(HEADINGS, tuple(_rows(plan, everything)), frozenset(HEADINGS[1:]))


def _rows(plan: Plan, everything: bool) -> Iterator[tuple[str, str, str]]:
    kinds = sorted(plan.ops.kinds.items(), key=lambda each: each[1][0] == each[1][1])
    whole = everything or len(kinds) <= MOST_KINDS
    same = [] if whole else [counts for _, counts in kinds if counts[0] == counts[1]]
    for kind, (before, after) in kinds[: len(kinds) - len(same)]:
        yield kind, str(before), str(after)
    if same:
        many = str(sum(before for before, _ in same))
        yield f"{len(same)} other kinds", many, many
    yield "all", str(plan.ops.before), str(plan.ops.after)
    before_, after_ = cost(plan.before), cost(plan.after)
    yield "parameters", f"{before_.parameters:,}", f"{after_.parameters:,}"
    if before_.multiply_adds is not None and after_.multiply_adds is not None:
        yield "multiply-adds", f"{before_.multiply_adds:,}", f"{after_.multiply_adds:,}"
