"""Move an affine through nodes that only rearrange: Identity, Transpose, Reshape (flatten, view).

Reshape   the affine is spread over the run of axes that are merged, and must come out constant
          along all but one of the axes that they become: flatten after a convolution repeats each
          channel H * W times; the reverse asks that the values are equal wherever they are merged
          again. An affine that comes out constant along all of them is uniform.

Exact when   SIZES      the sizes of the run that holds the channels are known
             UNIFORM    the affine varies along one axis only on the other side
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.affine import Array, ChannelAffine
from bnfold.graph import Node, Reshape, Shape, Transpose
from bnfold.refusal import Reason, Refusal
from bnfold.rules.move import Answer, Shapes, passed_down, passed_up, refused, unknown_shape


def identity_up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return passed_up(node, affine)


def identity_down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return passed_down(node, affine)


def transpose_up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if affine.axis is None:
        return passed_up(node, affine)
    return passed_up(node, affine.at(_perm(node)[affine.axis]))


def transpose_down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if affine.axis is None:
        return passed_down(node, affine)
    return passed_down(node, affine.at(_perm(node).index(affine.axis)))


def _perm(node: Node) -> tuple[int, ...]:
    assert isinstance(node.op, Transpose)
    return node.op.perm


def reshape_up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    groups = [(after, before) for before, after in _reshape(node).groups]
    moved = _moved(node, affine, groups, node.outputs[0], node.inputs[0], shapes)
    return moved if isinstance(moved, Refusal) else passed_up(node, moved)


def reshape_down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    groups = list(_reshape(node).groups)
    moved = _moved(node, affine, groups, node.inputs[0], node.outputs[0], shapes)
    return moved if isinstance(moved, Refusal) else passed_down(node, moved)


def _reshape(node: Node) -> Reshape:
    assert isinstance(node.op, Reshape)
    return node.op


def _moved(
    node: Node,
    affine: ChannelAffine,
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]],
    source: str,
    target: str,
    shapes: Shapes,
) -> ChannelAffine | Refusal:
    if affine.axis is None:
        return affine
    here, there = shapes.get(source), shapes.get(target)
    if here is None or there is None:
        return unknown_shape(node, source if here is None else target)
    own, others = next(group for group in groups if affine.axis in group[0])
    if own == (affine.axis,) and len(others) == 1:
        return affine.at(others[0])
    known = tuple(affine.size if i == affine.axis else here[i] for i in own)
    sizes = _sizes(known, tuple(there[j] for j in others))
    if sizes is None:
        why = "the sizes of the axes that it merges or splits are not known"
        return refused(Reason.UNKNOWN_SHAPE, node, why)
    scale, shift = (
        _regrouped(values, own.index(affine.axis), *sizes)
        for values in (affine.scale, affine.shift)
    )
    varying = _varying_axes(scale, shift)
    if len(varying) > 1:
        why = "channels that it merges or splits carry different scales or shifts"
        return refused(Reason.NOT_UNIFORM, node, why)
    if not varying:
        return affine.as_uniform()
    line = tuple(slice(None) if i == varying[0] else 0 for i in range(scale.ndim))
    return ChannelAffine(others[varying[0]], scale[line], shift[line])


def _sizes(own: Shape, others: Shape) -> tuple[list[int], list[int]] | None:
    """SIZES: two runs of equal product in numbers, one missing size worked out from the rest."""
    left, right = ([s for s in run if isinstance(s, int)] for run in (own, others))
    if len(left) + len(right) < len(own) + len(others) - 1:
        return None
    a, b = math.prod(left), math.prod(right)
    if len(left) < len(own):
        left = [s if isinstance(s, int) else b // max(a, 1) for s in own]
    if len(right) < len(others):
        right = [s if isinstance(s, int) else a // max(b, 1) for s in others]
    return (left, right) if math.prod(left) == math.prod(right) > 0 else None


def _regrouped(values: Array, position: int, left: list[int], right: list[int]) -> Array:
    lined = values.reshape([-1 if i == position else 1 for i in range(len(left))])
    return np.broadcast_to(lined, left).reshape(right)


def _varying_axes(scale: Array, shift: Array) -> list[int]:
    return [
        axis
        for axis in range(scale.ndim)
        if any(np.any(a != a.take([0], axis)) for a in (scale, shift))
    ]
