"""Move a scale through products of two computed values: Multiply and MatMul.

Multiply                             up    s * (x * y) = (s * x) * y = x * (s * y)
                                     down  (s * x) * y = s * (x * y)
MatMul   [..., M, K] @ [..., K, N]   both  s[m] * (x @ y) = (s[m] * x) @ y     on rows: the left
                                           s[n] * (x @ y) = x @ (s[n] * y)     on columns: the right
                                           on the axes before, or uniform: either

Exact when   NO_SHIFT   b = 0: a shift of x comes out times y
             ONE        (up) one operand takes the scale, and only one. Where both are the same
                        value it has two readers, and the planner asks nothing of it
             SAME_SIZE  (up) that operand is not broadcast along an axis where the scale varies
             OUTER      (MatMul) the scale does not vary along K
"""

from __future__ import annotations

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import MatMul, Multiply, Node
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.broadcast import on_operand, on_result
from bnfold.algebra.rules.move import Answer, Ask, Move, Shapes, passed_down, refused, unknown_shape


def multiply_up(
    op: Multiply, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
) -> Answer:
    if affine.shifts:
        return _shift(node)
    return _either(node, [on_operand(node, affine, value, shapes) for value in node.inputs])


def multiply_down(
    op: Multiply, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
) -> Answer:
    if affine.shifts:
        return _shift(node)
    scaled = on_result(node, affine, node.inputs[port], shapes)
    return scaled if isinstance(scaled, Refusal) else passed_down(node, scaled)


def matmul_up(op: MatMul, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if affine.shifts:
        return _shift(node)
    sides = enumerate(node.inputs)
    return _either(node, [on_factor(node, affine, value, side, shapes) for side, value in sides])


def matmul_down(op: MatMul, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if affine.shifts:
        return _shift(node)
    scaled = of_factor(node, affine, node.inputs[port], port, shapes)
    return scaled if isinstance(scaled, Refusal) else passed_down(node, scaled)


def on_factor(
    node: Node, affine: ChannelAffine, value: str, side: int, shapes: Shapes
) -> ChannelAffine | Refusal:
    """An affine of a matrix product as one of its left (0) or right (1) factor `value`."""
    if not affine.axes:
        return affine
    whole = shapes.get(node.outputs[0])
    if whole is None:
        return unknown_shape(node, node.outputs[0])
    foreign = len(whole) - (1 if side == 0 else 2)
    own = affine.without(foreign)
    if own is None:
        why = f"the affine's channels are not those of its operand {value}"
        return refused(Reason.WRONG_AXIS, node, why)
    return on_operand(node, own, value, shapes)


def of_factor(
    node: Node, affine: ChannelAffine, value: str, side: int, shapes: Shapes
) -> ChannelAffine | Refusal:
    """An affine of the left (0) or right (1) factor `value` as one of the matrix product."""
    if not affine.axes:
        return affine
    shape = shapes.get(value)
    if shape is None:
        return unknown_shape(node, value)
    summed = len(shape) - (1 if side == 0 else 2)
    outer = affine.without(summed)
    if outer is None:
        return refused(Reason.WRONG_AXIS, node, "it sums over the affine's own channels")
    return on_result(node, outer, value, shapes)


def _either(node: Node, parts: list[ChannelAffine | Refusal]) -> Answer:
    """ONE: each operand that can take its part is a way; else why the first cannot."""
    ways: list[Move] = []
    refusals: list[Refusal] = []
    for value, part in zip(node.inputs, parts, strict=True):
        if isinstance(part, Refusal):
            refusals.append(part)
        else:
            ways.append(Move(asks=(Ask(value, part),)))
    return tuple(ways) if ways else refusals[0]


def _shift(node: Node) -> Refusal:
    return refused(Reason.SHIFT, node, "a shift cannot pass a product of computed values")
