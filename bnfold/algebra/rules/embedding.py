"""Fold an affine into the table of an embedding before it.

up    s * W[i] + b  ->  W'[i]        W' [count, C] = W[i, c] s[c] + b[c]

Exact when   FEATURES   the affine varies along the last axis only
Rounding     float64 inside, one rounding to W's dtype
Source       Vaswani et al. 2017, arXiv:1706.03762, 3.4 (embeddings that are multiplied by sqrt(d))
"""

from __future__ import annotations

from dataclasses import replace

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Embedding, Node
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import Answer, Shapes, absorbed, on_features, refused


def up(op: Embedding, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    (value,) = node.outputs
    shape = shapes.get(value)
    last = None if shape is None else len(shape) - 1
    a = on_features(node, affine, value, last, op.weight.shape[1])
    if isinstance(a, Refusal):
        return a
    weight = op.weight.mapped(lambda w: w * a.scale + a.shift)
    return absorbed(node.with_op(replace(op, weight=weight)))


def down(op: Embedding, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return refused(Reason.NOT_LINEAR, node, "it reads the value as indices")
