"""What the ops of a model, its parameters and its multiply-adds were and are, as a table."""

from __future__ import annotations

from collections.abc import Iterator

from bnfold.algebra.cost import cost
from bnfold.algebra.plan import Plan
from bnfold.report.document import Table

HEADINGS = ("ops", "before", "after")


def ops_table(plan: Plan) -> Table:
    """A row for each kind of op, those that changed first; then the totals."""
    return Table(HEADINGS, tuple(_rows(plan)), frozenset(HEADINGS[1:]))


def _rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    kinds = sorted(plan.ops.kinds.items(), key=lambda each: each[1][0] == each[1][1])
    for kind, (before, after) in kinds:
        yield kind, str(before), str(after)
    yield "all", str(plan.ops.before), str(plan.ops.after)
    before_, after_ = cost(plan.before), cost(plan.after)
    yield "parameters", f"{before_.parameters:,}", f"{after_.parameters:,}"
    if before_.multiply_adds is not None and after_.multiply_adds is not None:
        yield "multiply-adds", f"{before_.multiply_adds:,}", f"{after_.multiply_adds:,}"
