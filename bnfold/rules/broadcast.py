"""How an affine of a value looks on another that is broadcast to it: aligned from the right.

up    an operand can do what the result wants if the affine does not vary along the axes that the
      operand lacks or has only one index of
down  what varies along an axis of an operand varies along that of the result: an operand that is
      broadcast along an axis cannot vary there
"""

from __future__ import annotations

from bnfold.affine import ChannelAffine
from bnfold.graph import Node, Shape
from bnfold.refusal import Reason, Refusal
from bnfold.rules.move import Shapes, refused, unknown_shape


def on_operand(
    node: Node, affine: ChannelAffine, value: str, shapes: Shapes, kept: int = 0
) -> ChannelAffine | Refusal:
    """An affine of the node's output as one of the operand `value`.

    The last `kept` axes of the operand are never broadcast.
    """
    ranks = _shapes(node, affine, value, shapes)
    if ranks is None:
        return affine
    if isinstance(ranks, Refusal):
        return ranks
    whole, shape = ranks
    offset = len(whole) - len(shape)
    lacking: list[int] = []
    for axis in affine.axes:
        if axis >= len(whole) - kept:
            continue
        size = shape[axis - offset] if axis >= offset else 1
        if size is None or (isinstance(size, str) and size != whole[axis]):
            return unknown_shape(node, value)
        if size == 1 or (isinstance(whole[axis], int) and size != whole[axis]):
            lacking.append(axis)
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
    return affine.moved_by(len(whole) - len(shape))


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
