"""Merge linear branches into one convolution, and two convolutions in a row into one.

sum          Conv(x) + Conv'(x) + s * x + b + AvgPool(x) + ...  ->  Conv"(x)
                 W" = W + the other kernels, laid over W's taps;  c" = c + c' + b + ...
             an identity is a delta kernel, an affine a scaled delta, an average a flat kernel
             (RepVGG, Ding et al. 2021, arXiv:2101.03697, 3.3; MobileOne, arXiv:2206.04040)
composition  Conv_KxK(Conv_1x1(x))  ->  Conv'_KxK(x)      W'[o, i, k] = sum_m W2[o, m, k] W1[m, i]
             Conv_1x1(Conv_KxK(x))  ->  Conv'_KxK(x)      W'[o, i, k] = sum_m W2[o, m] W1[m, i, k]

The widest branch, the main one, keeps stride, pads, dilation and groups; only its numbers change.

Exact when   ONE_ROOT   (sum) all branches read one value, and nothing but the sum reads them
             TAPS       (sum) every tap of the others falls on a tap of the main kernel, with equal
                        stride and equal output size
             GROUPS     (sum) what the others connect, the main one connects too
             PADDING    zeros are padded (no other mode); (composition) the first has no bias, or
                        the second pads nothing
             SAME_TYPE  all weights are stored in one type
             CHEAPER    neither multiply-adds nor parameters grow
Rounding     float64 inside, one rounding to the main weight's dtype
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from bnfold.affine import Array, ChannelAffine, identity
from bnfold.graph import Affine, Conv, Node, Param, Pool, Shape, channel_axis


@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """A linear map of one value, as a convolution of `channels` in and out.

    `kernel()` is [Cout, Cin/groups, *K] and `bias()` [Cout], both float64; `node` is None for the
    value itself. `sign` is that of the branch in its sum.
    """

    node: Node | None
    conv: Conv
    sign: float = 1.0


def branch_of(node: Node | None, main: Conv, sign: float, shape: Shape | None) -> Branch | None:
    """`node` as a convolution of the value it reads, to be added to `main`; None if it is not one.

    `shape` is that of the value it reads; None for `node` means the value itself.
    """
    rank, channels = len(main.kernel), main.in_channels
    op = None if node is None else node.op
    match op:
        case Conv() if not op.transposed and op.pad_mode == "zeros":
            return Branch(node, op, sign)
        case Affine():
            affine = op.affine.reduced()
            axis = channel_axis(main, shape)
            if affine.axes and axis is None:
                return None
            spread = affine.spread(axis or 0, channels)
            return None if spread is None else Branch(node, _diagonal(spread, rank), sign)
        case None:
            return Branch(None, _diagonal(identity(0, channels), rank), sign)
        case Pool() if op.kind == "avg" and len(op.kernel) == rank and _counts_all(op):
            return Branch(node, _flat(op, channels), sign)
    return None


def summed(main: Branch, others: list[Branch]) -> Conv | None:
    """The main convolution with the others added to it; None if a condition does not hold."""
    op = main.conv
    if not isinstance(_op(main), Conv) or op.transposed or op.pad_mode != "zeros":
        return None
    placed: list[tuple[Branch, tuple[int, ...], tuple[int, ...]]] = []
    for other in others:
        if isinstance(_op(other), Conv) and not _alike(op, other.conv):
            return None
        where = _taps(op, other.conv)
        if where is None or not _connects(op, other.conv):
            return None
        placed.append((other, *where))

    def weight() -> Array:
        total = main.sign * op.weight.load()
        for other, start, step in placed:
            total = total + other.sign * _laid_over(op, other.conv, start, step)
        return total

    def bias() -> Array:
        parts = [b.sign * b.conv.bias.load() for b in (main, *others) if b.conv.bias is not None]
        return reduce(np.add, parts)

    merged = replace(op, weight=Param(op.weight.name, op.weight.shape, op.weight.dtype, weight))
    biases = [b.conv.bias for b in (main, *others) if b.conv.bias is not None]
    if not biases:
        return merged
    name = op.bias.name if op.bias is not None else f"{_name(main)}.bias"
    dtype = op.bias.dtype if op.bias is not None else op.weight.dtype
    return replace(merged, bias=Param(name, (op.out_channels,), dtype, bias))


def composed(first: Conv, second: Conv, name: str) -> Conv | None:
    """second∘first as one convolution; None if a condition does not hold.

    It has the geometry of whichever is not 1x1; `name` is the node that stays.
    """
    if not (_is_plain(first) and _is_plain(second) and _alike(first, second)):
        return None
    if is_pointwise(first):
        padded = any(lo or hi for lo, hi in second.pads)
        if (padded and first.bias is not None) or _grows(second):
            return None
        geometry = second
    elif is_pointwise(second):
        geometry = first
    else:
        return None
    shape = (second.out_channels, first.in_channels, *geometry.kernel)
    before = math.prod(first.weight.shape) + math.prod(second.weight.shape)
    if math.prod(shape) > before:
        return None

    def weight() -> Array:
        one, two = first.weight.load(), second.weight.load()
        if geometry is second:
            flat = two.reshape(*two.shape[:2], -1)
            made: Array = np.einsum("omk,mi->oik", flat, one.reshape(one.shape[:2]), optimize=True)
            return made.reshape(shape)
        flat = one.reshape(*one.shape[:2], -1)
        made = np.einsum("om,mik->oik", two.reshape(two.shape[:2]), flat, optimize=True)
        return made.reshape(shape)

    def bias() -> Array:
        total = np.zeros(second.out_channels) if second.bias is None else second.bias.load()
        if first.bias is None:
            return total
        two = second.weight.load()
        reach: Array = two.reshape(*two.shape[:2], -1).sum(2)
        return total + reach @ first.bias.load()

    kept = geometry.weight
    merged = replace(geometry, weight=Param(kept.name, shape, kept.dtype, weight), bias=None)
    if first.bias is None and second.bias is None:
        return merged
    own = geometry.bias
    label, dtype = (f"{name}.bias", kept.dtype) if own is None else (own.name, own.dtype)
    return replace(merged, bias=Param(label, shape[:1], dtype, bias))


def _op(branch: Branch) -> object:
    return None if branch.node is None else branch.node.op


def _name(branch: Branch) -> str:
    assert branch.node is not None
    return branch.node.name


def _is_plain(op: Conv) -> bool:
    return not op.transposed and op.groups == 1 and op.pad_mode == "zeros"


def _alike(one: Conv, two: Conv) -> bool:
    """SAME_TYPE, and as many spatial axes."""
    return one.weight.dtype == two.weight.dtype and len(one.kernel) == len(two.kernel)


def is_pointwise(op: Conv) -> bool:
    ones = all(size == 1 for size in (*op.kernel, *op.stride))
    return ones and not any(lo or hi for lo, hi in op.pads)


def _grows(op: Conv) -> bool:
    """Whether there may be more outputs than inputs, so that work moved behind it grows."""
    reach = (d * (k - 1) for d, k in zip(op.dilation, op.kernel, strict=True))
    return any(lo + hi > r for (lo, hi), r in zip(op.pads, reach, strict=True))


def _counts_all(op: Pool) -> bool:
    """Whether an average divides every window by the same number."""
    padded = any(lo or hi for lo, hi in op.pads)
    plain = not op.ceil_mode and all(d == 1 for d in op.dilation)
    return plain and op.divisor is None and (op.count_include_pad or not padded)


def _diagonal(affine: ChannelAffine, rank: int) -> Conv:
    """A depthwise 1x1 convolution that does what `affine` does."""
    shape = (affine.size, 1, *[1] * rank)
    weight = Param("scale", shape, "float64", lambda: affine.scale.reshape(shape))
    bias = Param("shift", affine.shift.shape, "float64", lambda: affine.shift)
    ones = (1,) * rank
    return Conv(weight, bias if affine.shifts else None, ones, ones, ((0, 0),) * rank, affine.size)


def _flat(op: Pool, channels: int) -> Conv:
    """A depthwise convolution that averages as `op` does."""
    shape = (channels, 1, *op.kernel)
    value = 1.0 / math.prod(op.kernel)
    weight = Param("average", shape, "float64", lambda: np.full(shape, value))
    ones = (1,) * len(op.kernel)
    return Conv(weight, None, op.stride, ones, op.pads, channels)


def _taps(main: Conv, other: Conv) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """TAPS: on which tap of `main` the first tap of `other` falls, and the step between them."""
    starts: list[int] = []
    steps: list[int] = []
    for axis, (size, dilation, (lo, hi)) in enumerate(
        zip(main.kernel, main.dilation, main.pads, strict=True)
    ):
        small, wide = other.kernel[axis], other.dilation[axis]
        begin, end = other.pads[axis]
        if other.stride[axis] != main.stride[axis]:
            return None
        if lo + hi - dilation * (size - 1) != begin + end - wide * (small - 1):
            return None
        start, off = divmod(lo - begin, dilation)
        step, uneven = (1, 0) if small == 1 else divmod(wide, dilation)
        if off or uneven or start < 0 or start + step * (small - 1) >= size:
            return None
        starts.append(start)
        steps.append(step)
    return tuple(starts), tuple(steps)


def _connects(main: Conv, other: Conv) -> bool:
    """GROUPS."""
    same = (main.in_channels, main.out_channels) == (other.in_channels, other.out_channels)
    return same and other.groups % main.groups == 0


def _laid_over(main: Conv, other: Conv, start: tuple[int, ...], step: tuple[int, ...]) -> Array:
    """The kernel of `other` in the shape of `main`'s, zero where it has no tap or connection."""
    kernel = other.weight.load()
    total = np.zeros(main.weight.shape)
    outs, ins = kernel.shape[0] // other.groups, kernel.shape[1]
    wide = main.in_channels // main.groups
    taps = [range(n) for n in other.kernel]
    for group in range(other.groups):
        rows = slice(group * outs, (group + 1) * outs)
        column = group * ins % wide
        for tap in product(*taps):
            at = tuple(s + t * d for s, t, d in zip(start, tap, step, strict=True))
            where: Any = (rows, slice(column, column + ins), *at)
            source: Any = (rows, slice(None), *tap)
            total[where] = kernel[source]
    return total
