"""The inputs that a verification runs: seeded probes, each made to show one kind of mistake.

noise, noise again   normal numbers: anything
zeros, ones          a shift that went missing, or came twice
border               nonzero at the edges only: padding
channels             another number in each: axes and channel order
large, small         noise times 100 and 0.01: values that cancel, epsilons
batch 1, odd sizes,  other values for the sizes that are free: of the first axis, of those from the
other length         third on, of the second

Integers are 0 or 1, or any row where they are known to pick the rows of a table; bytes, which are
pixels if they are no rows, take all their values in `large`. Complex noise is so in both parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.rounding import numpy_dtype
from bnfold.run import Sample, TensorSpec

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Case:
    """An input to compare on. `given`: the user asked for it, so it may not be left out."""

    name: str
    sample: Sample
    given: bool = False


def probes(specs: Sequence[TensorSpec], base: Sample, seed: int = 0) -> Iterator[Case]:
    """The cases for inputs shaped and typed like `base`; the same seed gives the same numbers.

    `specs` say which sizes are free: those are varied as well. What has a value keeps it.
    """
    rng = np.random.default_rng(seed)

    limits = {spec.name: spec.limit for spec in specs}
    constant = {spec.name for spec in specs if spec.value is not None}

    def made(
        fill: Callable[[tuple[int, ...]], Array], like: Sample = base, pixels: bool = False
    ) -> Sample:
        return {
            name: base[name]
            if name in constant
            else _like(array, fill, rng, limits.get(name) or (_top(array) if pixels else 2))
            for name, array in like.items()
        }

    yield Case("noise", made(rng.standard_normal))
    yield Case("noise again", made(rng.standard_normal))
    yield Case("zeros", made(np.zeros))
    yield Case("ones", made(np.ones))
    yield Case("border", made(_border))
    yield Case("channels", made(lambda shape: _by_channel(shape, rng)))
    yield Case("large", made(lambda shape: 100 * rng.standard_normal(shape), pixels=True))
    yield Case("small", made(lambda shape: 0.01 * rng.standard_normal(shape)))
    for name, shapes in _other_sizes(specs, base):
        other = {key: np.zeros(shapes[key], array.dtype) for key, array in base.items()}
        yield Case(name, made(rng.standard_normal, other))


def zeros(specs: Sequence[TensorSpec], shapes: Sequence[tuple[int, ...]]) -> Sample:
    """A sample of the given shapes, to be filled by `probes`."""
    return {
        spec.name: np.zeros(shape, numpy_dtype(spec.dtype))
        for spec, shape in zip(specs, shapes, strict=True)
    }


def _like(
    array: Array,
    fill: Callable[[tuple[int, ...]], Array],
    rng: np.random.Generator,
    limit: int,
) -> Array:
    """Numbers from `fill` in the array's shape and type; integers are below `limit`."""
    if array.dtype.kind in "iub":
        top = 2 if array.dtype.kind == "b" else min(limit, int(np.iinfo(array.dtype).max) + 1)
        return rng.integers(0, top, array.shape).astype(array.dtype)
    if array.dtype.kind == "c":
        return np.asarray(fill(array.shape) + 1j * fill(array.shape)).astype(array.dtype)
    return np.asarray(fill(array.shape)).astype(array.dtype)


def _top(array: Array) -> int:
    """One more than the largest number that is tried for an integer: all of a byte, or 1."""
    byte = array.dtype.kind in "iu" and array.dtype.itemsize == 1
    return int(np.iinfo(array.dtype).max) + 1 if byte else 2


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


def _other_sizes(
    specs: Sequence[TensorSpec], base: Sample
) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Shapes with other values for the free sizes, wherever a size of that name stands."""
    free = {
        (spec.name, axis): size or f"{spec.name} {axis}"
        for spec in specs
        for axis, size in enumerate(spec.shape or ())
        if not isinstance(size, int) and spec.name in base
    }
    batches = {size for (_, axis), size in free.items() if axis == 0}
    sides = {size for (_, axis), size in free.items() if axis > 1} - batches
    lengths = set(free.values()) - batches - sides
    for name, sizes, other in (
        ("batch 1", batches, lambda size: 1),
        ("odd sizes", sides, _odd),
        ("other length", lengths, _odd),
    ):
        if sizes:
            yield (
                name,
                {
                    key: tuple(
                        other(size) if free.get((key, axis)) in sizes else size
                        for axis, size in enumerate(array.shape)
                    )
                    for key, array in base.items()
                },
            )


def _odd(size: int) -> int:
    return size + 1 + size % 2
