"""Contenders that take turns on a clock, and what their times say.

Every round has a turn of each, in an order drawn anew, so that whatever else the machine does meets
them all; ratios are taken round by round. A turn is one run, or as many in a row as take
`TURN_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

TURN_SECONDS = 0.005
"""A turn is at least about so long: a clock read costs nothing beside it."""

MOST_RUNS = 1000
"""Runs in a turn, however short they are."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of numbers, and the tenth and ninetieth of a hundred in order."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
        return cls(float(middle), float(low), float(high))


def take_turns(
    runs: Sequence[Callable[[int], float]],
    rounds: int,
    warmup: int,
    seed: int = 0,
    progress: Callable[[str], None] = lambda done: None,
) -> list[tuple[float, ...]]:
    """Seconds of one run of each contender, in every round that counts.

    A contender takes a number of runs and says how many seconds they took together. Every round
    has a turn of each, in an order drawn anew.
    """
    rng = np.random.default_rng(seed)
    turns = [1] * len(runs)
    seconds: list[list[float]] = [[] for _ in runs]
    for done in range(-warmup, rounds):
        progress("warming up" if done < 0 else f"round {done + 1} of {rounds}")
        for i in rng.permutation(len(runs)):
            once = runs[i](turns[i]) / turns[i]
            if done < 0:
                turns[i] = _turn(once)
            else:
                seconds[i].append(once)
    return [tuple(each) for each in seconds]


def speedup(baseline: Sequence[float], other: Sequence[float]) -> Spread:
    """How many times as fast `other` is, round by round."""
    return Spread.of([a / b for a, b in zip(baseline, other, strict=True)])


def _turn(once: float) -> int:
    """How many runs make a turn, one of which takes `once` seconds."""
    return max(1, min(MOST_RUNS, round(TURN_SECONDS / max(once, 1e-9))))
