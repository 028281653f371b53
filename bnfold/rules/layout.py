"""Move an affine through nodes that only rearrange: Identity, Transpose, Reshape (flatten, view).

Reshape   the affine is spread over the run of axes that are merged, and must come out constant
          along all but one of the axes that they become: flatten after a convolution repeats each channel
          H * W times; the reverse asks that the values are equal wherever they are merged again.

Exact when   SIZES      the sizes of the run that holds the channels are known
             UNIFORM    the affine varies along one axis only on the other side
"""

from __future__ import annotations

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
    sizes = _known_sizes(here, own, affine), _known_sizes(there, others, affine)
    if None in sizes[0]:
        sizes = _solved(sizes[0], sizes[1]), sizes[1]
    if None in sizes[1]:
        sizes = sizes[0], _solved(sizes[1], sizes[0])
    if None in sizes[0] or None in sizes[1]:
        why = "the sizes of the axes that it merges or splits are not known"
        return refused(Reason.UNKNOWN_SHAPE, node, why)
    left, right = _numbers(sizes[0]), _numbers(sizes[1])
    scale, shift = (
        _regrouped(values, own.index(affine.axis), left, right)
        for values in (affine.scale, affine.shift)
    )
    axis = _only_axis(scale, shift)
    if axis is None:
        why = "channels that it merges or splits carry different scales or shifts"
        return refused(Reason.NOT_UNIFORM, node, why)
    others_at = tuple(slice(None) if i == axis else 0 for i in range(len(right)))
    return ChannelAffine(others[axis], scale[others_at], shift[others_at])


def _known_sizes(shape: Shape, axes: tuple[int, ...], affine: ChannelAffine) -> Shape:
    return tuple(size if isinstance(size := shape[i], int) else None for i in axes)


def _solved(unknown: Shape, known: Shape) -> Shape:
    """`unknown` with its one missing size worked out from the equal product of `known`."""
    if unknown.count(None) != 1 or None in known:
        return unknown
    rest = int(np.prod(_numbers(unknown), dtype=np.int64))
    total = int(np.prod(_numbers(known), dtype=np.int64))
    return tuple(total // rest if size is None else size for size in unknown)


def _numbers(sizes: Shape) -> list[int]:
    return [size for size in sizes if isinstance(size, int)]


def _regrouped(values: Array, position: int, left: list[int], right: list[int]) -> Array:
    lined = values.reshape([-1 if i == position else 1 for i in range(len(left))])
    return np.broadcast_to(lined, left).reshape(right)


def _only_axis(scale: Array, shift: Array) -> int | None:
    """The one axis along which either array varies (the last if none does), None if several do."""
    varying = [
        axis
        for axis in range(scale.ndim)
        if any(np.any(a != a.take([0], axis)) for a in (scale, shift))
    ]
    if len(varying) > 1:
        return None
    return varying[0] if varying else scale.ndim - 1
