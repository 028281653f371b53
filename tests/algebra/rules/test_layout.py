"""Affines and the nodes that only rearrange: identity, transpose, reshape."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.checking import MalformedGraphError, check
from bnfold.algebra.graph import (
    Affine,
    Graph,
    Node,
    Reshape,
    Shape,
    Size,
    Transpose,
)
from bnfold.algebra.planner import make_plan
from bnfold.algebra.reference import evaluate
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.reshaping import reshape
from bnfold.algebra.rules import layout
from tests.algebra.graphs import Build, assert_folded, assert_kept, without_shapes

SEED = st.integers(0, 1 << 20)


@given(SEED, st.permutations([0, 1, 2, 3]), st.booleans(), st.booleans())
def test_an_affine_follows_its_axis_through_a_transposition(
    seed: int, perm: list[int], after: bool, uniform: bool
) -> None:
    build = Build(seed)
    x = build.input(None, 3, 5, 2)
    if after:
        y = build.transpose(build.conv(x, 3, (1, 1)), *perm)
        assert_folded(build, build.affine(y, None if uniform else perm.index(1)))
    else:
        y = build.transpose(build.affine(x, None if uniform else 1), *perm)
        back = [perm.index(i) for i in range(4)]
        assert_folded(build, build.conv(build.transpose(y, *back), 2, (1, 1)))


def test_the_axis_of_the_other_direction_would_be_wrong() -> None:
    perm = (1, 2, 0)
    x = np.arange(24.0).reshape(2, 3, 4)
    a = ChannelAffine.on_axis(1, np.array([1.0, 2.0, 3.0]), np.zeros(3))
    op = Transpose(perm)
    node = Node("t", "Transpose", op, ("x",), ("y",))
    (move,) = layout.transpose_down(op, node, a, 0, {})  # type: ignore[misc]
    (ask,) = move.asks
    assert ask.affine.axis == perm.index(1) == 0
    assert (ask.affine.on(x.transpose(perm)) == a.on(x).transpose(perm)).all()
    assert perm[1] != perm.index(1)


@given(SEED, st.booleans(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_flatten_repeats_each_channel(
    seed: int, shift: bool, channels: int, height: int, width: int
) -> None:
    build = Build(seed)
    a = build.affine(build.input(None, channels, height, width), shift=shift)
    flat = build.reshape(a, None, channels * height * width)
    assert_folded(build, build.linear(flat, 3))


@given(SEED, st.integers(2, 3), st.integers(2, 3), st.booleans())
def test_upwards_through_flatten_the_values_of_one_channel_must_be_equal(
    seed: int, channels: int, width: int, equal: bool
) -> None:
    build = Build(seed)
    y = build.conv(build.input(None, 2, width), channels, (1,))
    flat = build.reshape(y, None, channels * width)
    by_channel = build.affine_on(1, channels * width)
    if equal:
        scale, shift = (np.repeat(build.numbers(channels), width) for _ in range(2))
        by_channel = ChannelAffine.on_axis(1, scale, shift)
    out = build.node(Affine(by_channel), flat)
    if equal:
        assert_folded(build, out)
    else:
        assert_kept(build, Reason.NOT_UNIFORM, out)


@given(SEED, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_channels_split_in_two_axes_pass_where_they_vary_along_one(
    seed: int, outer: int, inner: int, inner_varies: bool
) -> None:
    build = Build(seed)
    x = build.input(None, 2, 3)
    parts = build.reshape(build.conv(x, outer * inner, (1,)), None, outer, inner, 3)
    assert_folded(build, build.affine(parts, 2 if inner_varies else 1))


@given(SEED, st.integers(2, 3), st.integers(2, 3))
def test_channels_that_vary_along_both_parts_do_not_pass_the_split(
    seed: int, outer: int, inner: int
) -> None:
    build = Build(seed)
    a = build.affine(build.input(None, outer * inner, 3))
    parts = build.reshape(a, None, outer, inner, 3)
    assert_kept(build, Reason.NOT_UNIFORM, build.linear(build.transpose(parts, 0, 1, 3, 2), 2))


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_squeezed_axes_of_size_one_carry_a_uniform_affine(after: bool) -> None:
    build = Build()
    x = build.input(None, 4, 1, 1)
    if after:
        y = build.conv(build.reshape(x, None, 4, 1), 4, (1,))
        y = build.reshape(y, None, 4)
        assert_folded(build, build.affine(y))
        build = Build()
        y = build.conv(build.input(None, 4, 1), 4, (1,))
        assert_folded(build, build.affine(build.reshape(y, None, 4, 1, 1), 3))
    else:
        y = build.reshape(build.affine(x, 3), None, 4)
        assert_folded(build, build.linear(y, 2))


@given(SEED, st.sampled_from(["identity", "flatten", "transpose"]), st.booleans())
def test_a_uniform_affine_passes_every_rearrangement(seed: int, how: str, after: bool) -> None:
    build = Build(seed)
    x = build.input(None, 3, 4)
    y = build.linear(x, 4) if after else build.affine(x, None)
    if how == "identity":
        y = build.identity(y)
    elif how == "flatten":
        y = build.reshape(y, None, 12)
    else:
        y = build.transpose(y, 2, 0, 1)
    out = build.affine(y, None) if after else build.linear(y, 2)
    plan = make_plan(without_shapes(build.graph(out)))
    assert plan.affines.kept == 0
    assert_folded(build, out)


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_an_unknown_shape_stops_the_affine_of_a_reshape(after: bool) -> None:
    build = Build()
    x = build.input(None, 3, 4)
    y = build.reshape(build.linear(x, 4) if after else build.affine(x), None, 12)
    graph = build.graph(build.affine(y) if after else build.linear(y, 2))
    plan = make_plan(replace(graph, shapes={**graph.shapes, y: None}))
    assert [s.reason for s in plan.sites] == [Reason.UNKNOWN_SHAPE]


def test_sizes_that_cannot_be_worked_out_are_refused_and_one_missing_size_is_worked_out() -> None:
    a = ChannelAffine.on_axis(1, np.arange(1.0, 4.0), np.zeros(3))
    op = Reshape((((0,), (0,)), ((1, 2), (1,))), (None, None))
    node = Node("r", "Reshape", op, ("x",), ("y",))

    def down(x: Shape, y: Shape) -> object:
        answer = layout.reshape_down(op, node, a, 0, {"x": x, "y": y})
        return answer.reason if isinstance(answer, Refusal) else answer[0].asks[0].affine.size

    assert down((None, 3, 4), (None, 12)) == 12
    assert down((None, 3, 4), (None, None)) == 12
    assert down((None, 3, None), (None, 12)) == 12
    assert down((None, None, 4), (None, 12)) == 12  # as many channels as the affine has
    assert down((None, 3, None), (None, None)) is Reason.UNKNOWN_SHAPE
    assert down((None, 3, "w"), (None, "n")) is Reason.UNKNOWN_SHAPE
    assert down((None, 3, None), (None, 13)) is Reason.UNKNOWN_SHAPE
    assert down((None, 3, 0), (None, 0)) is Reason.UNKNOWN_SHAPE


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], Shape, Shape]:
    """Two shapes of equal product, and the same with some sizes hidden."""
    primes = draw(st.lists(st.sampled_from([1, 2, 2, 3]), min_size=1, max_size=5))

    def cut() -> tuple[int, ...]:
        sizes = [1]
        for p in primes:
            if draw(st.booleans()):
                sizes.append(p)
            else:
                sizes[-1] *= p
        return tuple(sizes)

    source, target = cut(), cut()
    if draw(st.booleans()):
        target = tuple(draw(st.permutations(target)))

    def hidden(shape: tuple[int, ...], names: dict[int, Size]) -> Shape:
        hide = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
        return tuple(names.get(s, s) if h else s for s, h in zip(shape, hide, strict=True))

    names: dict[int, Size] = draw(
        st.sampled_from([{}, {2: None, 3: None, 6: None}, {2: "b", 3: None, 4: "n"}])
    )
    return source, target, hidden(source, names), hidden(target, names)


@given(reshapes(), SEED)
def test_the_runs_of_a_reshape_are_true_of_every_size_that_fits(
    case: tuple[tuple[int, ...], tuple[int, ...], Shape, Shape], seed: int
) -> None:
    source, target, known_source, known_target = case
    op = layout_of(known_source, known_target)
    assume(op is not None)
    assert op is not None
    assert [i for run, _ in op.groups for i in run] == list(range(len(source)))
    assert [j for _, run in op.groups for j in run] == list(range(len(target)))
    for merged, split in op.groups:
        assert math.prod(source[i] for i in merged) == math.prod(target[j] for j in split)
    shapes = {"x": known_source, "y": known_target}
    node = Node("r", "Reshape", op, ("x",), ("y",))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=source)
    for axis, size in enumerate(source):
        a = ChannelAffine.on_axis(axis, rng.normal(size=size), rng.normal(size=size))
        answer = layout.reshape_down(op, node, a, 0, shapes)
        if not isinstance(answer, Refusal):
            after = answer[0].asks[0].affine
            assert np.array_equal(after.on(x.reshape(target)), a.on(x).reshape(target))
    for axis, size in enumerate(target):
        for repeated in (1, 2, 3):
            values = np.repeat(rng.normal(size=size), repeated)[:size]
            a = ChannelAffine.on_axis(axis, values, values)
            answer = layout.reshape_up(op, node, a, 0, shapes)
            if not isinstance(answer, Refusal):
                before = answer[0].asks[0].affine
                assert np.array_equal(before.on(x).reshape(target), a.on(x.reshape(target)))


def layout_of(source: Shape, target: Shape) -> Reshape | None:
    return reshape(source, target)


RUNS: dict[str, tuple[Shape, Shape, object]] = {
    "flatten": ((None, 3, 4), (None, 12), (((0,), (0,)), ((1, 2), (1,)))),
    "a named size that stays": (
        ("n", 3, "h"),
        ("n", 3, "h"),
        (((0,), (0,)), ((1,), (1,)), ((2,), (2,))),
    ),
    "two unknown sizes on each side": ((None, 3, None), (None, 3, None), (((0, 1, 2), (0, 1, 2)),)),
    "the batch takes in the channels": (
        (None, 8, 5),
        (None, 1, 5),
        (((0, 1), (0, 1)), ((2,), (2,))),
    ),
    "an unknown size is doubled": ((None, 6), (None, 3), (((0, 1), (0, 1)),)),
    "unknown sizes merged before known ones": (
        ("n", None, None, 3),
        ("n", None, 3),
        (((0,), (0,)), ((1, 2), (1,)), ((3,), (2,))),
    ),
    "unknown sizes merged after known ones": (
        ("n", 3, None, None),
        ("n", 3, None),
        (((0,), (0,)), ((1,), (1,)), ((2, 3), (2,))),
    ),
    "nothing to cut": ((), (), ()),
    "products that differ": ((2, 3), (5,), None),
    "a one that appears": ((None, 3), (None, 3, 1), (((0,), (0,)), ((1,), (1,)), ((), (2,)))),
}


@pytest.mark.parametrize(("source", "target", "runs"), RUNS.values(), ids=RUNS)
def test_the_runs_of(source: Shape, target: Shape, runs: object) -> None:
    op = layout_of(source, target)
    assert (None if op is None else op.groups) == runs


def test_the_batch_and_the_channels_may_be_merged_by_a_uniform_affine_only() -> None:
    build = Build()
    y = build.reshape(build.affine(build.input(None, 4, 3), None), None, 3)
    assert_folded(build, build.linear(y, 2))
    build = Build()
    y = build.reshape(build.affine(build.input(None, 4, 3), 2), None, 3)
    assert_folded(build, build.linear(y, 2))
    build = Build()
    y = build.reshape(build.affine(build.input(None, 4, 3), 1), None, 3)
    assert_kept(build, Reason.WRONG_AXIS, build.linear(y, 2))


MALFORMED = {
    "an axis missing": Reshape((((0,), (0,)),), (2, 3)),
    "axes out of order": Reshape((((1,), (0,)), ((0,), (1,))), (2, 3)),
    "runs of unequal size": Reshape((((0,), (0,)), ((1,), (1,))), (2, 4)),
}


@pytest.mark.parametrize("op", MALFORMED.values(), ids=MALFORMED)
def test_a_reshape_is_malformed_with(op: Reshape) -> None:
    node = Node("r", "Reshape", op, ("x",), ("y",))
    with pytest.raises(MalformedGraphError):
        check(Graph(("x",), (node,), ("y",), {"x": (2, 3)}))


def test_the_target_of_a_reshape_may_leave_one_size_of_a_run_open() -> None:
    op = layout_of((None, 3, 4), (None, 12))
    assert op is not None
    node = Node("r", "Reshape", op, ("x",), ("y",))
    graph = Graph(("x",), (node,), ("y",), {"x": (None, 3, 4)})
    assert evaluate(graph, {"x": np.ones((5, 3, 4))})["y"].shape == (5, 12)
