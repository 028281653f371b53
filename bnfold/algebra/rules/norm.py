"""Fold an affine into a normalisation by the data's own statistics: Layer-, Group-, RMSNorm.

up    s * (w f(x) + c) + b  ->  w' f(x) + c'        w' [C] = s w,   c' [C] = s c + b
down  f(x + b) = f(x)                               the mean is taken off, and the shift with it

f has no weights: (x - mean(x)) / sqrt(var(x) + eps). A scale before it stays, because of eps.

Exact when   FEATURES   (up) the affine varies along the axis of the weights only
             ROOM       (up, b != 0) it adds something: an RMSNorm does not
             CENTRED    (down) it takes the mean off: an RMSNorm does not
             NO_SCALE   (down) s = 1
             ALIKE      (down) the shift is the same for all that share a mean
Rounding     float64 inside, one rounding to the weight's dtype
Source       Ba et al. 2016, arXiv:1607.06450; Wu & He 2018, arXiv:1803.08494; Ulyanov et al. 2016,
             arXiv:1607.08022; Zhang & Sennrich 2019, arXiv:1910.07467
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Node, Norm, Param
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import Answer, Shapes, absorbed, on_features, refused


def up(op: Norm, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    (value,) = node.outputs
    a = on_features(node, affine, value, op.axis, op.weight.shape[0])
    if isinstance(a, Refusal):
        return a
    scaled = replace(op, weight=op.weight.mapped(lambda w: a.scale * w))
    if op.bias is not None:
        scaled = replace(scaled, bias=op.bias.mapped(lambda c: a.scale * c + a.shift))
    elif a.shifts and not op.centred:
        return refused(Reason.FORM, node, "it has no room for a shift")
    elif a.shifts:
        name, dtype = f"{node.name}.bias", op.weight.dtype
        scaled = replace(scaled, bias=Param(name, a.shift.shape, dtype, lambda: a.shift))
    return absorbed(node.with_op(scaled))


def down(op: Norm, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if not op.centred or np.any(affine.scale != 1):
        return refused(Reason.NOT_LINEAR, node, "it normalises by the data's own statistics")
    if affine.without(*filter(partial(_is_meaned, op), affine.axes)) is None:
        return refused(Reason.WRONG_AXIS, node, "its mean is taken over values of several shifts")
    return absorbed(node)


def _is_meaned(op: Norm, axis: int) -> bool:
    """Whether several indices of an axis share a mean."""
    if not op.groups:
        return axis == op.axis
    return axis > 1 or (axis == 1 and op.groups < op.weight.shape[0])
