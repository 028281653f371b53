"""Channels that are taken in another order, as the order of a layer's weights.

    Conv(x[:, order])  ->  Conv'(x)       W'[o, i, k] = sum_j W[o, j, k],  j with order[j] = i
    Conv(x)[:, order]  ->  Conv'(x)       W'[j, i, k] = W[order[j], i, k],  c'[j] = c[order[j]]

An image whose colours change places is the first, and one that is repeated for every colour; by
indices, or by slices that are joined again, with transpositions around that cancel each other.

Exact when   CHANNELS   the order is that of the layer's channels, and known
             ONE_GROUP  the layer has one group: each output reads every input
             SOLE_USER  nothing else reads what is taken, or (behind) what it is taken from
             NARROWER   (before) x has no more channels than are taken, as many if it is transposed
             ALL        (behind) every channel is taken once
             ALONE      the native operators do nothing besides
Rounding     none of what changes places; float64 and one rounding of what is added up
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from bnfold.algebra.affine import Array
from bnfold.algebra.def_use import DefUse, Port
from bnfold.algebra.graph import (
    Concat,
    Conv,
    Identity,
    Linear,
    Node,
    Param,
    Shape,
    Take,
    Transpose,
    channel_axis,
)

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """The indices that are taken along an axis of a value, and the nodes that take them.

    These dissolve in order; the input given is read in their place.
    """

    value: str
    axis: int
    order: Order
    gone: tuple[Port, ...]


def taken_from(def_use: DefUse, value: str, locked: Collection[str]) -> Taken | None:
    """What `value` is taken from, if it is nothing but indices of one axis, and SOLE_USER."""
    gone: list[Port] = []
    axes: tuple[int, ...] | None = None  # of the value at hand, in terms of the first one
    found: tuple[int, Order] | None = None
    while def_use.read_once(value):
        maker = def_use.maker(value)
        if maker is None or maker.name in locked:
            return None
        more: tuple[Port, ...] = ((maker.name, 0),)
        if isinstance(maker.op, Transpose) and maker.op.alone:
            outer = axes or tuple(range(len(maker.op.perm)))
            inner = dict(zip(maker.op.perm, outer, strict=True))
            axes = tuple(inner[i] for i in range(len(outer)))
        elif not isinstance(maker.op, Identity):
            step = None if found else _step(def_use, maker, locked)
            if step is None:
                return None
            axis, order, more = step
            found = (axis if axes is None else axes[axis]), order
        gone += more
        value = def_use.nodes[gone[-1][0]].inputs[0]
        if found is not None and (axes is None or axes == tuple(range(len(axes)))):
            return Taken(value, *found, tuple(gone))
    return None


def _step(
    def_use: DefUse, node: Node, locked: Collection[str]
) -> tuple[int, Order, tuple[Port, ...]] | None:
    """The axis and indices of a Take, or of slices that a Concat joins, with what goes then."""
    if isinstance(node.op, Take):
        part = _part(node)
        return None if part is None else (node.op.axis, part, ((node.name, 0),))
    if not isinstance(node.op, Concat):
        return None
    makers = [def_use.maker(value) for value in node.inputs]
    order: list[int] = []
    for value, maker in zip(node.inputs, makers, strict=True):
        part = None if maker is None or maker.name in locked else _part(maker)
        same = maker is not None and isinstance(maker.op, Take) and maker.op.axis == node.op.axis
        if part is None or not same or not def_use.read_once(value):
            return None
        order += part
    first = makers[0]
    if first is None or len({maker.inputs for maker in makers if maker}) > 1:
        return None
    return node.op.axis, tuple(order), ((node.name, 0), (first.name, 0))


def _part(node: Node) -> Order | None:
    """ALONE, and CHANNELS as far as it is known which indices are taken."""
    op = node.op
    if not isinstance(op, Take) or not op.alone or len(node.inputs) > 1 or len(op.parts) > 1:
        return None
    return op.parts[0]


def taken_before(layer: Node, taken: Taken, shape: Shape | None) -> Conv | Linear | None:
    """The layer's op as it reads what is taken from, of `shape`; None if it cannot."""
    op, order = layer.op, taken.order
    if not isinstance(op, Conv | Linear) or _axis(op, shape) != taken.axis:
        return None
    size = None if shape is None else shape[taken.axis]
    turned = isinstance(op, Conv) and op.transposed
    if not isinstance(size, int) or size > len(order) or (turned and size < len(order)):
        return None
    inputs = 0 if turned else 1

    def summed(weight: Array) -> Array:
        by_input = np.moveaxis(weight, inputs, 0)
        made = np.zeros((size, *by_input.shape[1:]))
        np.add.at(made, np.asarray(order), by_input)
        return np.moveaxis(made, 0, inputs)

    old = op.weight
    wanted = (*old.shape[:inputs], size, *old.shape[inputs + 1 :])
    weight = Param.of(old.name, wanted, old, lambda: summed(old.load()), old)
    return replace(op, weight=weight)


def taken_behind(layer: Node, take: Node, shape: Shape | None) -> Conv | Linear | None:
    """The layer's op as it makes what `take` makes of its result, which has `shape`."""
    op, order = layer.op, _part(take)
    if not isinstance(op, Conv | Linear) or not isinstance(take.op, Take) or order is None:
        return None
    outputs = 1 if isinstance(op, Conv) and op.transposed else 0
    all_once = sorted(order) == list(range(op.weight.shape[outputs]))
    if not all_once or _axis(op, shape) != take.op.axis:
        return None
    weight = op.weight.mapped(lambda w: w.take(order, outputs))
    bias = None if op.bias is None else op.bias.mapped(lambda c: c.take(order))
    return replace(op, weight=weight, bias=bias)


def _axis(op: Conv | Linear, shape: Shape | None) -> int | None:
    """The axis of the channels; None if the layer has several groups."""
    if isinstance(op, Conv):
        return channel_axis(op, shape) if op.groups == 1 else None
    return None if shape is None else len(shape) - 1
