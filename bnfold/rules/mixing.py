"""Move an affine through a mean with computed weights: softmax(q k^T) @ v.

P (s * v + b) = s * (P v) + b, because every row of P sums to one; in both directions.

Exact when   VALUES   the affine comes in at the values, not at the weights
             FEATURES its axis is not the one that is averaged over
"""

from __future__ import annotations

from bnfold.affine import ChannelAffine
from bnfold.graph import Node, WeightedMean
from bnfold.refusal import Reason, Refusal
from bnfold.rules.move import Answer, Ask, Move, Shapes, passed_down, refused, unknown_shape


def up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    values = node.inputs[_mean(node).port]
    refusal = _averaged_axis(node, affine, shapes)
    return refusal or (Move(asks=(Ask(values, affine),)),)


def down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if port != _mean(node).port:
        return refused(Reason.NOT_LINEAR, node, "it reads the value as weights")
    return _averaged_axis(node, affine, shapes) or passed_down(node, affine)


def _averaged_axis(node: Node, affine: ChannelAffine, shapes: Shapes) -> Refusal | None:
    if affine.axis is None:
        return None
    whole, values = (shapes.get(v) for v in (node.outputs[0], node.inputs[_mean(node).port]))
    if whole is None or values is None or len(whole) != len(values):
        return unknown_shape(node, node.outputs[0])
    if affine.axis == len(whole) - 2:
        return refused(Reason.WRONG_AXIS, node, "it averages over the affine's own channels")
    if affine.axis < len(whole) - 2 and values[affine.axis] != whole[affine.axis]:
        return refused(Reason.OTHER_OPERAND, node, "its values are broadcast over the channels")
    return None


def _mean(node: Node) -> WeightedMean:
    assert isinstance(node.op, WeightedMean)
    return node.op
