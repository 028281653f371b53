"""Move an affine through nodes that only rearrange: Identity, Transpose, Reshape (flatten, view).

Reshape   what varies along a run of axes varies along the axes that the run becomes, in the order
          of its elements: flatten after a convolution repeats each channel H * W times; channels
          that are split into heads vary along heads and features

Exact when   SIZES      the sizes of the run that holds the channels are known, on both sides, but
                        for the first of each: the numbers repeat along it
"""

from __future__ import annotations

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Groups, Identity, Node, Reshape, Transpose
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.reshaping import regrouped
from bnfold.algebra.rules.move import Answer, Shapes, passed_down, passed_up, refused, unknown_shape


def identity_up(
    op: Identity, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
) -> Answer:
    return passed_up(node, affine)


def identity_down(
    op: Identity, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
) -> Answer:
    return passed_down(node, affine)


def transpose_up(
    op: Transpose, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
) -> Answer:
    return passed_up(node, affine.moved([op.perm[axis] for axis in affine.axes]))


def transpose_down(
    op: Transpose, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
) -> Answer:
    return passed_down(node, affine.moved([op.perm.index(axis) for axis in affine.axes]))


def reshape_up(op: Reshape, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    groups = tuple((after, before) for before, after in op.groups)
    moved = _regrouped(node, affine, groups, node.outputs[0], node.inputs[0], shapes)
    return moved if isinstance(moved, Refusal) else passed_up(node, moved)


def reshape_down(
    op: Reshape, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
) -> Answer:
    groups = op.groups
    moved = _regrouped(node, affine, groups, node.inputs[0], node.outputs[0], shapes)
    return moved if isinstance(moved, Refusal) else passed_down(node, moved)


def _regrouped(
    node: Node, affine: ChannelAffine, groups: Groups, source: str, target: str, shapes: Shapes
) -> ChannelAffine | Refusal:
    if not affine.axes:
        return affine
    here, there = shapes.get(source), shapes.get(target)
    if here is None or there is None:
        return unknown_shape(node, source if here is None else target)
    why = "the sizes of the axes that it merges or splits are not known"
    return regrouped(affine, groups, here, there) or refused(Reason.UNKNOWN_SHAPE, node, why)
