"""The inputs that a verification runs: seeded probes, each made to show several kinds of mistake.

noise, noise again   normal numbers: anything; noise again in a batch of 5
zeros, ones          a shift that went missing, or came twice
border               nonzero at the edges only: padding
channels             another number in each: axes and channel order
large, huge, small   noise times 100, up to 10,000 and times 0.01: values that cancel, limits,
                     epsilons; huge in a batch of 1, small in one of 2
batch 1, odd sizes,  other values for the sizes that are free: of the first axis, of those from the
other length,        third on, of the second. No two free sizes are the same there; below has a
below, above         quarter of some, above twice others, and the batch of 1 half of these, so that
                     an image is once wide, once high

Integers are 0 or 1, or any row where they are known to pick the rows of a table, counted from the
end as well in `small`; `large` takes all values of bytes, which are pixels if they are no rows, and
for other integers what the model compares them with, the numbers beside these, and a wide range.
Complex noise is so in both parts.

A case can have another `instead`, for originals that cannot run it: plainer sizes, or integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.rounding import numpy_dtype
from bnfold.runtimes import NOTHING_KNOWN, Sample, TensorSpec

Array = NDArray[Any]


HUGE = 4.0
"""The power of ten that the numbers of `huge` reach."""

WIDE = 300
"""How far integers reach that nothing is known of."""


@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """An input to compare on. `given`: the user asked for it, so it may not be left out.

    `instead` is tried where the original does not run on this one.
    """

    name: str
    sample: Sample
    given: bool = False
    instead: Case | None = None

    def renamed(self, ending: str) -> Case:
        """The same with more to its name."""
        instead = None if self.instead is None else self.instead.renamed(ending)
        return replace(self, name=f"{self.name}{ending}", instead=instead)


@dataclass(frozen=True, slots=True)
class Range:
    """Which integers an input takes: from `low` up to `high`, exclusive, and `marks` among them."""

    low: int
    high: int
    marks: tuple[int, ...] = ()

    def draw(self, array: Array, rng: np.random.Generator) -> Array:
        """As many as the array holds, in its type."""
        kind = np.iinfo(array.dtype)
        low, high = max(self.low, int(kind.min)), min(self.high, int(kind.max) + 1)
        drawn = rng.integers(min(low, high - 1), high, array.shape)
        marks = [mark for mark in self.marks if kind.min <= mark <= kind.max]
        if marks:
            drawn = np.where(rng.random(array.shape) < 0.5, rng.choice(marks, array.shape), drawn)
        return drawn.astype(array.dtype)


PLAIN = Range(0, 2)

Fill = Callable[[tuple[int, ...]], Array]


@dataclass(frozen=True, eq=False, slots=True)
class _Making:
    """Makes samples for inputs of `specs`."""

    specs: Mapping[str, TensorSpec]
    rng: np.random.Generator

    def case(
        self,
        name: str,
        fill: Fill,
        like: Sample,
        integers: str = "usual",
        plainer: Sample | None = None,
    ) -> Case:
        """`plainer`: the sizes to take where the original does not run with those of `like`."""
        sample = self._sample(fill, like, integers)
        instead = None
        if plainer is not None and _shapes(plainer) != _shapes(like):
            instead = self.case(name, fill, plainer, integers)
        elif integers != "usual" and any(array.dtype.kind in "iu" for array in like.values()):
            instead = self.case(name, fill, like)
        return Case(name, sample, instead=instead)

    def _sample(self, fill: Fill, like: Sample, integers: str) -> Sample:
        return {
            name: self._array(array, fill, self.specs.get(name), integers)
            for name, array in like.items()
        }

    def _array(self, array: Array, fill: Fill, spec: TensorSpec | None, integers: str) -> Array:
        kind = array.dtype.kind
        if spec is not None and spec.value is not None:
            return np.full(array.shape, spec.value, array.dtype)
        if kind == "b":
            return self.rng.integers(0, 2, array.shape).astype(array.dtype)
        if kind in "iu":
            return _integers(array, spec, integers).draw(array, self.rng)
        if kind == "c":
            return np.asarray(fill(array.shape) + 1j * fill(array.shape)).astype(array.dtype)
        return np.asarray(fill(array.shape)).astype(array.dtype)


def _integers(array: Array, spec: TensorSpec | None, which: str) -> Range:
    """What integers an input takes: `which` is "usual", "wide" or "from the end"."""
    known = NOTHING_KNOWN if spec is None else spec.integers
    if limit := known.limit:
        signed = array.dtype.kind == "i"
        return Range(-limit, 0) if which == "from the end" and signed else Range(0, limit)
    if which != "wide":
        return PLAIN
    if array.dtype.itemsize == 1:
        return Range(int(np.iinfo(array.dtype).min), int(np.iinfo(array.dtype).max) + 1)
    return Range(-WIDE, WIDE + 1, tuple(m + d for m in known.marks for d in (-1, 0, 1)))


def probes(specs: Sequence[TensorSpec], base: Sample, seed: int = 0) -> Iterator[Case]:
    """The cases for inputs shaped and typed like `base`; the same seed gives the same numbers.

    `specs` say which sizes are free: those are varied as well. What has a value keeps it.
    """
    rng = np.random.default_rng(seed)
    case = _Making({spec.name: spec for spec in specs}, rng).case
    free = Free.of(specs, base)

    def huge(shape: tuple[int, ...]) -> Array:
        return rng.standard_normal(shape) * 10.0 ** rng.uniform(0, HUGE, shape)

    normal = rng.standard_normal
    yield case("noise", normal, base)
    yield case("noise again", normal, free.batch(5), plainer=base)
    yield case("zeros", np.zeros, base)
    yield case("ones", np.ones, base)
    yield case("border", _border, base)
    yield case("channels", lambda shape: _by_channel(shape, rng), base)
    yield case("large", lambda shape: 100 * normal(shape), base, "wide")
    yield case("huge", huge, free.batch(1), plainer=base)
    yield case("small", lambda shape: 0.01 * normal(shape), free.batch(2), "from the end", base)
    for name, like, plainer in free.others():
        yield case(name, normal, like, plainer=plainer)


def zeros(specs: Sequence[TensorSpec], shapes: Sequence[tuple[int, ...]]) -> Sample:
    """A sample of the given shapes, to be filled by `probes`."""
    return {
        spec.name: np.zeros(shape, numpy_dtype(spec.dtype))
        for spec, shape in zip(specs, shapes, strict=True)
    }


def _border(shape: tuple[int, ...]) -> Array:
    """Alternating +1 and -1 on the faces of the spatial axes, zero inside."""
    values = np.where(np.arange(int(np.prod(shape))).reshape(shape) % 2, -1.0, 1.0)
    inside = tuple(slice(None) if axis < 2 else slice(1, -1) for axis in range(len(shape)))
    if len(shape) > 2:
        values[inside] = 0.0
    return values


def _by_channel(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Every channel of every item of the batch is constant, each with a number of its own."""
    if len(shape) < 2:
        return rng.standard_normal(shape)
    numbers = rng.standard_normal(shape[:2])
    return np.broadcast_to(numbers.reshape(*shape[:2], *[1] * (len(shape) - 2)), shape)


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [array.shape for array in sample.values()]


