"""How a value of the candidate lies to one of the original:  new = scale * old + shift.

Both are forms of the same values. The scale is what takes every coefficient of the one into that of
the other, within what rounding leaves open: every weight narrows it down, and where all of them
agree with 1, it is 1. So a scale is never read off a single weight where there are more, and errors
do not add up from layer to layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bnfold.algebra.affine import Array
from bnfold.proof.ball import NOISE, ONE, ZERO, Ball, beyond
from bnfold.proof.form import Form, on_channels
from bnfold.proof.taps import UnprovableError, aligned, pointwise


@dataclass(frozen=True, eq=False, slots=True)
class Relation:
    """Arrays broadcast from the right."""

    scale: Ball = ONE
    shift: Ball = ZERO

    @property
    def is_identity(self) -> bool:
        return self.shift.is_zero and self.scale.is_one

    def of(self, value: str) -> Form:
        return Form({value: self.scale}, {}, self.shift)


IDENTITY = Relation()

SLIGHT = 1024
"""A shift of so many times what rounding leaves open is an error, unless most are larger."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Why there is none: by how many units in the last place the nearest weight is off, if known.

    Smaller is nearer; `places` is infinite where the two are of different values.
    """

    why: str
    places: float = np.inf


@dataclass(frozen=True, eq=False, slots=True)
class _Pair:
    """Coefficients of one value in both forms, as [O, n] for taps, else as they broadcast."""

    what: str
    new: Ball
    old: Ball
    spatial: int | None = None

    def scaled(self, scale: Ball) -> Ball:
        """The coefficients of the original times a scale."""
        if self.spatial is None:
            return self.old.times(scale)
        return self.old.times(scale.mapped(lambda a: a.reshape(-1, 1, 1)))


def identical(new: Form, old: Form) -> Gap | None:
    """None if both are the same; else what differs."""
    try:
        pairs = _pairs(new, old)
    except UnprovableError as error:
        return Gap(str(error))
    if pairs is None:
        return Gap("it is computed from other values")
    gaps = [gap for pair in pairs if (gap := _gap(pair)) is not None]
    return min(gaps, key=lambda gap: -gap.places, default=None)


def relation(new: Form, old: Form, unit: float, *, shifts: bool = True) -> Relation | Gap:
    """The scale and shift with which `new` is made of `old`, if there are any.

    A scale must be known to a `unit` in the last place. Without `shifts` the shift has to be zero.
    """
    gap = identical(new, old)
    if gap is None:
        return IDENTITY
    if not np.isfinite(gap.places):
        return gap
    pairs = _pairs(new, old)
    assert pairs is not None
    last = pairs.pop()
    scale = _scale([*pairs, last] if not shifts and not old.shift.is_zero else pairs)
    if scale is None or np.any(scale.rad > unit * np.abs(scale.mid)):
        return gap
    if any(beyond(p.new, p.scaled(scale)).any() for p in pairs):
        return gap
    shift = last.new.minus(last.old.times(scale))
    nothing = np.abs(shift.mid) <= shift.rad
    if nothing.all():
        return Relation(scale)
    slight = ~nothing & (np.abs(shift.mid) <= SLIGHT * shift.rad)
    if not shifts or 2 * slight.sum() > (~nothing).sum():
        return gap
    return Relation(scale, Ball(np.where(nothing, 0.0, shift.mid), np.where(nothing, 0, shift.rad)))


def _pairs(new: Form, old: Form) -> list[_Pair] | None:
    """Every coefficient of both, the shift last; None if they are forms of different values."""
    if new.values != old.values:
        return None
    if {*new.scaled} != {*old.scaled} or {*new.taps} != {*old.taps}:
        new, old = _alike(new, old), _alike(old, new)
        if {*new.scaled} != {*old.scaled} or {*new.taps} != {*old.taps}:
            return None
    pairs = []
    for key, taps in new.taps.items():
        one, two = aligned(taps, old.taps[key])
        pairs.append(_Pair("weight", one.kernel, two.kernel, key[1].spatial))
    pairs += [_Pair("scale", own, old.scaled[value]) for value, own in new.scaled.items()]
    return [*pairs, _Pair("bias", new.shift, old.shift)]


def _alike(form: Form, other: Form) -> Form:
    """The same with kernels of one tap in place of scales, where the other has kernels."""
    scaled, taps = dict(form.scaled), dict(form.taps)
    for (value, geometry), its in other.taps.items():
        if value in scaled and form.whole and geometry.is_pointwise:
            scale = on_channels(scaled.pop(value), geometry.spatial, its.channels)
            taps[value, geometry] = pointwise(scale, geometry.spatial, its.channels)
    return replace(form, scaled=scaled, taps=taps)


def _gap(pair: _Pair) -> Gap | None:
    wrong = beyond(pair.new, pair.old)
    if not wrong.any():
        return None
    apart = np.abs(pair.new.mid - pair.old.mid)
    place = np.broadcast_to(2 * (pair.new.rad + pair.old.rad), apart.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        places = np.where(np.broadcast_to(wrong, apart.shape), apart / place, 0.0)
    index = np.unravel_index(int(np.nan_to_num(places, nan=np.inf).argmax()), places.shape)
    most = float(np.nan_to_num(places[index], nan=1e300, posinf=1e300))
    where = ", ".join(map(str, map(int, index)))
    far = f"{most:.3g} units in the last place" if most < 1e5 else "far"
    return Gap(f"its {pair.what} [{where}] is {far} from what the original makes it", most)


def _scale(pairs: list[_Pair]) -> Ball | None:
    """The scale that all pairs allow; None if there is none, or none on one axis."""
    low: Array = np.full((), -np.inf)
    high: Array = np.full((), np.inf)
    for pair in pairs:
        for below, above in _bounds(pair):
            low, high = np.maximum(low, below), np.minimum(high, above)
    if not np.all(low <= high):
        return None
    tapped = [pair for pair in pairs if pair.spatial is not None]
    if any(size != 1 for pair in tapped for size in _elsewhere(low, pair.spatial or 0)):
        return None
    free = np.isinf(low) & np.isinf(high)
    whole = free | ((low <= 1) & (high >= 1))
    low, high = _shared(np.where(whole, 1.0, low), np.where(whole, 1.0, high))
    with np.errstate(invalid="ignore"):
        middle = np.asarray((low + high) / 2)
        rad = np.asarray((high - low) / 2 + NOISE * np.abs(middle) * (low != high))
    return Ball(middle, rad) if np.all(np.isfinite(middle)) else None


def _shared(low: Array, high: Array) -> tuple[Array, Array]:
    """Bounds narrowed to what those have in common that have anything in common.

    So channels of one scale are known to be of one, and it passes a sum over them.
    """
    first, last = low.reshape(-1).copy(), high.reshape(-1).copy()
    order = np.argsort(first, kind="stable")
    start, least = 0, np.inf
    for end, index in enumerate(order):
        if first[index] > least:
            start, least = end, np.inf
        least = min(least, last[index])
        group = order[start : end + 1]
        if end + 1 == len(order) or first[order[end + 1]] > least:
            first[group], last[group] = first[index], least
    return first.reshape(low.shape), last.reshape(high.shape)


def _elsewhere(array: Array, spatial: int) -> tuple[int, ...]:
    """The sizes of an array on axes other than the channels."""
    along = len(array.shape) - spatial - 1
    return tuple(size for axis, size in enumerate(array.shape) if axis != along)


def _bounds(pair: _Pair) -> Iterator[tuple[Array, Array]]:
    """What each coefficient of the original that is not zero leaves to the scale."""
    old, new = pair.old.mid, pair.new.mid
    known = np.abs(old) > 4 * pair.old.rad
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        centre = new / old
        room = (pair.new.rad + np.abs(centre) * pair.old.rad) * (1 + 4 * NOISE) / np.abs(old)
        low = np.where(known, centre - room, -np.inf)
        high = np.where(known, centre + room, np.inf)
    if pair.spatial is None:
        yield low, high
        return
    ones = (1,) * pair.spatial
    yield low.max((1, 2)).reshape(-1, *ones), high.min((1, 2)).reshape(-1, *ones)
