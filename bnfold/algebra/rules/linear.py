"""Fold an affine into the linear layer before it, or after it.

up    s * (x W^T + c) + b  ->  x W'^T + c'      W' [Cout, Cin] = s[o] W[o, i],   c' = s c + b
down  (s * x + b) W^T + c  ->  x W'^T + c'      W' [Cout, Cin] = W[o, i] s[i],   c' = c + W b

Exact when   FEATURES   the affine varies along the last axis only. BatchNorm1d after a Linear on
                        [N, L, C] has its channels on L and does not, even where L equals C
Rounding     float64 inside, one rounding to W's dtype
Source       Ioffe & Szegedy 2015, arXiv:1502.03167, 3.1
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Linear, Node, Param, Shape
from bnfold.algebra.refusal import Refusal
from bnfold.algebra.rules.move import Answer, Shapes, absorbed, on_features


def up(op: Linear, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    (value,) = node.outputs
    a = on_features(node, affine, value, _last_axis(shapes.get(value)), op.weight.shape[0])
    if isinstance(a, Refusal):
        return a
    old = op.bias
    bias = old
    if old is not None:
        bias = old.mapped(lambda c: a.scale * c + a.shift)
    elif a.shifts:
        bias = Param(f"{node.name}.bias", a.shift.shape, op.weight.dtype, lambda: a.shift)
    weight = op.weight.mapped(lambda w: w * a.scale[:, None])
    return absorbed(node.with_op(replace(op, weight=weight, bias=bias)))


def down(op: Linear, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    (value,) = node.inputs
    a = on_features(node, affine, value, _last_axis(shapes.get(value)), op.weight.shape[1])
    if isinstance(a, Refusal):
        return a
    weight, old = op.weight, op.bias
    bias = old
    if a.shifts:

        def drift() -> Array:
            return np.asarray(weight.load() @ a.shift)

        if old is None:
            bias = Param.of(f"{node.name}.bias", weight.shape[:1], weight, drift, weight)
        else:
            bias = old.mapped(lambda c: c + drift())
    scaled = replace(op, weight=weight.mapped(lambda w: w * a.scale), bias=bias)
    return absorbed(node.with_op(scaled))


def _last_axis(shape: Shape | None) -> int | None:
    return None if shape is None else len(shape) - 1
