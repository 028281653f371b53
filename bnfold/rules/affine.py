"""Compose an affine with the one before it, or after it.

up    t * (s * x + b) + u  ->  s' * x + b'      s' = t s,  b' = t b + u      the earlier takes both
down  s * (t * x + u) + b  ->  s' * x + b'      s' = s t,  b' = s u + b      the later takes both

Exact when   SAME_AXIS  both lie on one axis, or one of them is uniform
             FORM       the node that stays has room for what it becomes: a multiplication holds no
                        shift, an addition no scale
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.graph import Affine, Node
from bnfold.refusal import Reason
from bnfold.rules.move import Answer, Shapes, absorbed, refused


def up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return _composed(node, affine.after(_affine(node).affine))


def down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return _composed(node, _affine(node).affine.after(affine))


def _affine(node: Node) -> Affine:
    assert isinstance(node.op, Affine)
    return node.op


def _composed(node: Node, both: ChannelAffine | None) -> Answer:
    op = _affine(node)
    if both is None:
        return refused(Reason.WRONG_AXIS, node, "its channels lie on another axis")
    if op.holds == "scale" and both.shifts:
        return refused(Reason.FORM, node, "a multiplication has no room for a shift")
    if op.holds == "shift" and np.any(both.scale != 1):
        return refused(Reason.FORM, node, "an addition has no room for a scale")
    return absorbed(node.with_op(replace(op, affine=both)))
