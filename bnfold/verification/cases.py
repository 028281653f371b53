"""The inputs that a verification runs: seeded probes, each made to show one kind of mistake.

noise, noise again   normal numbers: anything
zeros, ones          a shift that went missing, or came twice
border               nonzero at the edges only: padding
channels             another number in each: axes and channel order
large, small         noise times 100 and 0.01: values that cancel, epsilons
batch 1, odd sizes   other values for the sizes that are free

Integers are 0 or 1, or any row where they are known to pick the rows of a table.
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

    `specs` say which sizes are free: those are varied as well.
    """
    rng = np.random.default_rng(seed)

    limits = {spec.name: spec.limit or 2 for spec in specs}

    def made(fill: Callable[[tuple[int, ...]], Array]) -> Sample:
        return {name: _like(array, fill, rng, limits.get(name, 2)) for name, array in base.items()}

    yield Case("noise", made(rng.standard_normal))
    yield Case("noise again", made(rng.standard_normal))
    yield Case("zeros", made(np.zeros))
    yield Case("ones", made(np.ones))
    yield Case("border", made(_border))
    yield Case("channels", made(lambda shape: _by_channel(shape, rng)))
    yield Case("large", made(lambda shape: 100 * rng.standard_normal(shape)))
    yield Case("small", made(lambda shape: 0.01 * rng.standard_normal(shape)))
    for name, shapes in _other_sizes(specs, base):
        yield Case(
            name,
            {
                key: _like(
                    np.zeros(shapes[key], array.dtype),
                    rng.standard_normal,
                    rng,
                    limits.get(key, 2),
                )
                for key, array in base.items()
            },
        )


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
    return np.asarray(fill(array.shape)).astype(array.dtype)


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
    """Shapes with other values for the free sizes: a batch of 1, and odd spatial sizes."""
    free = {
        spec.name: [axis for axis, size in enumerate(spec.shape or ()) if not isinstance(size, int)]
        for spec in specs
    }
    if any(0 in axes for axes in free.values()):
        yield (
            "batch 1",
            {
                name: tuple(
                    1 if axis == 0 and 0 in free.get(name, []) else size
                    for axis, size in enumerate(array.shape)
                )
                for name, array in base.items()
            },
        )
    if any(axis >= 2 for axes in free.values() for axis in axes):
        yield (
            "odd sizes",
            {
                name: tuple(
                    size + 1 + size % 2 if axis >= 2 and axis in free.get(name, []) else size
                    for axis, size in enumerate(array.shape)
                )
                for name, array in base.items()
            },
        )
