"""Move an affine through the nodes that bring several values together: Add and Concat.

Add     up    s * (x1 + ... + xn) + b = sum_i s * xi, with b added to exactly one of them
              (-b to one that is subtracted)
        down  refused: s * x1 + b + x2 is no affine of x1 + x2
Concat  up    an affine on the joined axis: each input takes its segment; on another: the whole
        down  the same: the other segments take the identity

Exact when   SAME_SIZE  (Add) every operand has the full number of channels. One that is broadcast
                        over them can take a scale that is the same for all, but no shift
             SEGMENTS   (Concat, same axis) the size of every segment is known
"""

from __future__ import annotations

from bnfold.affine import ChannelAffine, identity, join
from bnfold.graph import Add, Concat, Node
from bnfold.refusal import Reason, Refusal
from bnfold.rules.move import Answer, Ask, Move, Shapes, passed_down, refused, unknown_shape


def add_up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
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
    if affine.axis is None:
        return affine
    whole, shape = shapes.get(node.outputs[0]), shapes.get(value)
    if whole is None or shape is None:
        return unknown_shape(node, node.outputs[0] if whole is None else value)
    axis = affine.axis - (len(whole) - len(shape))
    if axis >= 0 and not isinstance(shape[axis], int):
        return unknown_shape(node, value)
    if axis >= 0 and shape[axis] == affine.size:
        return affine.at(axis)
    if affine.without_shift().is_uniform:
        return affine.without_shift().as_uniform()
    why = f"its operand {value} is broadcast over the channels, whose scales differ"
    return refused(Reason.OTHER_OPERAND, node, why)


def _asks(node: Node, operands: list[ChannelAffine], shifted: int) -> tuple[Ask, ...]:
    assert isinstance(node.op, Add)
    signs = node.op.signs or (1.0,) * len(operands)
    return tuple(
        Ask(value, _shifted_by(a, sign) if i == shifted else a.without_shift())
        for i, (value, a, sign) in enumerate(zip(node.inputs, operands, signs, strict=True))
    )


def _shifted_by(affine: ChannelAffine, sign: float) -> ChannelAffine:
    """The affine of an operand that is added with `sign`: its shift comes out as wanted."""
    return ChannelAffine(affine.axis, affine.scale, sign * affine.shift)


def add_down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    why = "the other operand of the sum cannot take the inverse"
    return refused(Reason.OTHER_OPERAND, node, why)


def concat_up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op = _concat(node)
    if affine.axis != op.axis:
        return (Move(asks=tuple(Ask(value, affine) for value in node.inputs)),)
    sizes = _segments(node, op.axis, shapes)
    if isinstance(sizes, Refusal):
        return sizes
    asks: list[Ask] = []
    start = 0
    for value, size in zip(node.inputs, sizes, strict=True):
        asks.append(Ask(value, affine.take(slice(start, start + size))))
        start += size
    return (Move(asks=tuple(asks)),)


def concat_down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op = _concat(node)
    if affine.axis is not None and affine.axis != op.axis:
        why = "the affine lies on another axis than the one joined, so the other inputs lack it"
        return refused(Reason.OTHER_OPERAND, node, why)
    sizes = _segments(node, op.axis, shapes)
    if isinstance(sizes, Refusal):
        return sizes
    parts = [identity(op.axis, size) for size in sizes]
    own = affine.spread(op.axis, sizes[port])
    if own is None:
        return refused(Reason.MISMATCHED_CHANNELS, node, "its segment has another size")
    parts[port] = own
    return passed_down(node, join(op.axis, parts))


def _concat(node: Node) -> Concat:
    assert isinstance(node.op, Concat)
    return node.op


def _segments(node: Node, axis: int, shapes: Shapes) -> list[int] | Refusal:
    """SEGMENTS."""
    sizes: list[int] = []
    for value in node.inputs:
        shape = shapes.get(value)
        size = None if shape is None else shape[axis]
        if not isinstance(size, int):
            return unknown_shape(node, value)
        sizes.append(size)
    return sizes
