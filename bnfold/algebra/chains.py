"""Linear nodes in a row as one convolution; a Linear is a convolution without spatial axes.

    Conv_KxK(Conv_1x1(x))  ->  Conv'_KxK(x)        W'[o, i, k] = sum_m W2[o, m, k] W1[m, i]
    Conv_1x1(Conv_KxK(x))  ->  Conv'_KxK(x)        W'[o, i, k] = sum_m W2[o, m] W1[m, i, k]
                                                   c'[o] = c2[o] + sum_mk W2[o, m, k] c1[m]

A scale and shift is a depthwise 1x1 convolution, an average a depthwise one with a flat kernel
(Ding et al. 2021, arXiv:2103.13425, 3.2). Of g1 and g2 groups their greatest common divisor stays.

Exact when   POINT      one of the two reads no neighbours, has stride 1 and pads nothing
             PADDING    the first has no bias where zeros are padded to its result
             SAME_TYPE  all weights are stored in one type
             WINDOWS    an average divides every window by the same number
             CHANNELS   the affine varies along the channels alone
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine, identity
from bnfold.algebra.graph import Affine, Conv, Linear, Node, Op, Param, Pool, Shape, channel_axis


def as_conv(op: Op) -> Conv | None:
    """A node with a weight as a convolution; None if it is no such node."""
    if isinstance(op, Linear):
        return Conv(op.weight, op.bias)
    return op if isinstance(op, Conv) else None


def in_a_row(nodes: Sequence[Node], main: Conv, shapes: Mapping[str, Shape | None]) -> Conv | None:
    """`nodes`, one after the other, as one convolution of what `main` reads; None if inexact.

    Without nodes it is the identity.
    """
    whole: Conv | None = None
    for node in nodes:
        channels = main.in_channels if whole is None else whole.out_channels
        step = _step(node.op, main, channels, shapes.get(node.inputs[0]))
        if step is None:
            return None
        whole = step if whole is None else composed(whole, step)
        if whole is None:
            return None
    return whole or _diagonal(identity(0, main.in_channels), main)


def composed(first: Conv, second: Conv) -> Conv | None:
    """second∘first as one convolution, of the geometry of whichever is not 1x1."""
    same = first.weight.dtype == second.weight.dtype and len(first.kernel) == len(second.kernel)
    if not same or first.transposed or second.transposed:
        return None
    padded = second.pad_mode == "zeros" and any(lo or hi for lo, hi in second.pads)
    if is_pointwise(first) and not (padded and first.bias is not None):
        geometry = second
    elif is_pointwise(second):
        geometry = first
    else:
        return None
    groups = math.gcd(first.groups, second.groups)
    shape = (second.out_channels, first.in_channels // groups, *geometry.kernel)

    def weight() -> Array:
        one, two = _in_groups(first, groups), _in_groups(second, groups)
        made: Array = np.einsum("gomk,gmil->goikl", two, one, optimize=True)
        return made.reshape(shape)

    kept = geometry.weight
    merged = Param.of(kept.name, shape, kept, weight, first.weight, second.weight)
    bias = _bias_in_a_row(first, second, groups)
    return replace(geometry, weight=merged, bias=bias, groups=groups)


def _bias_in_a_row(first: Conv, second: Conv, groups: int) -> Param | None:
    if first.bias is None:
        return second.bias
    before = first.bias

    def bias() -> Array:
        reach = _in_groups(second, groups).sum(3)
        carried: Array = np.einsum("gom,gm->go", reach, before.load().reshape(groups, -1))
        return carried.reshape(-1) + (0 if second.bias is None else second.bias.load())

    like = second.bias or before
    read = before, second.weight, like
    return Param.of(like.name, (second.out_channels,), like, bias, *read)


def is_pointwise(op: Conv) -> bool:
    ones = all(size == 1 for size in (*op.kernel, *op.stride))
    return ones and not any(lo or hi for lo, hi in op.pads)


def regrouped(kernel: Array, groups: int, fewer: int) -> Array:
    """A kernel [Cout, Cin/groups, *K] as one of `fewer` groups, zero where nothing connects."""
    if groups == fewer:
        return kernel
    outs, ins = kernel.shape[0] // groups, kernel.shape[1]
    wide = ins * groups // fewer
    whole = np.zeros((kernel.shape[0], wide, *kernel.shape[2:]))
    for group in range(groups):
        rows, column = slice(group * outs, (group + 1) * outs), group * ins % wide
        whole[rows, column : column + ins] = kernel[rows]
    return whole


def _in_groups(op: Conv, groups: int) -> Array:
    """The weight as [groups, Cout/groups, Cin/groups, taps]."""
    kernel = regrouped(op.weight.load(), op.groups, groups)
    return kernel.reshape(groups, op.out_channels // groups, op.in_channels // groups, -1)


def _step(op: Op, main: Conv, channels: int, shape: Shape | None) -> Conv | None:
    """One node as a convolution of `channels` in, of as many spatial axes as `main`."""
    match op:
        case Conv() | Linear():
            return as_conv(op)
        case Affine(affine=affine):
            axis = channel_axis(main, shape)
            if axis is None and affine.axes:
                return None
            spread = affine.spread(axis or 0, channels)
            return None if spread is None else _diagonal(spread, main)
        case Pool(kind="avg") if len(op.kernel) == len(main.kernel) and _counts_all(op):
            return _flat(op, channels, main)
    return None


def _counts_all(op: Pool) -> bool:
    """WINDOWS."""
    padded = any(lo or hi for lo, hi in op.pads)
    whole = not op.ceil_mode or all(step == 1 for step in op.stride)
    plain = whole and all(d == 1 for d in op.dilation)
    return plain and op.divisor is None and (op.count_include_pad or not padded)


def _diagonal(affine: ChannelAffine, main: Conv) -> Conv:
    """A depthwise 1x1 convolution that does what `affine` does."""
    rank, dtype = len(main.kernel), main.weight.dtype
    shape, ones = (affine.size, 1, *[1] * rank), (1,) * rank
    weight = Param("scale", shape, dtype, lambda: affine.scale.reshape(shape))
    bias = Param("shift", affine.shift.shape, dtype, lambda: affine.shift)
    return Conv(weight, bias if affine.shifts else None, ones, ones, ((0, 0),) * rank, affine.size)


def _flat(op: Pool, channels: int, main: Conv) -> Conv:
    """A depthwise convolution that averages as `op` does."""
    shape, value = (channels, 1, *op.kernel), 1.0 / math.prod(op.kernel)
    weight = Param("average", shape, main.weight.dtype, lambda: np.full(shape, value))
    return Conv(weight, None, op.stride, (1,) * len(op.kernel), op.pads, channels)
