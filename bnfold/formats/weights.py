"""Weights that sum to one along an axis, from the softmax that makes them to where they are used.

Exact when   TO_ONE  in between they are only carried: dropout in eval, a transposition; a change of
                     shape or a selection of other axes
"""

from __future__ import annotations

from bnfold.algebra.graph import Identity, Op, Reshape, Take, Transpose


def carried(op: Op, axis: int) -> int | None:
    """The axis along which the result of `op` sums to one, if what it reads does along `axis`."""
    match op:
        case Identity():
            return axis
        case Transpose(perm=perm):
            return perm.index(axis)
        case Reshape(groups=groups):
            return next((to[0] for run, to in groups if run == (axis,) and len(to) == 1), None)
        case Take(axis=divided):
            return axis if axis != divided else None
    return None
