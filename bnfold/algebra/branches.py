"""Add linear maps of one value up to one convolution, or to one affine.

    Conv(x) + Conv'(x) + s * x + b + AvgPool(x) + W2(W1 x) + ...  ->  Conv"(x)
        W" = W + the other kernels, laid over W's taps;   c" = c + c' + b + ...
        an identity is a delta kernel, an affine a scaled delta, an average a flat kernel
        (RepVGG, Ding et al. 2021, arXiv:2101.03697, 3.3; MobileOne, arXiv:2206.04040), a row of
        layers one kernel (chains.py; LoRA, Hu et al. 2021, arXiv:2106.09685)
    s * x + b + x + ...  ->  s" * x + b"       in the place of a BatchNorm, or of a scale if b" = 0

The main convolution keeps stride, pads, dilation and groups, and so its cost; only its numbers
change. The others go, so neither multiply-adds nor weights grow, and a bias is one at most.

Exact when   TAPS       every tap of the others falls on a tap of the main kernel, with equal stride
                        and equal output size
             GROUPS     what the others connect, the main one connects too
             PADDING    the others pad nothing, or as the main one does
             TRANSPOSED both are transposed, and of one geometry, or neither is
             SAME_TYPE  all weights are stored in one type
Rounding     float64 inside, one rounding to the main weight's dtype
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.chains import regrouped
from bnfold.algebra.graph import Affine, Conv, Param

Weighted = tuple[Conv, float]
"""A convolution, and how many times it is added."""


def fits(main: Conv, other: Conv) -> bool:
    """Whether `other` can be added to `main`, if both read one value."""
    if main.weight.dtype != other.weight.dtype or len(main.kernel) != len(other.kernel):
        return False
    if main.transposed or other.transposed:
        return _is_of_one_geometry(main, other)
    padded = any(lo or hi for lo, hi in other.pads)
    if padded and main.pad_mode != other.pad_mode:
        return False
    return _connects(main, other) and _taps(main, other) is not None


def summed(main: Weighted, others: Sequence[Weighted]) -> Conv:
    """The main convolution with others that fit added to it."""
    op, factor = main
    everything = [main, *others]

    def weight() -> Array:
        total = factor * op.weight.load()
        for other, own in others:
            total = total + own * _laid_over(op, other)
        return total

    def bias() -> Array:
        return reduce(np.add, [own * c.bias.load() for c, own in everything if c.bias is not None])

    like = op.weight
    merged = Param.of(like.name, like.shape, like, weight, *(c.weight for c, _ in everything))
    read = [each.bias for each, _ in everything if each.bias is not None]
    total = Param.of("bias", (op.out_channels,), like, bias, *read) if read else None
    return replace(op, weight=merged, bias=total)


def holds(main: Affine, other: ChannelAffine) -> bool:
    """Whether the node of `main` can also hold what `other` does."""
    able = main.holds == "both" or (main.holds == "scale" and not other.shifts)
    return able and _like(main.affine, other) is not None


def affine_sum(
    main: Affine, factor: float, others: Sequence[tuple[ChannelAffine, float]]
) -> Affine:
    """`factor` times the main affine, with others that its node can hold added to it."""
    total = main.affine.times(factor)
    for other, own in others:
        alike = _like(main.affine, other)
        assert alike is not None
        total = total.plus(alike.times(own))
    return replace(main, affine=total)


def _like(main: ChannelAffine, other: ChannelAffine) -> ChannelAffine | None:
    """`other` on the axes of `main`; None if it varies along another."""
    least = other.reduced()
    if len(main.axes) == 1:
        return least.spread(main.axes[0], main.size)
    return least if not least.axes else None


def _is_of_one_geometry(main: Conv, other: Conv) -> bool:
    """TRANSPOSED."""
    one, two = (
        (c.transposed, c.weight.shape, c.groups, c.stride, c.dilation, c.pads, c.output_padding)
        for c in (main, other)
    )
    return one == two


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


def _laid_over(main: Conv, other: Conv) -> Array:
    """The kernel of `other` in the shape of `main`'s, zero where it has no tap or connection."""
    if main.transposed:
        return other.weight.load()
    found = _taps(main, other)
    assert found is not None
    kernel = regrouped(other.weight.load(), other.groups, main.groups)
    total = np.zeros(main.weight.shape)
    taps = [slice(a, a + d * (n - 1) + 1, d) for a, d, n in zip(*found, other.kernel, strict=True)]
    where: Any = (slice(None), slice(None), *taps)
    total[where] = kernel
    return total
