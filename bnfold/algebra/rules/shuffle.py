"""Move an affine through PixelShuffle, which moves channels into space, or back.

A shuffle splits C * r^2 channels and merges r of them with each spatial axis:

    [C r r, H, W]  ->  [C, r, r, H, W]  ->  [C, H, r, W, r]  ->  [C, H r, W r]

down  channels that differ within a pixel differ along height and width afterwards, in turns of r
up    each of the C numbers goes to the r^2 channels that its pixels come from

An inverse shuffle is the same backwards, and so is up.

Exact when   CHANNELS  the number of channels is known
"""

from __future__ import annotations

from dataclasses import replace

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Groups, Node, PixelShuffle, Shape
from bnfold.algebra.refusal import Refusal
from bnfold.algebra.reshaping import regrouped
from bnfold.algebra.rules.move import Answer, Shapes, passed_down, passed_up, unknown_shape


def up(op: PixelShuffle, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    inverse = replace(op, inverse=not op.inverse)
    moved = _moved(node, inverse, affine, (node.outputs[0], node.inputs[0]), shapes)
    return moved if isinstance(moved, Refusal) else passed_up(node, moved)


def down(op: PixelShuffle, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    moved = _moved(node, op, affine, (node.inputs[0], node.outputs[0]), shapes)
    return moved if isinstance(moved, Refusal) else passed_down(node, moved)


def _moved(
    node: Node, op: PixelShuffle, affine: ChannelAffine, values: tuple[str, str], shapes: Shapes
) -> ChannelAffine | Refusal:
    """What `op`, from one of `values` to the other, makes of an affine before it."""
    if not affine.axes:
        return affine
    here, there = (shapes.get(value) for value in values)
    if here is None or there is None:
        return unknown_shape(node, values[0] if here is None else values[1])
    deep, wide = (there, here) if op.inverse else (here, there)
    return _shuffled(op, affine, deep, wide) or unknown_shape(node, values[0])


def _shuffled(
    op: PixelShuffle, affine: ChannelAffine, deep: Shape, wide: Shape
) -> ChannelAffine | None:
    """`deep` is the shape with C * r^2 channels, `wide` the other."""
    k, r = len(deep) - 3, op.factor
    c, i, j = (k + 2, k, k + 1) if op.strided else (k, k + 1, k + 2)
    parts = (r, r, wide[k]) if op.strided else (wide[k], r, r)
    split = (*deep[:k], *parts, *deep[k + 1 :])
    perm = (*range(k), c, k + 3, i, k + 4, j)
    turned = tuple(split[axis] for axis in perm)
    outer: Groups = tuple(((axis,), (axis,)) for axis in range(k))
    channel_groups = (*outer, ((k,), (k, k + 1, k + 2)), ((k + 1,), (k + 3,)), ((k + 2,), (k + 4,)))
    pixel_groups = (*outer, ((k,), (k,)), ((k + 1,), (k + 1, k + 2)), ((k + 2,), (k + 3, k + 4)))
    if op.inverse:
        a = regrouped(affine, pixel_groups, wide, turned)
        a = a and a.moved([perm[axis] for axis in a.axes])
        return a and regrouped(a, _backwards(channel_groups), split, deep)
    a = regrouped(affine, channel_groups, deep, split)
    a = a and a.moved([perm.index(axis) for axis in a.axes])
    return a and regrouped(a, _backwards(pixel_groups), turned, wide)


def _backwards(groups: Groups) -> Groups:
    return tuple((after, before) for before, after in groups)
