"""Ops on the pixels: pad, resize, pooling over windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from bnfold.algebra.graph import AdaptivePool, Pad, Pads, Pool, Resize, Size
from bnfold.formats.meaning.operands import Tensor, not_linear
from bnfold.formats.meaning.steps import Meaning, one

Ints = tuple[int, ...]

PAD_MODES = ("constant", "reflect", "replicate", "circular")


def pad(x: Tensor, sides: Mapping[int, tuple[int, int]], mode: str, value: float) -> Meaning:
    """(begin, end) by axis; below zero, something is cut off."""
    if mode not in PAD_MODES:
        raise not_linear(f"its mode {mode!r} is not known")
    if all(side <= 0 for pair in sides.values() for side in pair):
        mode = "replicate"  # nothing is padded in
    by_axis = {x.axis(axis): pair for axis, pair in sides.items()}
    pads = tuple(by_axis.get(axis, (0, 0)) for axis in range(x.rank))
    return one(Pad(pads, mode, value), x)


def resize(x: Tensor, *, kept: bool = True) -> Meaning:
    """Interpolation of the spatial axes; `kept` says that no other one is resized."""
    if x.rank < 3 or not kept:
        raise not_linear("it may resize more than the spatial axes")
    return one(Resize(x.rank - 2), x)


def pool(
    x: Tensor,
    kind: Literal["max", "avg"],
    kernel: Ints,
    stride: Ints,
    pads: Pads,
    dilation: Ints,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    divisor: int | None = None,
) -> Meaning:
    op = Pool(kind, kernel, stride, pads, dilation, ceil_mode, count_include_pad, divisor)
    return one(op, x)


def adaptive_pool(x: Tensor, kind: Literal["max", "avg"], sizes: Sequence[Size]) -> Meaning:
    """Over whole windows of the last axes, `sizes` of them."""
    return one(AdaptivePool(kind, tuple(sizes)), x)
