"""A channel affine: y = scale * x + shift, one scale and one shift per index of one axis.

The one place that knows the BatchNorm formula (Ioffe & Szegedy 2015, arXiv:1502.03167, 3.1):

    scale [C] = gamma / sqrt(var + eps)
    shift [C] = beta - mean * scale

Everything is float64. `axis` counts from the left of the value that the affine acts on; `axis=None`
is a uniform affine: one scale and one shift (arrays of length 1) for every element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.refusal import Reason, Refusal

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class ChannelAffine:
    """`scale` and `shift` are float64 of shape [C], or [1] where `axis` is None."""

    axis: int | None
    scale: Array
    shift: Array

    @property
    def size(self) -> int:
        return int(self.scale.shape[0])

    @property
    def shifts(self) -> bool:
        """Whether any shift differs from zero."""
        return bool(np.any(self.shift != 0))

    @property
    def is_uniform(self) -> bool:
        """Whether every element gets one and the same scale and shift."""
        return bool(np.all(self.scale == self.scale[:1]) and np.all(self.shift == self.shift[:1]))

    @property
    def is_identity(self) -> bool:
        return not self.shifts and bool(np.all(self.scale == 1))

    def at(self, axis: int) -> ChannelAffine:
        """The same numbers on another axis; a uniform affine stays uniform."""
        return self if self.axis is None else ChannelAffine(axis, self.scale, self.shift)

    def spread(self, axis: int, size: int) -> ChannelAffine | None:
        """This affine as one on `axis` of length `size`, or None if it lies on another axis."""
        if self.axis is None:
            return self.repeated(axis, size)
        return self if (self.axis, self.size) == (axis, size) else None

    def repeated(self, axis: int, size: int) -> ChannelAffine:
        """A uniform affine as one on `axis` of length `size`."""
        return ChannelAffine(axis, np.repeat(self.scale, size), np.repeat(self.shift, size))

    def after(self, first: ChannelAffine) -> ChannelAffine | None:
        """self∘first: `first` is applied to the data, then self. None if the axes differ."""
        if self.axis is not None and first.axis is not None and self.axis != first.axis:
            return None
        axis = self.axis if self.axis is not None else first.axis
        scale, shift = self.scale * first.scale, self.scale * first.shift + self.shift
        return ChannelAffine(axis, scale, shift)

    def plus(self, other: ChannelAffine) -> ChannelAffine | None:
        """The sum of both results of the same data. None if the axes differ."""
        if self.axis is not None and other.axis is not None and self.axis != other.axis:
            return None
        axis = self.axis if self.axis is not None else other.axis
        return ChannelAffine(axis, self.scale + other.scale, self.shift + other.shift)

    def times(self, factor: float) -> ChannelAffine:
        """The result multiplied by a number."""
        return ChannelAffine(self.axis, factor * self.scale, factor * self.shift)

    def without_shift(self) -> ChannelAffine:
        return ChannelAffine(self.axis, self.scale, np.zeros_like(self.shift))

    def as_uniform(self) -> ChannelAffine:
        """The numbers of the first channel, for every element."""
        return ChannelAffine(None, self.scale[:1], self.shift[:1])

    def take(self, channels: slice) -> ChannelAffine:
        """The affine of some of the channels."""
        if self.axis is None:
            return self
        return ChannelAffine(self.axis, self.scale[channels], self.shift[channels])

    def on(self, x: Array) -> Array:
        """scale * x + shift, for x with this affine's axis."""
        shape = [1] * x.ndim
        if self.axis is not None:
            shape[self.axis] = self.size
        return self.scale.reshape(shape) * x + self.shift.reshape(shape)


UNIT = ChannelAffine(None, np.ones(1), np.zeros(1))
"""The identity, on anything."""


def identity(axis: int, size: int) -> ChannelAffine:
    return ChannelAffine(axis, np.ones(size), np.zeros(size))


def join(axis: int, parts: Sequence[ChannelAffine]) -> ChannelAffine:
    """The affine of a concatenation whose segments carry `parts`."""
    scales, shifts = [p.scale for p in parts], [p.shift for p in parts]
    return ChannelAffine(axis, np.concatenate(scales), np.concatenate(shifts))


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
    return ChannelAffine(axis, scale, beta - mean * scale)


def _first(mask: NDArray[np.bool_]) -> int:
    """One more than the first true index; 0 if there is none."""
    found = np.flatnonzero(mask)
    return int(found[0]) + 1 if found.size else 0
