"""Compose an affine with the one before it, or after it.

up    t * (s * x + b) + u  ->  s' * x + b'      s' = t s,  b' = t b + u      the earlier takes both
down  s * (t * x + u) + b  ->  s' * x + b'      s' = s t,  b' = s u + b      the later takes both

Exact when   ONE_AXIS  the result varies along one axis, that of the node's own constants if they
                       have one: no native node holds more
             SIZE      the size of that axis is known
             FORM      the node that stays has room for what it becomes: a multiplication holds no
                       shift, an addition no scale
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine, Node
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import Answer, Shapes, absorbed, refused, unknown_shape


def up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return _composed(node, affine.after(_affine(node).affine), shapes)


def down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return _composed(node, _affine(node).affine.after(affine), shapes)


def _affine(node: Node) -> Affine:
    assert isinstance(node.op, Affine)
    return node.op


def _composed(node: Node, result: ChannelAffine, shapes: Shapes) -> Answer:
    op = _affine(node)
    both = _held(node, op.affine, result, shapes)
    if isinstance(both, Refusal):
        return both
    if op.holds == "scale" and both.shifts:
        return refused(Reason.FORM, node, "a multiplication has no room for a shift")
    if op.holds == "shift" and np.any(both.scale != 1):
        return refused(Reason.FORM, node, "an addition has no room for a scale")
    return absorbed(node.with_op(replace(op, affine=both)))


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
