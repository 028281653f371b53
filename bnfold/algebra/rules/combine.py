"""Move an affine through the nodes that bring several values together: Add and Concat.

Add     up    s * sum_i fi * xi + b = sum_i fi * (s * xi), with b / fi added to exactly one of the
              operands; fi is -1 for one that is subtracted
        down  (x1 + b) + f * x2 = x1 + f * (x2 + b / f) = (x1 + f * x2) + b: another operand adds
              the shift, or the sum passes it on. A scale is refused: s * x1 + x2 is no affine of
              x1 + x2
Concat  up    each input takes its segment of the affine, or the whole on axes that are not joined
        down  the same: the other segments take the identity

Exact when   SAME_SIZE  (Add) every operand has the full number of channels. One that is broadcast
                        over them can take what is the same for all
             SEGMENTS   (Concat, down or the joined axis) the size of every segment is known
"""

from __future__ import annotations

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Add, Concat, Node, factors_of
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.broadcast import on_operand, on_result
from bnfold.algebra.rules.move import Answer, Ask, Move, Shapes, passed_down, refused, unknown_shape


def add_up(op: Add, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    operands: list[ChannelAffine] = []
    for value in node.inputs:
        part = _operand(node, affine, value, shapes)
        if isinstance(part, Refusal):
            return part
        operands.append(part)
    if not affine.shifts:
        return (Move(asks=_asks(node, operands, shifted=-1)),)
    able = [i for i, part in enumerate(operands) if part.shifts]
    if not able:
        why = "each of its operands is broadcast over the channels, and none can take the shift"
        return refused(Reason.OTHER_OPERAND, node, why)
    return tuple(Move(asks=_asks(node, operands, i)) for i in able)


def _operand(
    node: Node, affine: ChannelAffine, value: str, shapes: Shapes
) -> ChannelAffine | Refusal:
    """SAME_SIZE: the affine as it looks on one operand, without its shift if that is broadcast."""
    whole = on_operand(node, affine, value, shapes)
    if isinstance(whole, Refusal) and affine.shifts:
        return on_operand(node, affine.without_shift(), value, shapes)
    return whole


def _asks(node: Node, operands: list[ChannelAffine], shifted: int) -> tuple[Ask, ...]:
    each = zip(node.inputs, operands, factors_of(node), strict=True)
    return tuple(
        Ask(value, _with_shift(a, a.shift / factor) if i == shifted else a.without_shift())
        for i, (value, a, factor) in enumerate(each)
    )


def _with_shift(affine: ChannelAffine, shift: Array) -> ChannelAffine:
    return ChannelAffine(affine.axes, affine.scale, shift)


def add_down(op: Add, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if np.any(affine.scale != 1):
        why = "the other operand of the sum cannot take the inverse"
        return refused(Reason.OTHER_OPERAND, node, why)
    factors = factors_of(node)
    carried = _with_shift(affine, factors[port] * affine.shift)
    shifted = on_result(node, carried, node.inputs[port], shapes)
    if isinstance(shifted, Refusal):
        return shifted
    moves: list[Move] = []
    for value, factor in zip(node.inputs, factors, strict=True):
        own = on_operand(node, _with_shift(shifted, shifted.shift / factor), value, shapes)
        if value != node.inputs[port] and not isinstance(own, Refusal):
            moves.append(Move(asks=(Ask(value, own, turned=True),)))
    return (*moves, Move(asks=(Ask(node.outputs[0], shifted),)))


def concat_up(op: Concat, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if op.axis not in affine.axes:
        return (Move(asks=tuple(Ask(value, affine) for value in node.inputs)),)
    segments = _segments(node, op.axis, shapes)
    if isinstance(segments, Refusal):
        return segments
    if segments[-1].stop % affine.length(op.axis):
        return refused(Reason.MISMATCHED_CHANNELS, node, "its segments have other sizes")
    parts = zip(node.inputs, segments, strict=True)
    return (Move(asks=tuple(Ask(value, affine.take(op.axis, part)) for value, part in parts)),)


def concat_down(op: Concat, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    segments = _segments(node, op.axis, shapes)
    if isinstance(segments, Refusal):
        return segments
    whole = affine.placed(op.axis, segments[port], segments[-1].stop)
    if whole is None:
        return refused(Reason.MISMATCHED_CHANNELS, node, "its segment has another size")
    return passed_down(node, whole)


def _segments(node: Node, axis: int, shapes: Shapes) -> list[range] | Refusal:
    """SEGMENTS: which indices of the joined axis come from each input."""
    segments: list[range] = []
    start = 0
    for value in node.inputs:
        shape = shapes.get(value)
        size = None if shape is None else shape[axis]
        if not isinstance(size, int):
            return unknown_shape(node, value)
        segments.append(range(start, start + size))
        start += size
    return segments
