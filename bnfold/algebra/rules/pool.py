"""Move an affine through pooling: pool(s * x + b) = s * pool(x) + b, in both directions.

Maximum, minimum    exact when  SIGN      every s >= 0; a maximum turns into a minimum below zero.
                                          Padding is -inf and never chosen
Average             exact when  NO_ZEROS  (b != 0) no zeros are averaged in: no pads, or pads that
                                          are not counted, and no divisor of another size
Adaptive, global,   exact           (maximum: SIGN): their windows are never padded
mean over axes
Sum over axes       exact when  TERMS     (b != 0) it is known of how many terms, n: the shift comes
                                          out n times (down), goes in as b / n (up)
All                 exact when  CHANNELS  the affine varies along no axis that is pooled
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import AdaptivePool, Mean, Node, Pool, Shape, product
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import (
    Answer,
    Shapes,
    negative_scales,
    passed_down,
    passed_up,
    refused,
    unknown_shape,
)


def up(
    op: Pool | AdaptivePool, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
) -> Answer:
    a = _fitting(op, node, affine, shapes)
    return a if isinstance(a, Refusal) else passed_up(node, a)


def down(
    op: Pool | AdaptivePool, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
) -> Answer:
    a = _fitting(op, node, affine, shapes)
    return a if isinstance(a, Refusal) else passed_down(node, a)


def mean_up(op: Mean, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    shape = shapes.get(node.inputs[0])
    if affine.axes and shape is None:
        return unknown_shape(node, node.inputs[0])
    kept = [i for i in range(len(shape or ())) if op.keepdims or i not in op.axes]
    moved = affine.moved([kept[axis] for axis in affine.axes]).without(*op.axes)
    if moved is None:
        return _meaned_away(node)
    count = _count(op, node, affine, shape)
    return count if isinstance(count, Refusal) else passed_up(node, _shifted(moved, 1 / count))


def mean_down(op: Mean, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    left = affine.without(*op.axes)
    if left is None:
        return _meaned_away(node)
    count = _count(op, node, affine, shapes.get(node.inputs[0]))
    if isinstance(count, Refusal):
        return count
    gone = () if op.keepdims else op.axes
    moved = left.moved([i - sum(axis < i for axis in gone) for i in left.axes])
    return passed_down(node, _shifted(moved, count))


def _shifted(affine: ChannelAffine, times: float) -> ChannelAffine:
    return ChannelAffine(affine.axes, affine.scale, times * affine.shift)


def _count(op: Mean, node: Node, affine: ChannelAffine, shape: Shape | None) -> int | Refusal:
    """TERMS: how often a shift comes out: once, or of a sum, for each of its terms."""
    if not op.total or not affine.shifts:
        return 1
    count = None if shape is None else product(tuple(shape[axis] for axis in op.axes))
    return count or unknown_shape(node, node.inputs[0])


def _meaned_away(node: Node) -> Refusal:
    return refused(Reason.WRONG_AXIS, node, "the mean is taken over the affine's own channels")


def _fitting(
    op: Pool | AdaptivePool, node: Node, affine: ChannelAffine, shapes: Shapes
) -> ChannelAffine | Refusal:
    """The affine, which passes, on the axes that are not pooled."""
    shape = shapes.get(node.inputs[0])
    left: ChannelAffine | None = affine
    if affine.axes:
        if shape is None:
            return unknown_shape(node, node.inputs[0])
        pooled = len(op.kernel) if isinstance(op, Pool) else len(op.output_size)
        left = affine.without(*range(len(shape) - pooled, len(shape)))
    if left is None:
        return refused(Reason.WRONG_AXIS, node, "it pools over the affine's own channels")
    if op.kind != "avg":
        return _turned_over(node, left) if np.any(left.scale < 0) else left
    if isinstance(op, Pool) and left.shifts and averages_zeros(op):
        return _zeros(node, op)
    return left


def _turned_over(node: Node, affine: ChannelAffine) -> Refusal:
    why = negative_scales(affine)
    return refused(Reason.NEGATIVE_SCALE, node, f"{why}, and would turn its maximum over")


def averages_zeros(op: Pool) -> bool:
    """Whether an average is of less than the window, so that a shift would not come out whole."""
    padded = any(lo or hi for lo, hi in op.pads)
    if op.divisor is not None:
        return padded or op.ceil_mode or op.divisor != math.prod(op.kernel)
    return padded and op.count_include_pad


def _zeros(node: Node, op: Pool) -> Refusal:
    if any(lo or hi for lo, hi in op.pads):
        why = "it averages padded zeros, which the shift would not reach"
        return refused(Reason.ZERO_PADDING, node, why)
    why = f"it divides by {op.divisor} whatever the window holds, so a shift would come out scaled"
    return refused(Reason.SHIFT, node, why)
