"""The floor of an input that is one rounding away, drawn several times.

A single floor can be luck: a model that grows rounding errors gives now a small one, now a large.
Whoever computes in this precision has an input that is one rounding off, so the largest of several
such errors is the original's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.rounding import EPSILON
from bnfold.runtimes import Outputs, Runner, Sample
from bnfold.verification.gate import Distance, distance

DRAWS = 8
"""How often the floor of a case is measured again before a candidate fails on it."""

MOST_LUCK = 32.0
"""How many times its first floor a case may get that way. Seen on attention: 12 times. A model that
jumps where the input lies would grow any error."""


def scatter(original: Runner, sample: Sample, truth: Outputs) -> list[Distance]:
    """How far the original's outputs are from the truth at most, when the input is nudged."""
    drawn = [distances(original(nudged(sample, seed)), truth) for seed in range(DRAWS)]
    return [largest(of_output) for of_output in zip(*drawn, strict=True)]


def distances(outputs: Outputs, truth: Outputs) -> list[Distance]:
    pairs = zip(outputs.values(), truth.values(), strict=True)
    return [distance(output, exact) for output, exact in pairs]


def nudged(sample: Sample, seed: int) -> Sample:
    """The sample with every number at random one step up, one step down, or as it is."""
    rng = np.random.default_rng(seed)
    return {name: _nudged(array, rng) for name, array in sample.items()}


def _nudged(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    if array.dtype.kind not in "fV" or array.dtype.name not in EPSILON:
        return array
    towards = rng.choice([-np.inf, np.nan, np.inf], array.shape)
    stepped = np.nextafter(array, towards.astype(array.dtype))
    return np.where(np.isnan(towards), array, stepped).astype(array.dtype)


def moved(sample: Sample, seed: int, share: Callable[[float], float]) -> Sample:
    """The sample with every number at random off by up to `share` of the epsilon of its type."""
    rng = np.random.default_rng(seed)

    def each(array: NDArray[Any]) -> NDArray[Any]:
        epsilon = EPSILON.get(array.dtype.name)
        if epsilon is None:
            return array
        off = 1 + share(epsilon) * rng.uniform(-1, 1, array.shape)
        return (array.astype(np.float64) * off).astype(array.dtype)

    return {name: each(array) for name, array in sample.items()}


def largest(distances: Sequence[Distance]) -> Distance:
    return reduce(Distance.or_more, distances)
