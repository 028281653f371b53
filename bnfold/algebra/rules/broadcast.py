"""How an affine of a result looks on an operand that is broadcast to it, and the other way round.

Axes are aligned from the right.

up    an operand can do what the result wants if the affine does not vary along the axes that the
      operand lacks, or has only one index of
down  what varies along an axis of an operand varies along that of the result; along an axis where
      it is broadcast it has one index and cannot vary

An axis of unknown size counts as whole. If the operand has one index of it after all, an affine
that varies along it finds nobody to take it: it keeps varying along an axis that is too short,
through every reshape, and what changes a size or has constants knows the true one.
"""

from __future__ import annotations

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Node, Shape, Size
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import Shapes, refused, unknown_shape


def on_operand(
    node: Node, affine: ChannelAffine, value: str, shapes: Shapes
) -> ChannelAffine | Refusal:
    """An affine of the node's output as one of the operand `value`."""
    ranks = _shapes(node, affine, value, shapes)
    if ranks is None:
        return affine
    if isinstance(ranks, Refusal):
        return ranks
    whole, shape = ranks
    offset = len(whole) - len(shape)
    lacking = (i for i in affine.axes if i < offset or _lacks(shape[i - offset], whole[i]))
    seen = affine.without(*lacking)
    if seen is None:
        why = f"its operand {value} is broadcast over the channels, whose scales or shifts differ"
        return refused(Reason.OTHER_OPERAND, node, why)
    return seen.moved_by(-offset)


def on_result(
    node: Node, affine: ChannelAffine, value: str, shapes: Shapes
) -> ChannelAffine | Refusal:
    """An affine of the operand `value` as one of the node's output."""
    ranks = _shapes(node, affine, value, shapes)
    if ranks is None:
        return affine
    if isinstance(ranks, Refusal):
        return ranks
    whole, shape = ranks
    offset = len(whole) - len(shape)
    seen = affine.without(*(i for i in affine.axes if _lacks(shape[i], whole[i + offset])))
    if seen is None:
        why = f"its operand {value} is repeated along the affine's own channels"
        return refused(Reason.OTHER_OPERAND, node, why)
    return seen.moved_by(offset)


def _lacks(part: Size, whole: Size) -> bool:
    """Whether an operand of size `part` is known not to have all the indices."""
    return part == 1 or (isinstance(part, int) and isinstance(whole, int) and part != whole)


def _shapes(
    node: Node, affine: ChannelAffine, value: str, shapes: Shapes
) -> tuple[Shape, Shape] | Refusal | None:
    """The shapes of the output and of `value`; None if a uniform affine needs neither."""
    if not affine.axes:
        return None
    whole, shape = shapes.get(node.outputs[0]), shapes.get(value)
    if whole is None or shape is None:
        return unknown_shape(node, node.outputs[0] if whole is None else value)
    return whole, shape
