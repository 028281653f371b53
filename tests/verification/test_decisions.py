"""Choices: what ties within rounding may fall either way, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.formats.capabilities import Decisions, Shown
from bnfold.protocol import DEFAULT
from bnfold.runtimes import Outputs, Sample, TensorSpec
from bnfold.verification import Case, Verification, compare
from bnfold.verification.cases import probes
from bnfold.verification.decisions import DRAWS, closest
from tests.verification.test_compare import Fake

Array = NDArray[Any]
ROOM = 1e-6
"""How far the original is from the truth in what it chooses by."""

X = np.random.default_rng(0).standard_normal((4, 5, 7)).astype(np.float32)


def scores(x: Array) -> Array:
    """What is chosen by: in the first row of each two classes tie but for a tenth of a floor."""
    made = x.astype(np.float64)
    made[:, 0, 0] = made[:, 1, 0] + ROOM / 10
    made[:, :2, 0] += 100 * np.abs(x).max()
    return made


def original(x: Array) -> Outputs:
    return {"y": scores(x).argmax(1)}


def tied(*, shown: bool = True) -> Decisions:
    """The original, with its scores shown."""

    def tail(values: Sample, rooms: Any, seed: int) -> Outputs:
        rng = np.random.default_rng(seed)
        s = values["s"]
        return {"y": (s + rooms["s"] * rng.uniform(-1, 1, s.shape)).argmax(1)}

    cut = Shown(
        Fake(lambda x: {"s": scores(x)}, "float64"),
        Fake(lambda x: {"s": scores(x) + ROOM}),
        tail,
        (0,),
    )
    return Decisions(frozenset({0}), lambda place: cut if shown else None)


def verdict(candidate: Any, **how: Any) -> Verification:
    cases = [Case("noise", {"x": X})]
    originals = [Fake(original)]
    decisions = tied(**how)
    return compare(
        Fake(original, "float64"), originals, [Fake(candidate)], cases, DEFAULT, (), decisions
    )


def chosen(changes: dict[tuple[int, int], int]) -> Any:
    def run(x: Array) -> Outputs:
        y = original(x)["y"]
        for place, value in changes.items():
            y[place] = value
        return {"y": y}

    return run


def test_the_other_of_two_that_tie_passes_and_is_counted() -> None:
    found = verdict(chosen({(1, 0): 1}))
    assert found.passed
    assert [row.ties for row in found.rows] == [1]
    assert "1 elements fell the other way where two numbers tie" in "".join(found.asides)
    assert found.smallest_k == 1


@pytest.mark.parametrize("changes", [{(1, 0): 2}, {(1, 3): 0, (2, 3): 0, (0, 3): 0, (3, 3): 0}])
def test_another_class_fails_and_is_named(changes: dict[tuple[int, int], int]) -> None:
    found = verdict(chosen(changes))
    assert not found.passed
    assert "elements are wrong: [" in found.summary
    assert "tie" in found.summary


def test_a_model_that_shows_nothing_is_moved_at_its_inputs() -> None:
    """Its own scores tie within a rounding of the input."""

    def close(x: Array) -> Outputs:
        return {"y": (x[:, 0] > x[:, 1]).astype(np.int64)}

    x = X.copy()
    x[:, 1, 0] = np.nextafter(x[:, 0, 0], np.float32(9))

    def judged(place: tuple[int, int]) -> Verification:
        def other(x: Array) -> Outputs:
            y = close(x)["y"]
            y[place] = 1 - y[place]
            return {"y": y}

        cases = [Case("noise", {"x": x})]
        return compare(Fake(close, "float64"), [Fake(close)], [Fake(other)], cases, DEFAULT)

    assert judged((2, 0)).passed
    failed = judged((2, 3))
    assert not failed.passed
    assert "no input within 8 roundings gives that" in failed.summary


def test_an_original_that_flips_itself_gives_no_room_to_others() -> None:
    """A floor of an index would let any index within eight of it pass."""

    def flipped(x: Array) -> Outputs:
        y = original(x)["y"]
        y[1, 0] = 1
        return {"y": y}

    cases = [Case("noise", {"x": X})]
    for place, passes in (((1, 0), True), ((1, 2), False)):
        candidate = Fake(chosen({(1, 0): 1} if passes else {place: 9}))
        found = compare(
            Fake(original, "float64"), [Fake(flipped)], [candidate], cases, DEFAULT, (), tied()
        )
        assert found.passed is passes


def test_how_many_were_found_may_hang_on_a_tie() -> None:
    """NonZero of a mask: one element more where the tie is, and nothing else."""
    one, two = (np.array([[0, 1, 2], places]) for places in ([3, 0, 4], [3, 1, 4]))
    more = np.array([[0, 1, 1, 2], [3, 0, 2, 4]])
    other = np.array([[0, 1, 1, 2], [3, 0, 3, 4]])
    drawn = [one, more]
    assert closest(one, drawn) is not None
    assert closest(more, drawn) is not None
    for wrong in (other, more[:, ::-1], more[:, [0, 1, 2, 2]], one[:, 1:]):
        assert closest(wrong, drawn) is None or not np.array_equal(closest(wrong, drawn), wrong)
    assert not np.array_equal(closest(two, drawn), two)


def test_the_order_of_many_that_are_the_same_is_open() -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(40) for _ in range(DRAWS)]
    candidate = rng.permutation(40)
    nearest = closest(candidate, drawn)
    assert nearest is not None
    assert (nearest == candidate).mean() > 0.8, "but for the ends, which no draw went beyond"
    beyond = candidate + 100
    assert not np.array_equal(closest(beyond, drawn), beyond)


def test_numbers_take_the_nearest_draw() -> None:
    drawn = [np.array([0.0, 1.0]), np.array([5.0, 1.0])]
    np.testing.assert_array_equal(closest(np.array([4.9, 3.0]), drawn), [5.0, 1.0])
    assert closest(np.zeros(3), drawn) is None


def test_probes_are_not_given_up_for_integers() -> None:
    assert len(list(probes([TensorSpec("x", "float32", X.shape)], {"x": X}))) == 9
