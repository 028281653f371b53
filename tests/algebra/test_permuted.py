"""Channels in another order go into the weights of the layer beside them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.graph import Conv, Linear, Take, Transpose
from bnfold.algebra.plan import Plan
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal
from tests.algebra.graphs import Build, difference

seeds = st.integers(0, 1 << 20)


def takes(plan: Plan) -> int:
    return sum(isinstance(node.op, Take) for node in plan.after.nodes)


def planned(build: Build, *outs: str, locked: str = "") -> Plan:
    lock = {locked: Refusal(Reason.NOT_A_PLAIN_MODULE, "")} if locked else {}
    plan = make_plan(build.graph(*outs), lock)
    assert difference(build, plan) < 1e-12
    return plan


def take(build: Build, value: str, order: tuple[int, ...], axis: int = 1, name: str = "t") -> str:
    return build.node(Take(axis, (order,)), value, name=name)


@given(seeds, st.permutations(range(4)), st.booleans(), st.booleans())
def test_a_convolution_reads_another_order(
    seed: int, order: list[int], transposed: bool, padded: bool
) -> None:
    build = Build(seed)
    y = take(build, build.input(None, 4, 5, 3), tuple(order))
    pads = ((1, 0), (0, 1)) if padded else ()
    out = build.conv(y, 3, (3, 2), pads=pads, stride=(2, 1), transposed=transposed)
    assert takes(planned(build, out)) == 0


@given(seeds, st.permutations(range(4)), st.booleans())
def test_a_layer_makes_another_order(seed: int, order: list[int], transposed: bool) -> None:
    build = Build(seed)
    y = build.conv(build.input(None, 3, 5, 3), 4, (3, 2), transposed=transposed, bias=seed % 2 > 0)
    assert takes(planned(build, build.relu(take(build, y, tuple(order))))) == 0


@given(seeds, st.permutations(range(4)), st.booleans())
def test_a_linear_layer_does_on_its_last_axis(seed: int, order: list[int], before: bool) -> None:
    build = Build(seed)
    x = build.input(None, 3, 4)
    if before:
        out = build.linear(take(build, x, tuple(order), 2), 5)
    else:
        out = build.relu(take(build, build.linear(x, 4), tuple(order), 2))
    assert takes(planned(build, out)) == 0


@given(seeds, st.lists(st.integers(0, 1), min_size=2, max_size=5))
def test_channels_that_are_repeated_become_fewer(seed: int, order: list[int]) -> None:
    build = Build(seed)
    out = build.conv(take(build, build.input(None, 2, 5, 3), tuple(order)), 3, (2, 2))
    plan = planned(build, out)
    assert takes(plan) == 0
    (layer,) = plan.after.nodes
    assert isinstance(layer.op, Conv)
    assert layer.op.in_channels == 2


@given(seeds, st.permutations([(0,), (1, 2), (3,)]))
def test_slices_that_are_joined_again_are_an_order(seed: int, parts: list[tuple[int, ...]]) -> None:
    build = Build(seed)
    x = build.relu(build.input(None, 4, 5, 3))
    joined = build.concat(*(take(build, x, part, name=f"t{part}") for part in parts))
    assert takes(planned(build, build.conv(joined, 3, (2, 2)))) == 0


@given(seeds, st.permutations(range(4)))
def test_transpositions_around_it_cancel(seed: int, order: list[int]) -> None:
    build = Build(seed)
    x = build.transpose(build.input(None, 4, 5, 3), 0, 2, 3, 1)
    y = build.transpose(take(build, build.identity(x), tuple(order), 3), 0, 3, 1, 2)
    plan = planned(build, build.conv(y, 3, (2, 2)))
    assert len(plan.after.nodes) == 1


def _read_twice(build: Build, x: str) -> list[str]:
    y = take(build, x, (2, 0, 1))
    return [build.conv(y, 3, (1, 1)), build.relu(y)]


def _slice_read_twice(build: Build, x: str) -> list[str]:
    one, two = take(build, x, (2,), name="a"), take(build, x, (0, 1), name="b")
    return [build.conv(build.concat(one, two), 3, (1, 1)), build.relu(one)]


def _layer_read_twice(build: Build, x: str) -> list[str]:
    y = build.conv(x, 3, (2, 2))
    return [build.relu(take(build, y, (2, 0, 1))), build.relu(y)]


def _of_two(build: Build, x: str) -> list[str]:
    y = build.relu(x)
    one, two = take(build, x, (2,), name="a"), take(build, y, (0, 1), name="b")
    return [build.conv(build.concat(one, two), 3, (1, 1))]


STAY: dict[str, Callable[[Build, str], list[str]]] = {
    "CHANNELS": lambda b, x: [b.conv(take(b, x, (2, 0, 1), 2), 3, (2, 2))],
    "CHANNELS, of two values": _of_two,
    "CHANNELS, turned": lambda b, x: [
        b.conv(b.transpose(take(b, x, (2, 0, 1)), 0, 2, 1, 3), 3, (2, 2))
    ],
    "ONE_GROUP": lambda b, x: [b.conv(take(b, x, (2, 0, 1)), 3, (1, 1), groups=3)],
    "ONE_GROUP, behind": lambda b, x: [b.relu(take(b, b.conv(x, 3, (1, 1), groups=3), (2, 0, 1)))],
    "SOLE_USER": _read_twice,
    "SOLE_USER, a slice": _slice_read_twice,
    "SOLE_USER, behind": _layer_read_twice,
    "NARROWER": lambda b, x: [b.conv(take(b, x, (2, 0)), 3, (2, 2))],
    "NARROWER, transposed": lambda b, x: [
        b.conv(take(b, x, (2, 0, 1, 1)), 3, (2, 2), transposed=True)
    ],
    "ALL": lambda b, x: [b.relu(take(b, b.conv(x, 3, (2, 2)), (2, 0)))],
    "ALL, once": lambda b, x: [b.relu(take(b, b.conv(x, 3, (2, 2)), (2, 0, 0)))],
    "ALONE, turned": lambda b, x: [
        b.conv(
            b.transpose(
                take(b, b.node(Transpose((0, 2, 3, 1), alone=False), x), (2, 0, 1), 3), 0, 3, 1, 2
            ),
            *(3, (2, 2)),
        )
    ],
    "ALONE": lambda b, x: [b.conv(b.node(Take(1, ((2, 0, 1),), alone=False), x), 3, (2, 2))],
}


@pytest.mark.parametrize("name", STAY)
def test_each_condition_is_needed(name: str) -> None:
    build = Build()
    plan = planned(build, *STAY[name](build, build.input(None, 3, 3, 3)))
    assert takes(plan) == sum(isinstance(node.op, Take) for node in plan.before.nodes)


@pytest.mark.parametrize("locked", ["t", "layer"])
@pytest.mark.parametrize("before", [True, False])
def test_what_is_locked_stays(locked: str, before: bool) -> None:
    build = Build()
    x = build.input(None, 3, 4, 4)
    if before:
        out = build.conv(take(build, x, (2, 0, 1)), 3, (2, 2), name="layer")
    else:
        out = build.relu(take(build, build.conv(x, 3, (2, 2), name="layer"), (2, 0, 1)))
    assert takes(planned(build, out, locked=locked)) == 1


def test_what_only_changes_places_is_not_rounded() -> None:
    build = Build()
    out = build.linear(take(build, build.input(None, 4), (3, 1, 0, 2)), 5)
    plan = planned(build, out)
    before, after = plan.before.nodes[-1].op, plan.after.nodes[-1].op
    assert isinstance(before, Linear)
    assert isinstance(after, Linear)
    assert np.array_equal(after.weight.load()[:, [3, 1, 0, 2]], before.weight.load())
