"""Reductions over axes: mean, sum and maximum. No axes stands for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bnfold.algebra.graph import AdaptivePool, Identity, Mean, Op, Shape, Transpose
from bnfold.formats.meaning.layout import runs
from bnfold.formats.meaning.operands import Tensor, keep_type
from bnfold.formats.meaning.steps import Meaning, one, row


def mean(
    x: Tensor, axes: Sequence[int], keepdims: bool, made: Tensor, total: bool = False
) -> Meaning:
    """The mean over axes; the sum if it is a `total`."""
    keep_type(x, made)
    return one(Mean(over(x, axes), keepdims, total), x)


def over(x: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes of a reduction, in order from the left."""
    return tuple(sorted({x.axis(axis) for axis in axes or range(x.rank)}))


def extreme(x: Tensor, axes: Sequence[int], keepdims: bool, kind: Literal["max", "min"]) -> Meaning:
    """The maximum or minimum: a pooling of whole axes, which must be the last and stay at first."""
    where = over(x, axes)
    kept = tuple(axis for axis in range(x.rank) if axis not in where)
    perm = (*kept, *where)
    if not where:
        return one(Identity(), x)
    own = x.known
    turned = tuple(own[axis] for axis in perm)
    pooled: Shape = (*turned[: len(kept)], *(1,) * len(where))
    steps: list[tuple[Op, Shape]] = [(AdaptivePool(kind, (1,) * len(where)), pooled)]
    if perm != tuple(range(x.rank)):
        steps.insert(0, (Transpose(perm), turned))
    if not keepdims:
        left = turned[: len(kept)]
        steps.append((runs(pooled, left), left))
    elif len(steps) > 1:
        back = tuple(perm.index(axis) for axis in range(x.rank))
        steps.append((Transpose(back), tuple(pooled[axis] for axis in back)))
    return row(x, steps)
