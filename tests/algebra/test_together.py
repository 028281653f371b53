"""Equal affines side by side, which go as one where none could go by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine, Take
from bnfold.algebra.plan import Outcome
from bnfold.algebra.refusal import Reason, Refusal
from tests.algebra.graphs import Build, difference, planned

Other = Callable[[Build, ChannelAffine, str], str]
LOCK = Refusal(Reason.SHARED_MODULE, "it serves two calls")


def numbers(build: Build, size: int = 4) -> ChannelAffine:
    return ChannelAffine((1,), build.numbers(size), build.numbers(size))


def rows(build: Build, value: str, *parts: tuple[int, ...]) -> list[str]:
    """Parts of the height."""
    return [build.node(Take(2, (part,)), value) for part in parts]


@given(st.integers(0, 1 << 20), st.integers(2, 4), st.booleans())
def test_the_parts_of_a_convolution_take_one_affine(seed: int, count: int, out: bool) -> None:
    build = Build(seed)
    y = build.conv(build.input(None, 3, 6, 5), 4, (3, 2), bias=True)
    affine = numbers(build)
    parts = rows(build, y, *[(i % 4, 1) for i in range(count)])
    made = [build.node(Affine(affine), part, name=f"bn{i}") for i, part in enumerate(parts)]
    plan = planned(build, *made if out else [build.relu(each) for each in made])
    assert {s.outcome for s in plan.sites} == {Outcome.FOLDED}
    assert plan.batchnorms.found == count
    assert difference(build, plan) < 1e-12


@given(st.integers(0, 1 << 20), st.integers(2, 4))
def test_what_is_joined_takes_one_affine(seed: int, count: int) -> None:
    build = Build(seed)
    x = build.relu(build.input(None, 4, 6, 5), 0.3)
    affine = numbers(build)
    split = rows(build, x, *[(i,) for i in range(count)])
    parts = [build.node(Affine(affine), part) for part in split]
    out = build.conv(build.concat(*parts, axis=2), 3, (1, 2))
    plan = planned(build, out)
    assert plan.batchnorms.kept == 0
    assert difference(build, plan) < 1e-12


def _parts(build: Build, other: Other) -> list[str]:
    y = build.conv(build.input(None, 3, 6, 5), 4, (3, 2), bias=True)
    affine = numbers(build)
    one, two = rows(build, y, (0, 1), (2, 3))
    return [build.node(Affine(affine), one, name="a"), other(build, affine, two)]


def _close(affine: ChannelAffine) -> ChannelAffine:
    return ChannelAffine(affine.axes, np.nextafter(affine.scale, 9), affine.shift)


BROKEN: dict[str, Callable[[Build], list[str]]] = {
    "EQUAL": lambda b: _parts(b, lambda b, a, y: b.node(Affine(_close(a)), y, name="b")),
    "ALL, another reader": lambda b: _parts(b, lambda b, a, y: b.relu(y)),
    "ALL, an output": lambda b: _parts(b, lambda b, a, y: y),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_condition_of_parts_is_needed(name: str) -> None:
    build = Build()
    plan = planned(build, *BROKEN[name](build))
    assert plan.batchnorms.folded == 0
    assert difference(build, plan) == 0


def test_affines_that_vary_across_the_parts_stay() -> None:
    """ACROSS: both halves of the height have the same numbers, which differ along the height."""
    build = Build()
    y = build.conv(build.input(None, 3, 6, 5), 4, (3, 2), bias=True)
    affine = ChannelAffine((2,), build.numbers(2), build.numbers(2))
    made = [build.node(Affine(affine), part) for part in rows(build, y, (0, 1), (2, 3))]
    assert planned(build, *made).batchnorms.folded == 0
    x = build.relu(build.input(None, 4, 4, 5), 0.3)
    joined = [build.node(Affine(affine), part) for part in rows(build, x, (0, 1), (2, 3))]
    out = build.conv(build.concat(*joined, axis=2), 3, (1, 2))
    assert planned(build, out).batchnorms.folded == 0


def _joined(build: Build, second: Other, *, twice: bool) -> list[str]:
    x = build.relu(build.input(None, 4, 6, 5), 0.3)
    affine = numbers(build)
    one, two = rows(build, x, (0, 1), (2, 3))
    first = build.node(Affine(affine), one, name="a")
    out = build.conv(build.concat(first, second(build, affine, two), axis=2), 3, (1, 2))
    return [out, first] if twice else [out]


@pytest.mark.parametrize(
    ("second", "twice"),
    [
        (lambda b, a, y: b.node(Affine(_close(a)), y, name="b"), False),
        (lambda b, a, y: y, False),
        (lambda b, a, y: b.node(Affine(a), y, name="b"), True),
    ],
    ids=["EQUAL", "ALL", "ALL, an output"],
)
def test_each_condition_of_joining_is_needed(second: Other, twice: bool) -> None:
    build = Build()
    plan = planned(build, *_joined(build, second, twice=twice))
    assert plan.batchnorms.folded == 0
    assert difference(build, plan) == 0


@pytest.mark.parametrize("locked", ["a", "b"])
def test_one_that_is_locked_keeps_them_all(locked: str) -> None:
    build = Build()
    made = _parts(build, lambda b, a, y: b.node(Affine(a), y, name="b"))
    assert planned(build, *made, locked={locked: LOCK}).batchnorms.folded == 0


def test_what_follows_differs_only_where_it_must() -> None:
    """The parts of parts: the innermost value that all equal affines read takes them."""
    build = Build()
    y = build.conv(build.input(None, 3, 6, 5), 4, (3, 2), bias=True)
    affine = numbers(build)
    upper, lower = rows(build, y, (0, 1), (2, 3))
    leaves = [*rows(build, upper, (0,), (1,)), lower]
    made = [build.node(Affine(affine), each) for each in leaves]
    plan = planned(build, *made)
    assert plan.batchnorms.kept == 0
    assert difference(build, plan) < 1e-12
