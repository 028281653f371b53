"""Fold an affine into the input weights of a recurrent layer behind it: LSTM, GRU, RNN.

down  W (s * x + b) + c  ->  W' x + c'      W' [rows, Cin] = W[r, i] s[i],   c' = c + W b

At every step its gates add W x, a bias, and what comes from the step before; nothing else reads x.
An affine behind it stays: what it makes is what it reads in the next step.

Exact when   INPUT      the affine comes in at the sequence, not at a state or a length
             FEATURES   it varies along the last axis only
             ROOM       (b != 0) the layer has biases, or its format a place for them
Rounding     float64 inside, one rounding to W's dtype
Source       Amodei et al. 2015, arXiv:1512.02595, 3.2 (BatchNorm before recurrent layers)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Node, Param, Recurrent
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import Answer, Shapes, absorbed, on_features, refused


def up(op: Recurrent, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return refused(Reason.NOT_LINEAR, node, "it reads what it makes in the next step")


def down(op: Recurrent, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if port:
        return refused(Reason.NOT_LINEAR, node, "it reads the value as a state or a length")
    value = node.inputs[0]
    shape = shapes.get(value)
    last = None if shape is None else len(shape) - 1
    a = on_features(node, affine, value, last, op.weight.shape[1])
    if isinstance(a, Refusal):
        return a
    if a.shifts and op.bias is None:
        return refused(Reason.FORM, node, "it has no biases, and no room for a shift")
    new: dict[str, Param] = {}
    for weight, bias in (("weight", "bias"), ("reverse_weight", "reverse_bias")):
        matrix, added = getattr(op, weight), getattr(op, bias)
        if matrix is not None:
            new[weight] = matrix.mapped(lambda w: w * a.scale)
        if matrix is not None and a.shifts:
            new[bias] = _shifted(added, matrix, a.shift)
    return absorbed(node.with_op(replace(op, **new)))


def _shifted(bias: Param, weight: Param, shift: Array) -> Param:
    return bias.mapped(lambda c: c + np.asarray(weight.load() @ shift))
