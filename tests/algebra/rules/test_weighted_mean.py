"""Affines and means with computed weights, as in attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Node, Shape, WeightedMean
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules import weighted_mean
from tests.algebra.graphs import Build, assert_folded, assert_kept, difference, site, with_names

SEED = st.integers(0, 1 << 20)


@given(SEED, st.booleans(), st.booleans())
def test_the_features_of_the_values_pass(seed: int, after: bool, uniform: bool) -> None:
    build = Build(seed)
    x = build.input(None, 2, 5, 3)
    axis = None if uniform else 3
    if after:
        out = build.affine(build.mix(build.linear(x, 4)), axis)
    else:
        out = build.linear(build.mix(build.affine(x, axis)), 4)
    assert_folded(build, build.relu(out))


def test_heads_pass() -> None:
    build = Build()
    x = build.conv(build.input(None, 3, 5, 4), 2, (1, 1))
    assert_folded(build, build.relu(build.affine(build.mix(x), 1)))


@pytest.mark.parametrize("after", [True, False], ids=["after it", "before it"])
def test_the_axis_that_is_averaged_refuses(after: bool) -> None:
    build = Build()
    x = build.input(None, 4, 3)
    if after:
        out = build.affine(build.mix(build.linear(x, 3)), 1)
    else:
        out = build.linear(build.mix(build.affine(x, 1)), 2)
    assert_kept(build, Reason.WRONG_AXIS, build.relu(out))


def test_an_affine_of_the_weights_refuses() -> None:
    build = Build()
    weights = build.affine(build.input(None, 4, 3), 2)
    values = build.input(None, 3, 2)
    out = build.node(WeightedMean(), weights, values)
    assert_kept(build, Reason.NOT_LINEAR, build.relu(out))


def test_a_layer_that_could_take_the_averaged_axis_must_not() -> None:
    build = Build()
    values = build.conv(build.input(None, 3, 5), 4, (1,))
    assert_kept(build, Reason.WRONG_AXIS, build.relu(build.affine(build.mix(values), 1)))


@pytest.mark.parametrize("after", [True, False], ids=["after it", "before it"])
@given(seed=SEED, shift=st.booleans())
def test_values_on_the_left_are_averaged_over_their_last_axis(
    seed: int, after: bool, shift: bool
) -> None:
    build = Build(seed)
    x = build.input(None, 3, 5)
    y = build.conv(x, 4, (1,)) if after else build.affine(x, 1, shift=shift)
    y = build.mix(y, axis=-1)
    out = build.affine(y, 1, shift=shift) if after else build.conv(y, 2, (1,))
    assert_folded(build, build.relu(out))


def test_values_on_the_left_do_not_pass_an_affine_of_the_axis_averaged() -> None:
    build = Build()
    y = build.mix(build.linear(build.input(None, 3, 5), 4), axis=-1)
    assert_kept(build, Reason.WRONG_AXIS, build.relu(build.affine(y, 2)))


def test_values_that_are_repeated_for_several_heads_keep_the_affine_of_theirs() -> None:
    """Grouped queries: two heads of values for four of queries, in whatever order."""
    shapes: dict[str, Shape | None] = {"w": (2, 4, 5, 3), "v": (2, 2, 3, 6), "y": (2, 4, 5, 6)}
    op = WeightedMean()
    node = Node("n", "N", op, ("w", "v"), ("y",))
    heads = ChannelAffine.on_axis(1, np.array([1.0, 2.0]), np.zeros(2))
    answers = (
        weighted_mean.down(op, node, heads, 1, shapes),
        weighted_mean.up(op, node, heads, 0, shapes),
    )
    for answer in answers:
        assert isinstance(answer, Refusal)
        assert answer.reason is Reason.OTHER_OPERAND


# Attention in whole networks: [N, L, h * d] or [N, h * d, H, W], heads apart, mixed, together

Attention = Callable[[Build, str, int], str]


def transformer(build: Build, x: str, heads: int) -> str:
    """Vaswani et al. 2017, arXiv:1706.03762: heads on an axis of their own."""
    length, channels = build.size(x, 1), build.size(x, 2)
    parts = build.reshape(x, None, length, heads, channels // heads)
    mixed = build.mix(build.transpose(parts, 0, 2, 1, 3), rows=length)
    return build.reshape(build.transpose(mixed, 0, 2, 1, 3), None, length, channels)


def botnet(build: Build, x: str, heads: int) -> str:
    """Srinivas et al. 2021, arXiv:2101.11605: pixels as tokens, heads merged into the batch."""
    channels, height, width = (build.size(x, i) for i in (1, 2, 3))
    parts = build.reshape(x, None, channels // heads, height * width)
    mixed = build.transpose(
        build.mix(build.transpose(parts, 0, 2, 1), rows=height * width), 0, 2, 1
    )
    return build.reshape(mixed, None, channels, height, width)


@pytest.mark.parametrize("named", [False, True], ids=["batch unknown", "batch by name"])
@pytest.mark.parametrize("where", ["before", "after", "both"])
@pytest.mark.parametrize("attention", [transformer, botnet], ids=lambda f: str(f.__name__))
@settings(max_examples=40)
@given(seed=SEED, heads=st.integers(1, 3), width=st.integers(1, 3))
def test_an_affine_passes_the_values_of_attention(
    attention: Attention,
    where: str,
    named: bool,
    seed: int,
    heads: int,
    width: int,
) -> None:
    build = Build(seed)
    channels = heads * width
    pixels = attention is botnet
    x = build.input(None, channels, 2, 3) if pixels else build.input(None, 5, channels)

    def layer(value: str) -> str:
        return build.conv(value, channels, (1, 1)) if pixels else build.linear(value, channels)

    axis = 1 if pixels else 2
    x = layer(x) if where == "after" else build.affine(x, axis)
    y = attention(build, x, heads)
    y = layer(y) if where == "before" else build.affine(y, axis)
    y = layer(y) if where == "both" else y
    graph = build.graph(build.relu(y))
    plan = make_plan(with_names(build, graph) if named else graph)
    assert plan.affines.kept == 0, str(plan)
    assert difference(build, plan) < 1e-9


@given(SEED, st.integers(1, 3), st.integers(1, 3))
def test_values_cut_out_of_one_layer_take_an_affine(seed: int, heads: int, width: int) -> None:
    """As in LeViT (Graham et al. 2021, arXiv:2104.01136)."""
    build = Build(seed)
    length, channels = 4, heads * width
    every = build.linear(build.input(None, length, 3), heads * 3 * width, name="qkv")
    parts = build.reshape(every, None, length, heads, 3 * width)
    cuts = [range(i * width, (i + 1) * width) for i in range(3)]
    queries, keys, values = build.take(parts, 3, *cuts)
    mixed = build.mix(build.transpose(values, 0, 2, 1, 3), rows=length)
    y = build.reshape(build.transpose(mixed, 0, 2, 1, 3), None, length, channels)
    out = build.relu(build.affine(y, 2, name="bn"))
    plan = assert_folded(build, out, build.relu(queries), build.relu(keys))
    assert site(plan, "bn").into == ("qkv",)
