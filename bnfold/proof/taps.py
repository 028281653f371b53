"""Convolutions by their taps: where each weight reads, whatever kernel and pads it lies in.

    plain        y[o, p] = sum_it kernel[o, i, t] x[i, S p + offset_t]    size (n + excess) // S + 1
    transposed   y[o, S p + offset_t] += kernel[o, i, t] x[i, p]          size S (n - 1) + excess

offset_t = d k - begin, excess = begin + end - d (k - 1) - 1, and for a transposed one
d (k - 1) + 1 + spare - begin - end. What lies outside of x is 0, or as the pad mode says. So two
convolutions of one geometry are added up by adding up their taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import Conv, Linear, Pool
from bnfold.proof.ball import NOISE, Ball

Offsets = tuple[tuple[int, ...], ...]
MOST_ELEMENTS = 1 << 24
"""A kernel with more elements is not made of others."""


class UnprovableError(Exception):
    """Something that this algebra does not express; the text says what."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """`spatial` is the number of axes behind the channels: none for a Linear."""

    spatial: int = 0
    stride: tuple[int, ...] = ()
    excess: tuple[int, ...] = ()
    mode: str = "zeros"
    transposed: bool = False

    @property
    def is_pointwise(self) -> bool:
        """Whether a single tap in the middle reads the pixel that it makes."""
        flat = all(s == 1 for s in self.stride) and all(e == -1 for e in self.excess)
        return flat and not self.transposed


@dataclass(frozen=True, eq=False, slots=True)
class Taps:
    """kernel [O, I / groups, T]; output channel o reads those of its group, in order."""

    offsets: Offsets
    groups: int
    kernel: Ball

    @property
    def channels(self) -> int:
        return int(self.kernel.mid.shape[0])

    @property
    def reads(self) -> int:
        return int(self.kernel.mid.shape[1]) * self.groups

    def by_input(self, scale: Ball) -> Taps:
        """With input channels times `scale` [I]."""
        groups = self.groups
        rows = scale.mapped(lambda a: _rows(a, groups, self.channels))
        return Taps(self.offsets, groups, self.kernel.times(rows))

    def by_output(self, scale: Ball) -> Taps:
        """With output channels times `scale` [O], or [1]."""
        wide = scale.mapped(lambda a: a.reshape(-1, 1, 1))
        return Taps(self.offsets, self.groups, self.kernel.times(wide))

    def of_constant(self, shift: Ball) -> Ball:
        """What comes out for an input of `shift` [I] wherever all taps read it: [O]."""
        return self.by_input(shift).kernel.total((1, 2))


def _rows(vector: Array, groups: int, channels: int) -> Array:
    """A number for each input channel as [O, I / groups, 1]."""
    return vector.reshape(groups, -1).repeat(channels // groups, axis=0)[:, :, None]


def geometry_of(op: Conv | Linear | Pool) -> tuple[Geometry, Offsets]:
    if isinstance(op, Linear):
        return Geometry(), ((),)
    kernel, ones = op.kernel, (1,) * len(op.kernel)
    stride, dilation = op.stride or ones, op.dilation or ones
    pads = op.pads or ((0, 0),) * len(kernel)
    transposed = isinstance(op, Conv) and op.transposed
    spare = (isinstance(op, Conv) and op.output_padding) or (0,) * len(kernel)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    excess = tuple(
        r + more - lo - hi if transposed else lo + hi - r
        for r, more, (lo, hi) in zip(reach, spare, pads, strict=True)
    )
    along = [
        [d * k - lo for k in range(size)]
        for size, d, (lo, _) in zip(kernel, dilation, pads, strict=True)
    ]
    mode = op.pad_mode if isinstance(op, Conv) else "zeros"
    return Geometry(len(kernel), stride, excess, mode, transposed), tuple(product(*along))


def arranged(op: Conv | Linear, weight: Array) -> Array:
    """A weight as [O, I / groups, T]."""
    if isinstance(op, Linear):
        return weight[:, :, None]
    flat = weight.reshape(*weight.shape[:2], -1)
    if op.transposed:
        cin, per, taps = flat.shape
        split = flat.reshape(op.groups, cin // op.groups, per, taps).transpose(0, 2, 1, 3)
        return split.reshape(op.groups * per, cin // op.groups, taps)
    return flat


def reads_inside(geometry: Geometry, offsets: Offsets) -> bool:
    """Whether every tap of every output reads an input, never what lies beyond the border.

    plain        offset >= 0 and S ((n + excess) // S) + offset <= n - 1
    transposed   S = 1, q - offset >= 0 for q = 0 and <= n - 1 for the last q, n - 2 + excess
    """
    if geometry.mode != "zeros":
        return True
    least, most = ([pick(along) for along in zip(*offsets, strict=True)] for pick in (min, max))
    sides = list(zip(least, most, geometry.excess, geometry.stride, strict=True))
    if geometry.transposed:
        return all(hi <= 0 and e <= 1 + lo and s == 1 for lo, hi, e, s in sides)
    return all(lo >= 0 and e <= -1 - hi for lo, hi, e, _ in sides)


def pointwise(scale: Ball, spatial: int, channels: int) -> Taps:
    """A multiplication of each channel, by `scale` [C], as a kernel of one tap."""
    kernel = scale.mapped(lambda a: np.broadcast_to(a, (channels,)).reshape(-1, 1, 1))
    return Taps(((0,) * spatial,), channels, kernel)


def aligned(one: Taps, two: Taps) -> tuple[Taps, Taps]:
    """Both on the same offsets, in the same groups."""
    if one.channels != two.channels or one.reads != two.reads:
        raise UnprovableError("the channels differ")
    groups = math.gcd(one.groups, two.groups)
    offsets = one.offsets
    if one.offsets != two.offsets:
        offsets = tuple(sorted({*one.offsets, *two.offsets}))
    return _laid(one, groups, offsets), _laid(two, groups, offsets)


def added(one: Taps, two: Taps) -> Taps:
    """The sum of two layers of one value, of which at most one is written as it is."""
    if one.kernel.is_written and two.kernel.is_written:
        raise UnprovableError("it adds up two layers of one value")
    a, b = aligned(one, two)
    return Taps(a.offsets, a.groups, a.kernel.plus(b.kernel))


def _laid(taps: Taps, groups: int, offsets: Offsets) -> Taps:
    """The same convolution with fewer groups, and with taps that are 0."""
    if (taps.groups, taps.offsets) == (groups, offsets):
        return taps
    channels, width, count = taps.channels, taps.reads // groups, len(offsets)
    if channels * width * count > MOST_ELEMENTS:
        raise UnprovableError("its kernel would be too large")
    where = [offsets.index(offset) for offset in taps.offsets]
    per = taps.kernel.mid.shape[1]
    own = np.arange(channels) // (channels // taps.groups) % (taps.groups // groups)
    columns = own[:, None] * per + np.arange(per)

    def put(kernel: Array) -> Array:
        wide = np.zeros((channels, width, count))
        wide[np.arange(channels)[:, None, None], columns[:, :, None], where] = kernel
        return wide

    return Taps(offsets, groups, taps.kernel.mapped(put))


def composed(outer: tuple[Geometry, Taps], inner: tuple[Geometry, Taps]) -> tuple[Geometry, Taps]:
    """`outer` of what `inner` makes.

    Exact when   PLAIN     neither is transposed; what lies outside is 0 for both
                 INSIDE    the outer reads nothing beyond the border, or the inner is pointwise, so
                           that what it makes of 0 is 0
    """
    after, second = outer
    before, first = inner
    if after.spatial != before.spatial or after.transposed or before.transposed:
        raise UnprovableError("two layers in a row do not compose")
    if after.mode != "zeros" or before.mode != "zeros":
        raise UnprovableError("a layer in a row pads with what it reads")
    pointwise = before.is_pointwise and not any(map(any, first.offsets))
    if not (pointwise or reads_inside(after, second.offsets)):
        raise UnprovableError("a padded layer reads what another makes")
    groups = math.gcd(second.groups, first.groups)
    pairs = [
        tuple(a + s * b for a, b, s in zip(one, two, before.stride, strict=True))
        for two in second.offsets
        for one in first.offsets
    ]
    offsets = tuple(sorted(set(pairs)))
    middle = first.channels
    size = second.channels * (first.reads // groups) * len(pairs)
    if second.reads != middle or size * (middle // groups) > 64 * MOST_ELEMENTS:
        raise UnprovableError("the kernel of two layers would be too large")
    two, one = (_laid(t, groups, t.offsets).kernel for t in (second, first))

    def product_of(a: Array, b: Array) -> Array:
        a = np.broadcast_to(a, two.mid.shape).reshape(groups, -1, middle // groups, a.shape[-1])
        b = np.broadcast_to(b, one.mid.shape).reshape(groups, middle // groups, -1, b.shape[-1])
        found = np.einsum("gomt,gmis->goits", a, b, optimize=True)
        flat = found.reshape(second.channels, -1, len(pairs))
        summed = np.zeros((*flat.shape[:2], len(offsets)))
        for index, pair in enumerate(pairs):
            summed[:, :, offsets.index(pair)] += flat[:, :, index]
        return summed

    mid = product_of(two.mid, one.mid)
    wide = [np.broadcast_to(ball.rad, ball.mid.shape) for ball in (two, one)]
    rad = product_of(np.abs(two.mid), wide[1]) + product_of(wide[0], one.highest)
    rad += NOISE * product_of(np.abs(two.mid), np.abs(one.mid))
    stride = tuple(s * t for s, t in zip(before.stride, after.stride, strict=True))
    excess = tuple(
        e + s * (1 + f) for e, s, f in zip(before.excess, before.stride, after.excess, strict=True)
    )
    geometry = Geometry(after.spatial, stride, excess)
    return geometry, Taps(offsets, groups, Ball(mid, rad))
