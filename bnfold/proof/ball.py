"""Real numbers known up to a radius: what rounding leaves open of a written weight.

Half a unit in the last place around a number that is written, and what float64 may have lost in
computing with it. Every operation encloses all results that its operands allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.affine import Array

NOISE = 2.0**-48
"""Of a number that float64 computed in up to 16 roundings, relative to its terms."""

OPEN = 2.0**-40
"""Of a number of the original, less is open, and of one that is written in a short type, more."""

LAST_PLACE = {
    "float64": (2.0**-52, 2.0**-1074),
    "float32": (2.0**-23, 2.0**-149),
    "float16": (2.0**-10, 2.0**-24),
    "bfloat16": (2.0**-7, 2.0**-133),
}
"""By type: the last place of the numbers from 1 to 2, and the least of all."""


def half_a_place(values: Array, dtype: str) -> Array:
    """Half a unit in the last place of every number, in the type that it is written in."""
    unit, least = LAST_PLACE[dtype]
    _, exponents = np.frexp(values)
    places: Array = np.maximum(np.ldexp(unit, exponents - 1), least)
    return places / 2


@dataclass(frozen=True, eq=False, slots=True)
class Ball:
    """Every number from mid - rad to mid + rad; `rad` broadcasts to `mid`. float64."""

    mid: Array
    rad: Array

    @classmethod
    def exact(cls, mid: Array) -> Ball:
        return cls(mid, np.zeros(()))

    @classmethod
    def computed(cls, mid: Array) -> Ball:
        """Numbers of the original: as they are written, or computed in float64 from these."""
        return cls(mid, NOISE * np.abs(mid))

    @classmethod
    def rounded(cls, mid: Array, dtype: str) -> Ball:
        """Numbers of the candidate, each of which stands for any that is rounded to it."""
        return cls(mid, half_a_place(mid, dtype) + NOISE * np.abs(mid))

    @property
    def is_zero(self) -> bool:
        """Whether it is exactly zero, everywhere."""
        return not (self.mid.any() or self.rad.any())

    @property
    def is_one(self) -> bool:
        return bool(np.all(self.mid == 1)) and not self.rad.any()

    @property
    def highest(self) -> Array:
        """The largest magnitude."""
        return np.asarray(np.abs(self.mid) + self.rad)

    @property
    def is_written(self) -> bool:
        """Whether more is open than what float64 loses: it is a number of the candidate."""
        return bool(np.any(self.rad > OPEN * np.abs(self.mid)))

    def mapped(self, change: Callable[[Array], Array]) -> Ball:
        """The same numbers elsewhere: `change` moves elements, and computes nothing."""
        return Ball(change(self.mid), change(np.broadcast_to(self.rad, self.mid.shape)))

    def times(self, other: Ball) -> Ball:
        mid = np.asarray(self.mid * other.mid)
        rad = np.abs(self.mid) * other.rad + self.rad * other.highest + NOISE * np.abs(mid)
        return Ball(mid, np.asarray(rad))

    def plus(self, other: Ball) -> Ball:
        mid = np.asarray(self.mid + other.mid)
        return Ball(mid, np.asarray(self.rad + other.rad + NOISE * np.abs(mid)))

    def minus(self, other: Ball) -> Ball:
        return self.plus(Ball(-other.mid, other.rad))

    def total(self, axes: tuple[int, ...]) -> Ball:
        """The sum over axes, by what float64 may lose of its terms."""
        wide = np.broadcast_to(self.rad, self.mid.shape)
        lost = NOISE * np.abs(self.mid).sum(axes)
        return Ball(np.asarray(self.mid.sum(axes)), np.asarray(wide.sum(axes) + lost))


ZERO, ONE = Ball.exact(np.zeros(())), Ball.exact(np.ones(()))


def beyond(one: Ball, two: Ball) -> NDArray[np.bool_]:
    """Where two numbers are surely not the same, or one of them is no number, or any."""
    with np.errstate(invalid="ignore"):
        room = one.rad + two.rad
        return np.asarray(~((np.abs(one.mid - two.mid) <= room) & (room < np.inf)))