@dataclass(frozen=True, eq=False, slots=True)
class Free:
    """The free sizes of a base sample: (input, axis) -> name, where the same name is the same size.

    `batches` are those that stand first, `sides` those from the third axis on, `lengths` others.
    """

    base: Sample
    names: Mapping[tuple[str, int], str]

    @classmethod
    def of(cls, specs: Sequence[TensorSpec], base: Sample) -> Free:
        names = {
            (spec.name, axis): str(size or f"{spec.name} {axis}")
            for spec in specs
            for axis, size in enumerate(spec.shape or ())
            if not isinstance(size, int) and spec.name in base
        }
        return cls(base, names)

    @property
    def batches(self) -> list[str]:
        return [name for (_, axis), name in self.names.items() if axis == 0]

    @property
    def sides(self) -> list[str]:
        return [n for (_, axis), n in self.names.items() if axis > 1 and n not in self.batches]

    @property
    def lengths(self) -> list[str]:
        known = {*self.batches, *self.sides}
        return [name for name in self.names.values() if name not in known]

    def batch(self, size: int) -> Sample:
        """The base in a batch of that size."""
        return self.sized(dict.fromkeys(self.batches, size))

    def sized(self, sizes: Mapping[str, int]) -> Sample:
        """Zeros with the named sizes as they are given, and the others as in the base."""
        return {
            key: np.zeros(
                [
                    sizes.get(self.names.get((key, axis), ""), n)
                    for axis, n in enumerate(array.shape)
                ],
                array.dtype,
            )
            for key, array in self.base.items()
        }

    def others(self) -> Iterator[tuple[str, Sample, Sample | None]]:
        """Cases of other sizes, with what to take where all at once is too much."""
        every = list(dict.fromkeys((*self.sides, *self.lengths)))
        if self.batches:
            narrow = {name: max(self._size(name) // 2, 1) for name in every[1::2]}
            sizes = {**dict.fromkeys(self.batches, 1), **narrow}
            yield "batch 1", self.sized(sizes), self.batch(1)
        for name, kind in (("odd sizes", self.sides), ("other length", self.lengths)):
            if kind:
                alike = self.sized({n: _odd(self._size(n)) for n in kind})
                yield name, self._distinct(kind), alike
        if every:
            low, half = (
                {name: max(self._size(name) // part, 1) for name in every[::2]} for part in (4, 2)
            )
            high = {name: self._size(name) * 2 for name in every[1::2] or every}
            yield "below", self.sized({**dict.fromkeys(self.batches, 2), **low}), self.sized(half)
            yield "above", self.sized({**dict.fromkeys(self.batches, 1), **high}), self.sized(high)

    def _distinct(self, kind: Sequence[str]) -> Sample:
        """Every size odd and another one."""
        taken: dict[str, int] = {}
        for name in reversed(dict.fromkeys(kind)):  # the first is the largest
            size = _odd(self._size(name))
            while size in taken.values():
                size += 2
            taken[name] = size
        return self.sized(taken)

    def _size(self, name: str) -> int:
        key, axis = next(place for place, known in self.names.items() if known == name)
        return int(self.base[key].shape[axis])


def _odd(size: int) -> int:
    return size + 1 + size % 2
