"""A channel affine: y = scale * x + shift, with numbers that vary along some axes of x.

The one place that knows the BatchNorm formula (Ioffe & Szegedy 2015, arXiv:1502.03167, 3.1):

    scale [C] = gamma / sqrt(var + eps)
    shift [C] = beta - mean * scale

Everything is float64. `axes` count from the left of the value that the affine acts on; `scale` and
`shift` have one dimension for each. Most affines lie on one axis, where the channels are; one on no
axis is uniform; a reshape that splits the channels, as into heads, makes it several. Along an axis
that is longer than its numbers they repeat: heads merged into a batch of unknown size n, as
[n * h], carry h scales on axis 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.refusal import Reason, Refusal

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class ChannelAffine:
    """`scale` and `shift` are float64 of one shape: a length for each of `axes`, which ascend.

    Each length divides the size of its axis.
    """

    axes: tuple[int, ...]
    scale: Array
    shift: Array

    @classmethod
    def on_axis(cls, axis: int | None, scale: Array, shift: Array) -> ChannelAffine:
        """One number for each index of `axis`; where it is None, one number for everything."""
        if axis is None:
            return cls((), scale.reshape(()), shift.reshape(()))
        return cls((axis,), scale, shift)

    @property
    def axis(self) -> int | None:
        """The axis of an affine that lies on one; None if it is uniform."""
        assert len(self.axes) <= 1
        return self.axes[0] if self.axes else None

    @property
    def size(self) -> int:
        return int(self.scale.size)

    @property
    def shifts(self) -> bool:
        """Whether any shift differs from zero."""
        return bool(np.any(self.shift != 0))

    @property
    def is_uniform(self) -> bool:
        """Whether every element gets one and the same scale and shift."""
        return all(bool(np.all(a == a.ravel()[:1])) for a in (self.scale, self.shift))

    @property
    def is_identity(self) -> bool:
        return not self.shifts and bool(np.all(self.scale == 1))

    def length(self, axis: int) -> int:
        """After how many indices of `axis` the numbers repeat; 1 where they do not vary."""
        return self.scale.shape[self.axes.index(axis)] if axis in self.axes else 1

    def moved(self, to: Sequence[int]) -> ChannelAffine:
        """The same numbers on other axes: those of `axes[i]` on `to[i]`."""
        order = sorted(range(len(to)), key=to.__getitem__)
        axes = tuple(to[i] for i in order)
        return ChannelAffine(axes, self.scale.transpose(order), self.shift.transpose(order))

    def moved_by(self, offset: int) -> ChannelAffine:
        """The same numbers on axes so many places to the right."""
        return self.moved([axis + offset for axis in self.axes])

    def without(self, *axes: int) -> ChannelAffine | None:
        """This affine as one that does not lie on `axes`; None if it varies along one of them."""
        left = self
        for axis in axes:
            if axis in left.axes:
                k = left.axes.index(axis)
                if _period(left, k) != 1:
                    return None
                others = left.axes[:k] + left.axes[k + 1 :]
                left = _made(others, left.scale.take(0, axis=k), left.shift.take(0, axis=k))
        return left

    def reduced(self) -> ChannelAffine:
        """The same with no axis along which nothing varies, and the others at their periods."""
        left = self
        for k in range(len(self.axes)):
            line = (slice(None),) * k + (slice(_period(left, k)),)
            left = ChannelAffine(self.axes, left.scale[line], left.shift[line])
        constant = [axis for axis in self.axes if left.length(axis) == 1]
        return left.without(*constant) or left

    def spread(self, axis: int, size: int) -> ChannelAffine | None:
        """This affine as one on `axis` of length `size`; None if it varies along another axis."""
        if self.axes == (axis,) and self.size == size:
            return self
        own = self.without(*(other for other in self.axes if other != axis))
        if own is None or own.size == 0 or size % own.size:
            return None
        return own.laid_out({axis: size})

    def laid_out(self, lengths: Mapping[int, int]) -> ChannelAffine:
        """The same numbers on all axes of `lengths`, repeated to these lengths."""
        axes = tuple(sorted(lengths))
        old = [self.length(axis) for axis in axes]
        times = [lengths[axis] // n for axis, n in zip(axes, old, strict=True)]
        scale, shift = (np.tile(a.reshape(old), times) for a in (self.scale, self.shift))
        return ChannelAffine(axes, scale, shift)

    def after(self, first: ChannelAffine) -> ChannelAffine:
        """self∘first: `first` is applied to the data, then self."""
        a, b = _on_common_axes(self, first)
        return _made(a.axes, a.scale * b.scale, a.scale * b.shift + a.shift)

    def plus(self, other: ChannelAffine) -> ChannelAffine:
        """The sum of both results of the same data."""
        a, b = _on_common_axes(self, other)
        return _made(a.axes, a.scale + b.scale, a.shift + b.shift)

    def times(self, factor: float) -> ChannelAffine:
        """The result multiplied by a number."""
        return _made(self.axes, factor * self.scale, factor * self.shift)

    def without_shift(self) -> ChannelAffine:
        return ChannelAffine(self.axes, self.scale, np.zeros_like(self.shift))

    def take(self, axis: int, indices: Sequence[int]) -> ChannelAffine:
        """The affine of some of the indices of `axis`."""
        if axis not in self.axes:
            return self
        k = self.axes.index(axis)
        chosen = np.asarray(indices, np.intp) % self.scale.shape[k]
        return ChannelAffine(self.axes, self.scale.take(chosen, k), self.shift.take(chosen, k))

    def placed(self, axis: int, indices: Sequence[int], size: int) -> ChannelAffine | None:
        """This affine on `indices` of an `axis` of length `size`, and the identity elsewhere.

        None if its length on `axis` does not divide the number of indices.
        """
        if len(indices) % self.length(axis):
            return None
        lengths = {other: self.length(other) for other in self.axes}
        part = self.laid_out({**lengths, axis: len(indices)})
        whole = UNIT.laid_out({**lengths, axis: size})
        where = (slice(None),) * part.axes.index(axis) + (list(indices),)
        whole.scale[where], whole.shift[where] = part.scale, part.shift
        return whole

    def on(self, x: Array) -> Array:
        """scale * x + shift, for x with this affine's axes."""
        laid = self.laid_out({axis: x.shape[axis] for axis in self.axes})
        shape = [n if axis in self.axes else 1 for axis, n in enumerate(x.shape)]
        return laid.scale.reshape(shape) * x + laid.shift.reshape(shape)


