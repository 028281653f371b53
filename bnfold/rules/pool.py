"""Move an affine through pooling: pool(s * x + b) = s * pool(x) + b, in both directions.

Maximum             exact when  SIGN      every s >= 0; a maximum turns into a minimum below zero.
                                          Padding is -inf and never chosen
Average             exact when  NO_ZEROS  (b != 0) no zeros are averaged in: no pads, or pads that
                                          are not counted, and no divisor of another size
Adaptive, global,   exact           (maximum: SIGN): their windows are never padded
mean over axes
All                 exact when  CHANNELS  the affine's axis is not one that is pooled away
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.graph import AdaptivePool, Mean, Node, Pool, Shape
from bnfold.refusal import Reason, Refusal
from bnfold.rules.move import (
    Answer,
    Shapes,
    negative_scales,
    passed_down,
    passed_up,
    refused,
    unknown_shape,
)


def up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    refusal = _unfit(node, affine, shapes.get(node.inputs[0]))
    return refusal or passed_up(node, affine)


def down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    refusal = _unfit(node, affine, shapes.get(node.inputs[0]))
    return refusal or passed_down(node, affine)


def mean_up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op, shape = _mean(node), shapes.get(node.inputs[0])
    if affine.axis is None:
        return passed_up(node, affine)
    if shape is None:
        return unknown_shape(node, node.inputs[0])
    kept = [i for i in range(len(shape)) if op.keepdims or i not in op.axes]
    axis = kept[affine.axis]
    return _meaned_away(node) if axis in op.axes else passed_up(node, affine.at(axis))


def mean_down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op = _mean(node)
    if affine.axis is None:
        return passed_down(node, affine)
    if affine.axis in op.axes:
        return _meaned_away(node)
    gone = 0 if op.keepdims else sum(axis < affine.axis for axis in op.axes)
    return passed_down(node, affine.at(affine.axis - gone))


def _mean(node: Node) -> Mean:
    assert isinstance(node.op, Mean)
    return node.op


def _meaned_away(node: Node) -> Refusal:
    return refused(Reason.WRONG_AXIS, node, "the mean is taken over the affine's own channels")


def _unfit(node: Node, affine: ChannelAffine, shape: Shape | None) -> Refusal | None:
    op = node.op
    assert isinstance(op, Pool | AdaptivePool)
    if affine.axis is not None:
        if shape is None:
            return unknown_shape(node, node.inputs[0])
        pooled = len(op.kernel) if isinstance(op, Pool) else len(op.output_size)
        if affine.axis >= len(shape) - pooled:
            return refused(Reason.WRONG_AXIS, node, "it pools over the affine's own channels")
    if op.kind == "max":
        return _sign(node, affine)
    if isinstance(op, Pool) and affine.shifts and _averages_zeros(op):
        return _zeros(node, op)
    return None


def _sign(node: Node, affine: ChannelAffine) -> Refusal | None:
    if not np.any(affine.scale < 0):
        return None
    why = negative_scales(affine)
    return refused(Reason.NEGATIVE_SCALE, node, f"{why}, and would turn its maximum over")


def _averages_zeros(op: Pool) -> bool:
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
