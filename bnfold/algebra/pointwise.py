"""Pointwise linear maps, and the nodes that they pass.

    P(x)[..., o, ...] = sum_i W[o, i] x[..., i, ...] + b[o]       on one axis, the channels

A 1x1 convolution is one, and a Linear. So is any op that treats all channels alike and mixes no
two: what it does lies on other axes, and P can be before it as well as after it.

    P(f(x)) = f(P(x))       W passes what is linear: b = 0
                            b passes what is a mean, or moves numbers: f(x + b) = f(x) + b

Exact when   POINT     (1x1 convolution) one group, stride 1, and nothing is padded
             CHANNELS  f lies on axes other than the channels, and keeps them in order
             MEAN      (b != 0) the weights of f sum to one: no zeros are padded, and no sum over
                       axes is taken
Source       Xie et al. 2021, arXiv:2105.15203, 3.2 (the head that is made of such)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bnfold.algebra.chains import as_conv, composed, is_pointwise
from bnfold.algebra.graph import (
    AdaptivePool,
    Conv,
    Identity,
    Linear,
    Mean,
    Node,
    Op,
    Param,
    Pool,
    Reshape,
    Resize,
    Shape,
    Take,
    Transpose,
    channel_axis,
)
from bnfold.algebra.rules.pool import averages_zeros

MOST_SPATIAL = 3
"""Axes behind the channels that every format has a convolution for."""

Shapes = Mapping[str, Shape | None]
Origins = tuple[int | None, ...]


@dataclass(frozen=True, eq=False, slots=True)
class PointMap:
    """weight [Cout, Cin] and bias [Cout] or None, on `axis`."""

    axis: int
    weight: Param
    bias: Param | None = None

    def segment(self, start: int, stop: int) -> Param:
        """The columns for some of the channels."""
        whole = self.weight
        shape = (whole.shape[0], stop - start)
        return Param.of(whole.name, shape, whole, lambda: whole.load()[:, start:stop], whole)


def point_map(node: Node, shapes: Shapes) -> PointMap | None:
    """The map that a node is: POINT."""
    op = node.op
    if not isinstance(op, Conv | Linear) or (shape := shapes.get(node.inputs[0])) is None:
        return None
    if isinstance(op, Linear):
        return PointMap(len(shape) - 1, op.weight, op.bias)
    if op.transposed or op.groups != 1 or not is_pointwise(op) or channel_axis(op, shape) != 1:
        return None
    return PointMap(1, _shaped(op.weight, op.weight.shape[:2]), op.bias)


def layer(weight: Param, bias: Param | None, axis: int, rank: int) -> Conv | Linear | None:
    """The layer that is a map on `axis` of a value of `rank`, if there is one."""
    if axis == rank - 1:
        return Linear(weight, bias)
    spatial = rank - 2
    if axis != 1 or not 1 <= spatial <= MOST_SPATIAL:
        return None
    ones = (1,) * spatial
    kernel = _shaped(weight, (*weight.shape, *ones))
    return Conv(kernel, bias, ones, ones, ((0, 0),) * spatial)


def behind(first: Op, weight: Param, axis: int, shape: Shape) -> Conv | Linear | None:
    """A layer that gives a value of `shape`, with a map on `axis` behind it, as one layer."""
    conv = as_conv(first)
    if conv is None:
        return None
    own = len(shape) - 1 if isinstance(first, Linear) else channel_axis(conv, shape)
    rank = len(conv.kernel)
    point = _shaped(weight, (*weight.shape, *(1,) * rank))
    second = Conv(point, None, (1,) * rank, (1,) * rank, ((0, 0),) * rank)
    made = composed(conv, second) if own == axis else None
    if made is None:
        return None
    return Linear(made.weight, made.bias) if isinstance(first, Linear) else made


def origins(node: Node, shapes: Shapes) -> Origins | None:
    """Of each axis of the result, the axis of the input that it is, untouched: CHANNELS.

    None for what is not linear, or of several values.
    """
    shape = shapes.get(node.inputs[0]) if len(node.inputs) == len(node.outputs) == 1 else None
    if shape is None:
        return None
    axes: list[int | None] = [*range(len(shape))]
    match node.op:
        case Identity():
            return tuple(axes)
        case Transpose(perm=perm):
            return tuple(perm)
        case Resize(spatial=count):
            return (*axes[:-count], *[None] * count)
        case AdaptivePool(kind="avg", output_size=size):
            return (*axes[: -len(size)], *[None] * len(size))
        case Pool(kind="avg", kernel=kernel):
            return (*axes[: -len(kernel)], *[None] * len(kernel))
        case Mean(axes=gone, keepdims=keepdims):
            left = [None if axis in gone else axis for axis in axes]
            return tuple(a for a in left if keepdims or a is not None)
        case Take(axis=axis):
            return (*axes[:axis], None, *axes[axis + 1 :])
        case Reshape():
            return _regrouped(node.op, shape)
    return None


def keeps_bias(op: Op) -> bool:
    """MEAN, of an op that has origins."""
    if isinstance(op, Mean):
        return not op.total
    return not (isinstance(op, Pool) and averages_zeros(op))


def widened(node: Node, axis: int, size: int) -> Op:
    """The op for another number of channels, which are on `axis` of its result."""
    if not isinstance(node.op, Reshape):
        return node.op
    target = list(node.op.target)
    target[axis] = size
    return replace(node.op, target=tuple(target))


def _regrouped(op: Reshape, shape: Shape) -> Origins:
    """Runs of one axis, but for others of size 1."""
    found: list[int | None] = [None] * len(op.target)
    for merged, split in op.groups:
        before = [i for i in merged if shape[i] != 1 or len(merged) == 1]
        after = [j for j in split if op.target[j] != 1 or len(split) == 1]
        if len(before) == len(after) == 1:
            found[after[0]] = before[0]
    return tuple(found)


def _shaped(param: Param, shape: tuple[int, ...]) -> Param:
    return Param.of(param.name, shape, param, lambda: param.load().reshape(shape), param)
