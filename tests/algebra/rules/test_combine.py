"""Affines and the nodes that join values: sums and concatenations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.checking import MalformedGraphError, check
from bnfold.algebra.graph import Add, Affine, Conv, Identity, Linear
from bnfold.algebra.plan import Plan
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason
from tests.algebra.graphs import (
    Build,
    assert_folded,
    assert_kept,
    close,
    difference,
    outputs,
    planned,
    site,
)

SEED = st.integers(0, 1 << 20)


def _biases(plan: Plan) -> int:
    return sum(
        isinstance(node.op, Conv | Linear) and node.op.bias is not None for node in plan.after.nodes
    )


@given(SEED, st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_the_sum_of_convolutions_takes_the_scale_everywhere_and_the_shift_once(
    seed: int, channels: int, operands: int, uniform: bool
) -> None:
    build = Build(seed)
    convs = [
        build.conv(build.input(None, 2, 5, 5), channels, (3, 3), bias=False)
        for _ in range(operands)
    ]
    out = build.affine(build.add(*convs), None if uniform else 1, name="bn")
    plan = assert_folded(build, out)
    assert len(site(plan, "bn").into) == operands
    assert _biases(plan) == 1


def test_putting_the_shift_into_every_operand_would_be_wrong() -> None:
    build = Build()
    x = build.input(None, 2, 5, 5)
    out = build.affine(build.add(*[build.conv(x, 3, (3, 3), name=n) for n in "ab"]), name="bn")
    plan = assert_folded(build, out)
    bn = next(n.op for n in plan.before.nodes if isinstance(n.op, Affine))
    nodes = []
    for before, after in plan.changed():
        assert isinstance(before.op, Conv)
        assert isinstance(after.op, Conv)
        assert before.op.bias is not None
        bias = before.op.bias.mapped(lambda c: bn.affine.scale * c + bn.affine.shift)
        nodes.append(after.with_op(replace(after.op, bias=bias)))
    wrong = {n.name: n for n in nodes}
    graph = replace(plan.after, nodes=tuple(wrong.get(n.name, n) for n in plan.after.nodes))
    assert difference(build, Plan(plan.before, graph, ())) > 1e-2


def test_the_shift_goes_to_the_operand_that_can_take_it() -> None:
    build = Build()
    x = build.input(None, 3, 5, 5)
    scaled = build.relu(build.conv(x, 3, (1, 1), name="under_relu"))
    free = build.conv(x, 3, (1, 1), bias=False, name="free")
    out = build.affine(build.add(scaled, free), sign="plus", name="bn")
    plan = assert_folded(build, out)
    assert set(site(plan, "bn").into) == {"under_relu", "free"}


SUMS_REFUSED = {
    "an operand is an input of the model": Reason.GRAPH_INPUT,
    "an operand is read elsewhere": Reason.OTHER_READERS,
    "an operand is an output of the model": Reason.GRAPH_OUTPUT,
    "an operand is not linear": Reason.NOT_LINEAR,
    "an operand is broadcast over channels of different scale": Reason.OTHER_OPERAND,
    "both operands are under an activation": Reason.SHIFT,
    "one value is added to itself": Reason.OTHER_READERS,
}


@pytest.mark.parametrize(("case", "reason"), SUMS_REFUSED.items(), ids=SUMS_REFUSED)
def test_a_sum_refuses_when(case: str, reason: Reason) -> None:
    build = Build()
    x = build.input(None, 3, 5, 5)
    first = build.conv(build.input(None, 3, 5, 5), 3, (1, 1), name="first")
    second = build.conv(x, 3, (1, 1), name="second")
    ends: list[str] = []
    match reason:
        case Reason.GRAPH_INPUT:
            second = x
        case Reason.OTHER_READERS if "itself" in case:
            second = first
        case Reason.OTHER_READERS:
            ends.append(build.relu(second))
        case Reason.GRAPH_OUTPUT:
            ends.append(second)
        case Reason.NOT_LINEAR:
            second = build.opaque(second)
        case Reason.OTHER_OPERAND:
            second = build.conv(x, 1, (1, 1), name="narrow")
        case Reason.SHIFT:
            first, second = build.relu(first), build.relu(second)
    build.affine(build.add(first, second), sign="plus", name="bn")
    out = build.relu(build.nodes[-1].outputs[0])
    graph = build.graph(out, *ends)
    plan = make_plan(graph)
    verdict = site(plan, "bn")
    up = verdict.why or ""
    assert verdict.into == ()
    assert plan.affines.kept == 1
    if reason is Reason.GRAPH_INPUT:
        assert "is an input of the model" in up
    elif reason is Reason.NOT_LINEAR:
        assert "no affine is known to pass through it" in up
    else:
        assert verdict.reason is reason


@given(SEED, st.integers(2, 4), st.booleans(), st.booleans())
def test_an_operand_broadcast_over_the_channels_takes_a_common_scale_only(
    seed: int, channels: int, first: bool, whole_axis: bool
) -> None:
    build = Build(seed)
    x = build.input(None, 2, 5, 5)
    wide = build.conv(x, channels, (3, 3), bias=False, name="wide")
    if whole_axis:
        narrow = build.conv(x, 1, (3, 3), name="narrow")
    else:
        narrow = build.mean(build.conv(x, 1, (3, 3), name="narrow"), 0, 1)
    y = build.add(*((wide, narrow) if first else (narrow, wide)))
    a = ChannelAffine.on_axis(1, np.full(channels, -1.7), build.numbers(channels))
    plan = assert_folded(build, build.node(Affine(a), y, name="bn"))
    assert set(site(plan, "bn").into) == {"wide", "narrow"}


def test_a_sum_of_unknown_rank_passes_only_a_uniform_affine() -> None:
    for axis in (None, 1):
        build = Build()
        x, other = build.input(None, 3), build.input(None, 3)
        y = build.add(build.linear(x, 3), build.linear(other, 3))
        graph = build.graph(build.affine(y, axis))
        unknown = {v: s for v, s in graph.shapes.items() if v != y}
        plan = make_plan(replace(graph, shapes=unknown))
        assert plan.affines.kept == (axis is not None)
        if axis is not None:
            assert plan.sites[0].reason is Reason.UNKNOWN_SHAPE
            assert y in (plan.sites[0].why or "")


@given(SEED, st.integers(1, 3), st.booleans())
def test_an_affine_before_a_sum_stays(seed: int, channels: int, shift: bool) -> None:
    build = Build(seed)
    x, other = build.input(None, channels, 4), build.input(None, channels, 4)
    a = build.affine(x, shift=shift)
    assert_kept(build, Reason.OTHER_OPERAND, build.linear(build.add(a, other), 2))


FACTORS = st.sampled_from([(), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, 3.0), (-0.4, 1.0)])


@given(
    SEED,
    FACTORS,
    st.booleans(),
    st.sampled_from([(None, 3, 4, 5), (None, 3, 1, 1), (3, 1, 1)]),
    st.booleans(),
)
def test_a_shift_before_a_sum_is_a_shift_of_the_sum(
    seed: int, factors: tuple[float, ...], first: bool, sizes: tuple[int | None, ...], uniform: bool
) -> None:
    build = Build(seed)
    x, other = build.input(*sizes), build.input(None, 3, 4, 5)
    axis = None if uniform else sizes.index(3)
    a = build.affine(x, axis, holds="shift", name="shift")
    y = build.node(Add(factors), *((a, other) if first else (other, a)))
    plan = assert_folded(build, build.conv(y, 2, (3, 3), name="conv"))
    assert site(plan, "shift").into == ("conv",)


@given(SEED, FACTORS, st.booleans(), st.booleans())
def test_a_shift_before_a_sum_is_added_to_another_operand_where_the_sum_cannot_take_it(
    seed: int, factors: tuple[float, ...], first: bool, uniform: bool
) -> None:
    build = Build(seed)
    a = build.affine(
        build.input(None, 3, 5, 5), None if uniform else 1, holds="shift", name="shift"
    )
    y = build.conv(build.input(None, 2, 5, 5), 3, (3, 3), pads=((1, 1), (1, 1)), name="conv")
    total = build.node(Add(factors), *((a, y) if first else (y, a)))
    plan = assert_folded(build, build.relu(total))
    assert site(plan, "shift").into == ("conv",)


def test_a_sum_prefers_another_operand_so_that_what_follows_is_left_alone() -> None:
    build = Build()
    a = build.affine(build.input(None, 3, 5, 5), holds="shift", name="shift")
    y = build.conv(build.input(None, 2, 5, 5), 3, (1, 1), name="beside")
    plan = assert_folded(build, build.conv(build.add(a, y), 2, (1, 1), name="below"))
    assert site(plan, "shift").into == ("beside",)


def test_another_operand_that_is_read_elsewhere_or_broadcast_is_not_asked() -> None:
    for out in (1, 3):
        build = Build()
        a = build.affine(build.input(None, 3, 5, 5), holds="shift", name="shift")
        y = build.conv(build.input(None, 2, 5, 5), out, (1, 1), name="beside")
        ends = [build.relu(y)] if out == 3 else []
        below = build.conv(build.add(a, y), 2, (1, 1), name="below")
        plan = assert_folded(build, below, *ends)
        assert site(plan, "shift").into == ("below",)


def test_a_shifted_value_that_is_added_to_itself_is_shifted_twice() -> None:
    build = Build()
    a = build.affine(build.input(None, 3, 5, 5), holds="shift")
    y = build.node(Add((1.0, -1.0, 1.0)), a, a, a)
    assert_folded(build, build.conv(build.add(y, a), 2, (1, 1)))


def test_a_shift_that_neither_the_sum_nor_another_operand_takes_stays() -> None:
    build = Build()
    a = build.affine(build.input(None, 3, 5, 5), holds="shift")
    under = build.relu(build.conv(build.input(None, 3, 5, 5), 3, (1, 1)))
    assert_kept(build, Reason.SHIFT, build.relu(build.add(a, under)))


def test_a_shift_before_a_sum_of_unknown_rank_stays_unless_it_is_uniform() -> None:
    for axis in (None, 1):
        build = Build()
        a = build.affine(build.input(None, 3), axis, holds="shift")
        y = build.add(a, build.input(None, 3))
        graph = build.graph(build.linear(y, 2))
        unknown = {v: s for v, s in graph.shapes.items() if v != y}
        plan = make_plan(replace(graph, shapes=unknown))
        assert [s.reason for s in plan.sites] == [axis and Reason.UNKNOWN_SHAPE]


def test_taking_a_scale_through_a_sum_downwards_would_be_wrong() -> None:
    build = Build()
    x, other = build.input(None, 3), build.input(None, 3)
    a = build.affine(x, name="bn")
    right = outputs(build.graph(build.linear(build.add(a, other), 2, name="fc")), build)
    bn = build.nodes[0].op
    fc = build.nodes[-1].op
    assert isinstance(bn, Affine)
    assert isinstance(fc, Linear)
    total = build.values[x][0] + build.values[other][0]
    wrong = bn.affine.on(total) @ fc.weight.load().T
    assert not close(wrong, next(iter(right.values())))


@given(SEED, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([1, 2]))
def test_a_concatenation_hands_each_input_its_segment_or_all_of_it(
    seed: int, channels: list[int], axis: int
) -> None:
    build = Build(seed)
    x = build.input(None, 2, 6)
    if axis == 1:
        parts = [build.conv(x, c, (3,)) for c in channels]
    else:
        parts = [build.conv(x, 2, (1 + c,)) for c in channels]
    assert_folded(build, build.affine(build.concat(*parts, axis=axis), 1))


@given(SEED, st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data(), st.booleans())
def test_an_affine_on_one_input_of_a_concatenation_is_the_identity_on_the_others(
    seed: int, channels: list[int], data: st.DataObject, uniform: bool
) -> None:
    build = Build(seed)
    parts = [build.input(None, c, 6) for c in channels]
    port = data.draw(st.integers(0, len(channels) - 1))
    parts[port] = build.affine(parts[port], None if uniform else 1, name="bn")
    plan = assert_folded(build, build.conv(build.concat(*parts), 3, (3,), name="conv"))
    assert site(plan, "bn").into == ("conv",)


def test_two_affines_before_one_concatenation_and_one_value_read_twice_by_it() -> None:
    build = Build()
    a = build.affine(build.input(None, 2, 6))
    b = build.affine(build.input(None, 3, 6))
    assert_folded(build, build.conv(build.concat(a, b, a), 3, (3,)))


def test_a_shift_before_a_concatenation_cannot_pass_an_activation_after_it() -> None:
    build = Build()
    a = build.affine(build.input(None, 2, 6), sign="plus")
    y = build.relu(build.concat(a, build.input(None, 2, 6)))
    assert_kept(build, Reason.SHIFT, build.conv(y, 3, (3,)))


def test_what_the_other_inputs_lack_of_an_affine_on_an_axis_not_joined_is_the_identity() -> None:
    build = Build()
    a = build.affine(build.input(None, 2, 6))
    y = build.concat(a, build.input(None, 2, 3), axis=2)
    left = assert_kept(build, Reason.NOT_UNIFORM, build.conv(y, 3, (3,)))
    assert "on axis 1, has several scales along axis 2" in (left.why or "")


@given(SEED, st.integers(1, 3), st.integers(1, 3), st.sampled_from(["before", "after"]))
def test_channels_of_two_inputs_in_turn(seed: int, channels: int, size: int, where: str) -> None:
    """Stacked on an axis after the channels, which is then merged with them."""
    build = Build(seed)
    halves = [build.input(None, channels, size) for _ in range(2)]
    if where == "before":
        halves[1] = build.affine(halves[1])
    else:
        halves = [build.conv(half, channels, (1,)) for half in halves]
    stacked = [build.reshape(half, None, channels, 1, size) for half in halves]
    y = build.reshape(build.concat(*stacked, axis=2), None, 2 * channels, size)
    assert_folded(build, build.conv(y, 2, (1,)) if where == "before" else build.affine(y))


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_segments_of_unknown_size_are_refused(after: bool) -> None:
    build = Build()
    x = build.input(None, 2, 6)
    if after:
        out = build.affine(build.concat(build.conv(x, 2, (1,)), build.conv(x, 2, (1,))))
    else:
        out = build.conv(build.concat(build.affine(x), build.input(None, 2, 6)), 2, (1,))
    graph = build.graph(out)
    joined = next(n for n in graph.nodes if n.kind == "Concat")
    shapes = {v: (None, None, 6) if v in joined.inputs else s for v, s in graph.shapes.items()}
    plan = make_plan(replace(graph, shapes=shapes))
    assert [s.reason for s in plan.sites] == [Reason.UNKNOWN_SHAPE]


def test_a_joined_axis_counted_from_the_right_is_malformed() -> None:
    build = Build()
    x = build.input(None, 2, 6)
    build.concat(x, x, axis=1)
    graph = build.graph(build.nodes[-1].outputs[0])
    node = graph.nodes[0]
    turned = node.with_op(type(node.op)(-2))  # type: ignore[call-arg, arg-type]
    with pytest.raises(MalformedGraphError, match="axis -2"):
        check(replace(graph, nodes=(turned,)))


def test_a_uniform_affine_passes_a_concatenation_in_both_directions() -> None:
    build = Build()
    x = build.input(None, 2, 6)
    both = build.concat(build.conv(x, 2, (1,)), build.conv(x, 3, (1,)))
    assert_folded(build, build.affine(both, None))
    build = Build()
    a = build.affine(build.input(None, 2, 6), None)
    assert_folded(build, build.conv(build.concat(a, build.input(None, 3, 6)), 2, (1,)))


def test_an_identity_is_folded_into_nothing() -> None:
    build = Build()
    x = build.input(None, 2)
    one = ChannelAffine.on_axis(1, np.ones(2), np.zeros(2))
    plan = planned(build, build.node(Affine(one), x, name="bn"))
    assert site(plan, "bn").into == ()
    assert isinstance(plan.after.nodes[0].op, Identity)
