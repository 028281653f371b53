"""Further probes, at sides of a model that the others did not reach.

Inputs of one sign and of many sizes are tried first, twice what was missing at a limit among them,
then, where the model is small, a search: the
input that came nearest to a side is changed at random, and what comes nearer is kept. All of it is
in float64, by what the truth tells of its sides; how much is tried hangs on how much a run computes
and on nothing that differs from one machine to another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.runtimes import Runner, Sample
from bnfold.runtimes.sides import Side, Sides
from bnfold.verification.cases import Case

MOST, FEWEST = 96, 4
"""How many inputs are tried at most, and at least, whatever a run takes."""

WORK = 3e7
"""How many numbers may be computed for them."""

SIZES = (1.0, 30.0, 1e3, 1e4)
STEPS = (0.03, 0.3, 3.0)


def sides_of(truth: Runner) -> Sides | None:
    """What a runner tells of the sides that its runs reached."""
    found: Sides | None = getattr(truth, "sides", None)
    return found


def aimed(truth: Runner, base: Sample, seed: int = 0) -> Iterator[Case]:
    """A case for every input found that reaches sides which nothing reached before.

    `base` gives the shapes and the types; no case where the truth does not tell of its sides.
    """
    sides = sides_of(truth)
    if sides is None or not sides.unseen:
        return
    rng = np.random.default_rng(seed)
    left = int(min(MOST, max(FEWEST, WORK // max(sides.work, 1))))
    missing = sorted(-sides.largest[side] for side in sides.unseen)
    for sample in _of_one_sign(base, [*SIZES, *(2 * m for m in missing[:2] if m > 1)], rng):
        if left <= 0 or not sides.unseen:
            return
        left -= 1
        if found := _new(truth, sides, sample):
            yield _case(found, sample)
    for side in sides.unseen:
        if left > 0 and side in sides.unseen:
            share = max(left // len(sides.unseen), min(left, FEWEST))
            left -= share
            yield from _searched(truth, sides, side, base, share, rng)


def _of_one_sign(
    base: Sample, sizes: Sequence[float], rng: np.random.Generator
) -> Iterator[Sample]:
    for size in sizes:
        for sign in (1.0, -1.0):
            yield _filled(
                base, lambda shape, by=sign * size: by * (1 + 0.1 * rng.standard_normal(shape))
            )


def _filled(base: Sample, fill: Any) -> Sample:
    return {
        name: fill(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in base.items()
    }


def _case(found: list[Side], sample: Sample) -> Case:
    name, side = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return Case(f"aimed at {name} {side}{more}", sample)


def _new(truth: Runner, sides: Sides, sample: Sample) -> list[Side]:
    """The sides that `sample` is the first to reach."""
    before = sides.unseen
    try:
        truth(sample)
    except Exception:  # no input for this model
        return []
    return [side for side in before if sides.largest[side] > 0]


def _searched(
    truth: Runner, sides: Sides, side: Side, base: Sample, tries: int, rng: np.random.Generator
) -> Iterator[Case]:
    """Climb to one side from noise."""
    best, margin = _filled(base, rng.standard_normal), -np.inf
    for number in range(tries):
        tried = best if number == 0 else _changed(best, rng)
        if found := _new(truth, sides, tried):
            yield _case(found, tried)
        if (reached := sides.latest.get(side, -np.inf)) > margin:
            best, margin = tried, reached
        if margin > 0:
            return


def _changed(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample made larger or smaller, moved, turned over or made rough, each by chance."""
    step = STEPS[int(rng.integers(len(STEPS)))]
    kind = int(rng.integers(4))

    def change(array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype.kind != "f":
            return array
        spread = float(np.abs(array).mean()) + 1e-3
        wide = array.astype(np.float64)
        lined = (*array.shape[:2], *[1] * (array.ndim - 2))
        moved = (
            wide * np.exp(rng.normal(0, step)),
            wide + step * spread * rng.standard_normal(array.shape),
            wide + step * spread * rng.standard_normal(lined),
            wide * rng.choice([-1.0, 1.0], lined),
        )[kind]
        return np.clip(moved, -1e4, 1e4).astype(array.dtype)

    return {name: change(array) for name, array in sample.items()}
