"""Compose an affine with the one before it, or after it.

up    t * (s * x + b) + u  ->  s' * x + b'      s' = t s,  b' = t b + u      the earlier takes both
down  s * (t * x + u) + b  ->  s' * x + b'      s' = s t,  b' = s u + b      the later takes both

A multiplication holds no shift, an addition no scale. What there is no room for is passed on:

multiplication   up    s' * x + b'  ->  s' * (x + b' / s')          the shift b' / s'
                 down  s' * x + b'  ->  (s' * x) + b'               the shift b'
addition         up    t * (x + b) + u  ->  (t * x) + b'            the scale t
                 down  (t * x + u) + b  ->  t * (x + b' / t)        the scale t

Exact when   ONE_AXIS  what the node becomes varies along one axis, that of its own constants if
                       they have one: no native node holds more
             SIZE      the size of that axis is known
             FORM      no shift has to be divided by a scale of zero
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Affine, Node
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import Answer, Ask, Move, Shapes, refused, unknown_shape


def up(op: Affine, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    both, value = affine.after(op.affine), node.inputs[0]
    if op.holds == "both" or _has_room(op, both):
        return _becomes(op, node, both, shapes)
    if op.holds == "scale":
        rest = _shift(both, both.shift, both.scale)
        ask = None if rest is None else Ask(value, rest)
        return _becomes(op, node, both.without_shift(), shapes, ask)
    own = _added(op, _shift(both, both.shift))
    return _becomes(op, node, own, shapes, Ask(value, affine.without_shift()))


def down(op: Affine, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    both, value = op.affine.after(affine), node.outputs[0]
    if op.holds == "both" or _has_room(op, both):
        return _becomes(op, node, both, shapes)
    if op.holds == "scale":
        rest = _shift(both, both.shift)
        ask = None if rest is None else Ask(value, rest)
        return _becomes(op, node, both.without_shift(), shapes, ask)
    scale = affine.without_shift()
    lined = scale.laid_out({axis: both.length(axis) for axis in both.axes})
    own = _added(op, _shift(both, both.shift, lined.scale))
    return _becomes(op, node, own, shapes, Ask(value, scale))


def _has_room(op: Affine, both: ChannelAffine) -> bool:
    """Whether a multiplication gets no shift, an addition no other scale."""
    return not (both.shifts if op.holds == "scale" else np.any(both.scale != 1))


def _shift(like: ChannelAffine, shift: Array, over: Array | None = None) -> ChannelAffine | None:
    """The addition of `shift`, or of `shift / over`; None if that divides by zero."""
    if over is not None:
        if np.any((over == 0) & (shift != 0)):
            return None
        shift = np.divide(shift, over, out=np.zeros_like(shift), where=over != 0)
    return ChannelAffine(like.axes, np.ones_like(shift), np.asarray(shift))


def _added(op: Affine, shift: ChannelAffine | None) -> ChannelAffine | None:
    """An addition with another shift; its own scale is that of what is subtracted."""
    return shift and shift.after(op.affine.without_shift())


def _becomes(
    op: Affine, node: Node, own: ChannelAffine | None, shapes: Shapes, *asks: Ask | None
) -> Answer:
    """The node with another affine, which asks for the rest; refused where that has no form."""
    if own is None or None in asks:
        return refused(Reason.FORM, node, f"it has no room for a {_OTHER[op.holds]}")
    held = _held(node, op.affine, own, shapes)
    if isinstance(held, Refusal):
        return held
    return (Move(node.with_op(replace(op, affine=held)), tuple(filter(None, asks))),)


_OTHER = {"scale": "shift", "shift": "scale"}
"""What a multiplication and an addition do not hold."""


def _held(
    node: Node, own: ChannelAffine, result: ChannelAffine, shapes: Shapes
) -> ChannelAffine | Refusal:
    """ONE_AXIS and SIZE: `result` in the form in which the node holds `own`."""
    if own.axis is not None:
        held = result.spread(own.axis, own.size)
    elif len((left := result.reduced()).axes) == 1:
        shape, axis = shapes.get(node.inputs[0]), left.axes[0]
        size = None if shape is None else shape[axis]
        if not isinstance(size, int):
            return unknown_shape(node, node.inputs[0])
        held = left.spread(axis, size)
    else:
        held = left.without(*left.axes)
    return held or refused(Reason.FORM, node, "it holds constants that vary along one axis only")