UNIT = ChannelAffine((), np.ones(()), np.zeros(()))
"""The identity, on anything."""


def identity(axis: int, size: int) -> ChannelAffine:
    return ChannelAffine((axis,), np.ones(size), np.zeros(size))


def _on_common_axes(one: ChannelAffine, two: ChannelAffine) -> tuple[ChannelAffine, ChannelAffine]:
    """Both on the axes of either, with lengths that both divide."""
    if one.axes == two.axes and one.scale.shape == two.scale.shape:
        return one, two
    axes = {*one.axes, *two.axes}
    lengths = {axis: math.lcm(one.length(axis), two.length(axis)) for axis in axes}
    return one.laid_out(lengths), two.laid_out(lengths)


def _made(
    axes: tuple[int, ...], scale: Array | np.float64, shift: Array | np.float64
) -> ChannelAffine:
    """numpy makes plain numbers of arrays without dimensions."""
    return ChannelAffine(axes, np.asarray(scale), np.asarray(shift))


def _period(affine: ChannelAffine, dimension: int) -> int:
    """The least number that divides a length and after which the numbers repeat along it."""
    numbers = np.stack((affine.scale, affine.shift))
    lined = np.moveaxis(numbers, dimension + 1, 0)
    length = len(lined)
    divisors = np.flatnonzero(length % np.arange(1, length + 1) == 0) + 1
    repeats = (int(n) for n in divisors if np.array_equal(lined[n:], lined[: length - n]))
    return next(repeats, 0)


def from_batchnorm(
    axis: int,
    mean: Array,
    var: Array,
    eps: float,
    gamma: Array | None = None,
    beta: Array | None = None,
) -> ChannelAffine | Refusal:
    """The affine of a BatchNorm in inference; gamma is 1 and beta 0 where they are absent.

    All arrays are float64 of shape [C]. Refused, with the channel named, when a number is not
    finite or var + eps is not above zero.
    """
    gamma = np.ones_like(mean) if gamma is None else gamma
    beta = np.zeros_like(mean) if beta is None else beta
    named = {"running_mean": mean, "running_var": var, "gamma": gamma, "beta": beta}
    if len({a.shape for a in named.values()}) != 1 or mean.ndim != 1:
        lengths = ", ".join(f"{name} {list(a.shape)}" for name, a in named.items())
        return Refusal(Reason.MISMATCHED_CHANNELS, f"its parameters have unequal shapes: {lengths}")
    for name, values in named.items():
        if bad := _first(~np.isfinite(values)):
            return Refusal(Reason.NON_FINITE, f"{name} of channel {bad - 1} is {values[bad - 1]}")
    if bad := _first(~(var + eps > 0)):
        return Refusal(
            Reason.NON_POSITIVE_VARIANCE,
            f"running_var + eps of channel {bad - 1} is {var[bad - 1] + eps:g}, not above zero",
        )
    scale = gamma / np.sqrt(var + eps)
    return ChannelAffine((axis,), scale, beta - mean * scale)


def to_batchnorm(affine: ChannelAffine, mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """The gamma and beta [C] with which a BatchNorm of these statistics is `affine`."""
    return affine.scale * np.sqrt(var + eps), affine.shift + mean * affine.scale


def _first(mask: NDArray[np.bool_]) -> int:
    """One more than the first true index; 0 if there is none."""
    found = np.flatnonzero(mask)
    return int(found[0]) + 1 if found.size else 0
