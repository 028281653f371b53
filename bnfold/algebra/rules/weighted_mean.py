"""Move an affine through a mean with computed weights: softmax(q k^T) @ v.

P (s * v + b) = s * (P v) + b, because every row of P sums to one; in both directions. The same with
the values on the left and weights whose columns sum to one.

Exact when   VALUES     the affine comes in at the values, not at the weights
             OUTER      it does not vary along the axis that is averaged over
             SAME_SIZE  (up) the values are not broadcast along an axis where it varies
"""

from __future__ import annotations

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Node, WeightedMean
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import Answer, Ask, Move, Shapes, passed_down, refused
from bnfold.algebra.rules.product import of_factor, on_factor


def up(op: WeightedMean, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    values = node.inputs[op.port]
    a = on_factor(node, affine, values, _side(op), shapes)
    return a if isinstance(a, Refusal) else (Move(asks=(Ask(values, a),)),)


def down(op: WeightedMean, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if port != op.port:
        return refused(Reason.NOT_LINEAR, node, "it reads the value as weights")
    a = of_factor(node, affine, node.inputs[port], _side(op), shapes)
    return a if isinstance(a, Refusal) else passed_down(node, a)


def _side(op: WeightedMean) -> int:
    """Which factor of a matrix product the values are: the left (0) or the right (1)."""
    return 1 if op.axis == -2 else 0
