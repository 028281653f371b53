"""Turns on a scripted clock: who runs when, which times count, and what is made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from bnfold.verbs.rounds import MOST_RUNS, TURN_SECONDS, Spread, speedup, take_turns


class Contender:
    """Each run takes the next of `seconds`, the last of them for ever; writes its turns down."""

    def __init__(self, name: str, log: list[tuple[str, int]], *seconds: float) -> None:
        self.name, self.log, self.seconds = name, log, list(seconds)

    def __call__(self, times: int) -> float:
        self.log.append((self.name, times))
        once = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        return once * times


def test_every_round_has_a_turn_of_each_in_changing_order() -> None:
    log: list[tuple[str, int]] = []
    take_turns([Contender(name, log, 1.0) for name in "abc"], rounds=40, warmup=2)
    rounds = [tuple(name for name, _ in log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 42
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    first = Counter(each[0] for each in rounds)
    assert min(first.values()) >= 5


def test_the_order_is_that_of_the_seed() -> None:
    def order(seed: int) -> list[str]:
        log: list[tuple[str, int]] = []
        take_turns([Contender(n, log, 1.0) for n in "ab"], rounds=20, warmup=0, seed=seed)
        return [name for name, _ in log]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_rounds_to_warm_up_do_not_count() -> None:
    seconds = take_turns([Contender("a", [], 9.0, 9.0, 1.0, 2.0, 3.0)], rounds=3, warmup=2)
    assert seconds == [(1.0, 2.0, 3.0)]


def test_short_runs_come_in_a_row_and_count_once() -> None:
    log: list[tuple[str, int]] = []
    short = TURN_SECONDS / 10
    (seconds,) = take_turns([Contender("a", log, short)], rounds=2, warmup=1)
    assert [times for _, times in log] == [1, 10, 10]
    assert seconds == pytest.approx((short, short))


@pytest.mark.parametrize(("once", "times"), [(0.0, MOST_RUNS), (1e-9, MOST_RUNS), (100.0, 1)])
def test_a_turn_has_bounds(once: float, times: int) -> None:
    log: list[tuple[str, int]] = []
    take_turns([Contender("a", log, once)], rounds=1, warmup=1)
    assert log[-1] == ("a", times)


def test_progress_tells_of_each_round() -> None:
    told: list[str] = []
    tell: Callable[[str], None] = told.append
    take_turns([Contender("a", [], 1.0)], rounds=2, warmup=1, progress=tell)
    assert told == ["warming up", "round 1 of 2", "round 2 of 2"]


def test_a_spread_leaves_out_a_tenth_on_either_side() -> None:
    values = np.random.default_rng(0).permutation(np.arange(101.0))
    assert Spread.of(list(values)) == Spread(50.0, 10.0, 90.0)


def test_a_speedup_is_taken_round_by_round() -> None:
    """A machine that is ten times slower in some rounds slows both: the ratio stays 2."""
    slow = [1.0, 10.0] * 10
    spread = speedup([2 * s for s in slow], slow)
    assert spread == Spread(2.0, 2.0, 2.0)
