"""Affines and the shuffles: pixels into channels and back, and channels among themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine, Conv, Node, PixelShuffle, Shape
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules import shuffle
from tests.algebra.graphs import (
    Build,
    assert_folded,
    assert_kept,
    close,
    difference,
    param,
    with_names,
    without_shapes,
)

SEED = st.integers(0, 1 << 20)
WEIGHT = param("w", np.random.default_rng(0).normal(size=(2, 12, 1, 1)))


@given(SEED, st.integers(1, 3), st.integers(1, 3), *[st.booleans()] * 2)
def test_channels_above_a_pixel_shuffle_take_what_becomes_of_them(
    seed: int, channels: int, factor: int, strided: bool, shift: bool
) -> None:
    build = Build(seed)
    y = build.conv(build.input(None, 2, 3, 2), channels * factor**2, (1, 1))
    out = build.affine(build.pixels(y, factor, strided=strided), shift=shift)
    assert_folded(build, build.relu(out))


@given(SEED, st.integers(1, 3), st.integers(1, 3), *[st.booleans()] * 2)
def test_channels_below_an_inverse_pixel_shuffle_take_what_they_come_from(
    seed: int, channels: int, factor: int, strided: bool, shift: bool
) -> None:
    build = Build(seed)
    a = build.affine(build.input(None, channels, 2 * factor, 3 * factor), shift=shift)
    y = build.pixels(a, factor, inverse=True, strided=strided)
    assert_folded(build, build.conv(y, 2, (1, 1)))


@pytest.mark.parametrize("strided", [True, False])
@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("equal", [True, False])
def test_channels_that_share_a_place_must_be_equal(strided: bool, after: bool, equal: bool) -> None:
    """Where pixels are merged into channels above an affine, or channels into pixels below one."""
    build = Build()
    own = build.affine_on(1, 3 if equal else 12)
    if equal:
        scale, shift = ((np.tile if strided else np.repeat)(n, 4) for n in (own.scale, own.shift))
        own = ChannelAffine.on_axis(1, scale, shift)
    if after:
        y = build.conv(build.input(None, 2, 4, 6), 3, (1, 1))
        out = build.node(Affine(own), build.pixels(y, 2, inverse=True, strided=strided))
    else:
        a = build.node(Affine(own), build.input(None, 12, 2, 3))
        out = build.conv(build.pixels(a, 2, strided=strided), 2, (1, 1))
    if equal:
        assert_folded(build, build.relu(out))
    else:
        assert_kept(build, Reason.NOT_UNIFORM, build.relu(out))


@pytest.mark.parametrize("inverse", [True, False])
def test_a_shuffle_and_its_inverse_carry_any_channels(inverse: bool) -> None:
    build = Build()
    a = build.affine(build.input(None, 8, 4, 6))
    y = build.pixels(build.pixels(a, 2, inverse=inverse), 2, inverse=not inverse)
    assert_folded(build, build.conv(y, 2, (1, 1)))


def test_the_other_order_of_channels_would_be_wrong() -> None:
    build = Build()
    a = build.affine(build.input(None, 12, 2, 3))
    plans = []
    for strided in (True, False):
        y = build.pixels(a, 2, inverse=False, strided=strided)
        y = build.pixels(y, 2, inverse=True, strided=True)
        plans.append(make_plan(build.graph(build.conv(y, 2, (1, 1), weight=WEIGHT))))
    taken = [plan.after.nodes[-1].op for plan in plans]
    assert not close(*(op.weight.load() for op in taken if isinstance(op, Conv)))


SIZES: dict[str, tuple[Shape, Shape, bool]] = {
    "all known": ((2, 12, 5, 7), (2, 3, 10, 14), True),
    "channels alone": ((None, 12, None, None), (None, 3, None, None), True),
    "those after alone": ((None, None, None, None), (None, 3, None, None), True),
    "those before alone": ((None, 12, None, None), (None, None, None, None), True),
    "nothing": ((None, None, None, None), (None, None, None, None), False),
}


@pytest.mark.parametrize(("deep", "wide", "known"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_number_of_channels_is_enough(
    deep: Shape, wide: Shape, known: bool, direction: str
) -> None:
    op = PixelShuffle(2, strided=True)
    node = Node("p", "P", op, ("x",), ("y",))
    channels = 3 if direction == "up" else 12
    a = ChannelAffine.on_axis(1, np.arange(1.0, channels + 1), np.zeros(channels))
    answer = getattr(shuffle, direction)(op, node, a, 0, {"x": deep, "y": wide})
    assert isinstance(answer, Refusal) != known


def test_of_unknown_rank_only_a_uniform_affine_is_shuffled() -> None:
    for axis in (None, 1):
        build = Build()
        a = build.affine(build.input(None, 4, 2, 2), axis)
        plan = make_plan(without_shapes(build.graph(build.conv(build.pixels(a, 2), 2, (1, 1)))))
        assert plan.sites[0].reason is (None if axis is None else Reason.UNKNOWN_SHAPE)


# Channel shuffle


NAMES: dict[str, tuple[int, ...] | None] = {
    "the batch unknown": None,
    "the batch by name": (),
    "batch, height and width by name": (5, 7),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@settings(max_examples=40)
@given(seed=SEED, groups=st.sampled_from([2, 3, 4]), shift=st.booleans())
def test_shuffled_channels_take_their_affines_along(
    names: tuple[int, ...] | None, after: bool, seed: int, groups: int, shift: bool
) -> None:
    build = Build(seed)
    x = build.input(None, 12, 5, 7)
    if after:
        out = build.affine(build.shuffle(build.conv(x, 12, (1, 1), groups=2), groups), shift=shift)
    else:
        out = build.conv(build.shuffle(build.affine(x, shift=shift), groups), 4, (1, 1))
    graph = build.graph(build.relu(out))
    plan = make_plan(graph if names is None else with_names(build, graph, *names))
    assert plan.affines.kept == 0, str(plan)
    assert difference(build, plan) < 1e-9


@given(SEED, st.permutations(range(6)), st.booleans())
def test_channels_taken_in_another_order_take_their_affines_along(
    seed: int, order: list[int], after: bool
) -> None:
    build = Build(seed)
    x = build.input(None, 6, 3)
    y = build.conv(x, 6, (1,)) if after else build.affine(x)
    (y,) = build.take(y, 1, order)
    assert_folded(build, build.relu(build.affine(y) if after else build.conv(y, 2, (1,))))
