"""What a value is of values of the original, as far as that is linear.

    form  =  sum of scale * value  +  sum of taps(value)  +  shift

Scales and shifts are arrays that broadcast from the right, so that no rank has to be known. A form
holds for every input, and so does what is made of it here; what cannot be made is Unprovable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bnfold.algebra.graph import Pool
from bnfold.proof.ball import ONE, ZERO, Ball
from bnfold.proof.taps import (
    Geometry,
    Taps,
    UnprovableError,
    added,
    composed,
    geometry_of,
    pointwise,
    reads_inside,
)

MOST_TERMS = 64
"""A form of more values is not made of others."""

Key = tuple[str, Geometry]


@dataclass(frozen=True, eq=False, slots=True)
class Form:
    """`whole` says that no value in it is broadcast: each has the shape of the sum."""

    scaled: Mapping[str, Ball]
    taps: Mapping[Key, Taps]
    shift: Ball = ZERO
    whole: bool = True

    @classmethod
    def of(cls, value: str) -> Form:
        return cls({value: ONE}, {})

    @property
    def values(self) -> set[str]:
        return {*self.scaled, *(value for value, _ in self.taps)}

    @property
    def is_simple(self) -> bool:
        """Whether it is one value with a scale and a shift."""
        return len(self.scaled) == 1 and not self.taps

    @property
    def size(self) -> int:
        return len(self.scaled) + len(self.taps)

    def times(self, scale: Ball) -> Form:
        if scale.is_one:
            return self
        taps = {
            key: each.by_output(on_channels(scale, key[1].spatial, each.channels))
            for key, each in self.taps.items()
        }
        scaled = {value: own.times(scale) for value, own in self.scaled.items()}
        return replace(self, scaled=scaled, taps=taps, shift=self.shift.times(scale))

    def plus(self, shift: Ball) -> Form:
        return self if shift.is_zero else replace(self, shift=self.shift.plus(shift))

    def with_taps(self, values: Iterable[str]) -> Form:
        """The same with the scales of `values` as kernels of one tap, where that can be."""
        scaled, taps = dict(self.scaled), dict(self.taps)
        for value in values:
            fitting = [key for key in taps if key[0] == value and key[1].is_pointwise]
            if value in scaled and fitting:
                _, geometry = key = fitting[0]
                channels = taps[key].channels
                scale = on_channels(scaled.pop(value), geometry.spatial, channels)
                taps[key] = added(taps[key], pointwise(scale, geometry.spatial, channels))
        return replace(self, scaled=scaled, taps=taps)


def on_channels(ball: Ball, spatial: int, channels: int) -> Ball:
    """What broadcasts from the right, as a number for each channel, before `spatial` axes."""
    shape = ball.mid.shape
    along = len(shape) - spatial - 1
    if any(size != 1 for axis, size in enumerate(shape) if axis != along):
        raise UnprovableError("it varies along another axis than the channels")
    if ball.mid.size not in (1, channels):
        raise UnprovableError("it has another number of channels")
    return ball.mapped(lambda a: np.broadcast_to(a.reshape(-1), (channels,)))


def beside(vector: Ball, spatial: int) -> Ball:
    """A number for each channel, so that it broadcasts from the right."""
    return vector.mapped(lambda a: a.reshape(-1, *[1] * spatial))


def total(forms: Sequence[Form], whole: bool) -> Form:
    """The sum; `whole` says whether all are known to have one shape.

    Two numbers that are both written are not added up: what one is off could hide in the other.
    """
    whole = whole or _is_of_one_shape(forms)
    scaled: dict[str, Ball] = {}
    taps: dict[Key, Taps] = {}
    shift = ZERO
    for form in forms:
        whole = whole and form.whole
        shift = shift.plus(form.shift) if not form.shift.is_zero else shift
        for value, scale in form.scaled.items():
            scaled[value] = _sum(scaled[value], scale) if value in scaled else scale
        for key, each in form.taps.items():
            taps[key] = added(taps[key], each) if key in taps else each
    found = Form(scaled, taps, shift, whole)
    if found.size > MOST_TERMS:
        raise UnprovableError("it is a sum of too many values")
    return found.with_taps({value for value, _ in taps} & set(scaled)) if whole else found


def _sum(one: Ball, two: Ball) -> Ball:
    if one.is_written and two.is_written:
        raise UnprovableError("it adds up two layers of one value")
    return one.plus(two)


def _is_of_one_shape(forms: Sequence[Form]) -> bool:
    """Whether all are layers of one value that make one size of it, or the value itself."""
    values = set().union(*(form.values for form in forms))
    made = {geometry for form in forms for _, geometry in form.taps}
    as_it_is = any(form.scaled for form in forms)
    alike = len(made) == 1 and (not as_it_is or next(iter(made)).is_pointwise)
    return len(values) == 1 and (alike or not made) and all(form.whole for form in forms)


def layer(form: Form, geometry: Geometry, taps: Taps, *, deep: bool = False) -> Form:
    """A convolution of a form, or another linear layer; `deep` lets layers in a row compose."""
    if not form.whole:
        raise UnprovableError("it reads a sum in which something may be broadcast")
    found: dict[Key, Taps] = {}
    for value, scale in form.scaled.items():
        rows = on_channels(scale, geometry.spatial, taps.reads)
        found[value, geometry] = taps if rows.is_one else taps.by_input(rows)
    for (value, own), each in form.taps.items():
        if not deep:
            raise UnprovableError("it reads what another layer makes")
        new, both = composed((geometry, taps), (own, each))
        key = value, new
        found[key] = added(found[key], both) if key in found else both
    if form.shift.is_zero:
        return Form({}, found)
    if not reads_inside(geometry, taps.offsets):
        raise UnprovableError("it pads a value that is shifted")
    shift = taps.of_constant(on_channels(form.shift, geometry.spatial, taps.reads))
    return Form({}, found, beside(shift, geometry.spatial))


def substituted(form: Form, deep: Mapping[str, Form]) -> Form:
    """`form` with values of it written as what they are themselves made of.

    Its own layers are not composed: what one of their weights is off could hide in the others.
    """
    parts: list[Form] = [replace(form, scaled={}, taps={})]
    for value, scale in form.scaled.items():
        own = Form({value: scale}, {})
        parts.append(deep[value].times(scale) if value in deep else own)
    for (value, geometry), taps in form.taps.items():
        own = Form({}, {(value, geometry): taps})
        parts.append(layer(deep[value], geometry, taps) if value in deep else own)
    return total(parts, form.whole and all(inner.whole for inner in deep.values()))


def average(op: Pool, channels: int) -> tuple[Geometry, Taps]:
    """An average over windows as a convolution of each channel by itself."""
    geometry, offsets = geometry_of(op)
    count = math.prod(op.kernel)
    even = Ball.computed(np.full((channels, 1, count), 1 / count))
    return geometry, Taps(offsets, channels, even)
