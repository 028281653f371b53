"""Maps that are carried to where they cost least, and those that must stay."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra import cost, placing, planner
from bnfold.algebra.cost import Work, work
from bnfold.algebra.graph import Add, Concat, Conv, Graph, Linear, Mean, Node, Opaque, Resize, Take
from bnfold.algebra.plan import Plan
from bnfold.algebra.planner import make_plan
from bnfold.algebra.pointwise import point_map
from bnfold.algebra.refusal import Reason, Refusal
from tests.algebra.graphs import Build, difference, random_build, site

SEED = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def multiply_adds_alone() -> Any:
    """Small graphs are worth moving only where nothing else than multiply-adds counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "MOVED", 0)
        patch.setattr(cost, "STARTED", 0)
        yield


def moved(build: Build, *outs: str, free: Collection[str] | None = None) -> Plan:
    """The plan with all nodes free, after proving that it changes nothing."""
    graph = build.graph(*outs)
    names = {node.name for node in graph.nodes} if free is None else free
    plan = make_plan(graph, free=names)
    assert difference(build, plan) < 1e-9, str(plan.after)
    return plan


def kinds(plan: Plan) -> Counter[str]:
    return Counter(type(node.op).__name__ for node in plan.after.nodes)


def multiply_adds(graph: Graph) -> int:
    found = cost.cost(graph).multiply_adds
    assert found is not None
    return found


def assert_moved(plan: Plan) -> Plan:
    assert plan.made, str(plan.after)
    assert multiply_adds(plan.after) < multiply_adds(plan.before)
    return plan


def order(plan: Plan) -> list[str]:
    return [type(node.op).__name__ for node in plan.after.nodes]


# ---- what passes


def test_a_convolution_is_carried_before_a_resize() -> None:
    build = Build()
    x = build.relu(build.input(None, 5, 3, 4))
    out = build.conv(build.resize(x, 2, 2), 4, (1, 1), name="point")
    plan = assert_moved(moved(build, build.relu(out)))
    assert order(plan) == ["Activation", "Conv", "Resize", "Activation"]
    assert plan.after.nodes[1].name == "point"
    assert [made.like for made in plan.made.values()] == [None, plan.before.nodes[1].name]


def test_the_head_of_segformer() -> None:
    """Xie et al. 2021, arXiv:2105.15203, 3.2: linear layers, upsampled, joined, and a 1x1."""
    build = Build()
    branches: list[str] = []
    for channels, factor in ((3, 1), (4, 2), (6, 4), (8, 8)):
        size = 8 // factor
        tokens = build.relu(build.input(None, size * size, channels))
        wide = build.linear(tokens, 10, name=f"linear{factor}")
        image = build.reshape(build.transpose(wide, 0, 2, 1), None, 10, size, size)
        branches.append(image if factor == 1 else build.resize(image, factor, factor))
    fused = build.conv(build.concat(*branches), 10, (1, 1), bias=False, name="fuse")
    head = build.relu(build.affine(fused, name="bn"))
    plan = assert_moved(moved(build, build.conv(head, 5, (1, 1))))
    assert kinds(plan)["Concat"] == 0
    assert kinds(plan)["Linear"] == 4
    assert kinds(plan)["Conv"] == 1
    assert kinds(plan)["Add"] == 3
    assert sorted(site(plan, "bn").into) == ["linear1", "linear2", "linear4", "linear8"]


def test_the_head_of_hrnet() -> None:
    """Sun et al. 2019, arXiv:1904.04514, figure 3: four resolutions, joined, and a 1x1."""
    build = Build()
    branches = [build.relu(build.input(None, 4, 8, 16))]
    for channels, factor in ((8, 2), (16, 4), (32, 8)):
        x = build.relu(build.input(None, channels, 8 // factor, 16 // factor))
        branches.append(build.resize(x, factor, factor))
    fused = build.affine(build.conv(build.concat(*branches), 60, (1, 1), name="fuse"), name="bn")
    plan = assert_moved(moved(build, build.relu(fused)))
    assert multiply_adds(plan.before) > 6 * multiply_adds(plan.after)
    assert "fuse" in site(plan, "bn").into


def test_image_pooling_of_aspp_is_added_as_a_pixel() -> None:
    """Chen et al. 2017, arXiv:1706.05587, 3.3: the rest stays together, and nothing is resized."""
    build = Build()
    x = build.relu(build.input(None, 6, 5, 4))
    branches = [build.relu(build.conv(x, 4, (1, 1), name=f"branch{i}")) for i in range(3)]
    pooled = build.relu(build.conv(build.adaptive(x, "avg", 1, 1), 4, (1, 1)))
    joined = build.concat(*branches, build.resize(pooled, 5, 4))
    plan = assert_moved(moved(build, build.relu(build.conv(joined, 7, (1, 1), name="project"))))
    assert kinds(plan)["Resize"] == 0
    (left,) = (node for node in plan.after.nodes if isinstance(node.op, Concat))
    assert len(left.inputs) == 3
    assert kinds(plan)["Add"] == 1


def test_global_features_of_a_point_cloud_are_repeated_after_the_map() -> None:
    """Qi et al. 2017, arXiv:1612.00593, figure 2: every point with the maximum of all."""
    build = Build()
    points = build.relu(build.input(None, 3, 9))
    whole = build.pool(points, "max", (9,))
    joined = build.concat(points, build.take(whole, 2, (0,) * 9)[0])
    plan = assert_moved(moved(build, build.relu(build.conv(joined, 5, (1,)))))
    assert kinds(plan)["Take"] == 0
    assert kinds(plan)["Concat"] == 0


def test_a_map_goes_behind_a_global_mean() -> None:
    build = Build()
    x = build.relu(build.input(None, 6, 5, 4))
    pooled = build.mean(build.conv(x, 4, (1, 1), name="point"), 2, 3)
    plan = assert_moved(moved(build, build.relu(pooled)))
    assert order(plan) == ["Activation", "Mean", "Linear", "Activation"]


def test_a_map_goes_behind_a_slice_and_into_the_next() -> None:
    build = Build()
    tokens = build.relu(build.input(None, 7, 6))
    first = build.take(build.linear(tokens, 9, name="last"), 1, (0,))[0]
    logits = build.linear(build.reshape(first, None, 9), 4, name="head")
    plan = assert_moved(moved(build, build.relu(logits)))
    assert order(plan) == ["Activation", "Take", "Linear", "Reshape", "Activation"]


def test_maps_move_one_after_the_other() -> None:
    """The second passes once the first has."""
    build = Build()
    x = build.relu(build.input(None, 5, 3, 4))
    up = build.resize(x, 2, 2)
    thin = build.conv(build.conv(up, 2, (1, 1), name="first"), 6, (1, 1), name="second")
    plan = assert_moved(moved(build, build.relu(thin)))
    assert order(plan) == ["Activation", "Conv", "Conv", "Resize", "Activation"]
    assert {made.of for made in plan.made.values()} == {"first", "second"}


PASSED: dict[str, Callable[[Build, str], str]] = {
    "identity": lambda b, x: b.identity(x),
    "reflected rows": lambda b, x: b.take(x, 2, (0, 1, 2, 1, 0, 2))[0],
    "resize": lambda b, x: b.resize(x, 3, 2),
    "resize of one axis": lambda b, x: b.resize(x, 2),
    "transposed image": lambda b, x: b.resize(b.transpose(x, 0, 1, 3, 2), 2, 2),
    "tokens": lambda b, x: b.resize(b.reshape(x, None, 6, 12), 2),
    "another axis": lambda b, x: b.transpose(b.resize(x, 3, 2), 0, 2, 3, 1),
}


@given(SEED, st.sampled_from(sorted(PASSED)), st.booleans(), st.booleans(), st.sampled_from([4, 9]))
def test_what_a_map_passes(seed: int, name: str, bias: bool, merged: bool, out: int) -> None:
    """Up to the first op that is not linear, or into a layer before that."""
    build = Build(seed)
    x = build.relu(build.input(None, 5, 3, 4))
    x = build.conv(x, 6, (3, 3), pads=((1, 1),) * 2, bias=bias) if merged else _wide(build, x)
    x = PASSED[name](build, x)
    last = build.rank(x) - 1
    image = build.size(x, 1) == 6
    kernel = (1,) * (build.rank(x) - 2)
    out_ = build.conv(x, out, kernel, bias=bias) if image else build.linear(x, out, bias=bias)
    plan = moved(build, build.relu(out_))
    assert last >= 2
    if name != "identity":
        assert_moved(plan)


def _wide(build: Build, x: str) -> str:
    return build.relu(build.conv(x, 6, (1, 1)))


@given(SEED, st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans())
def test_any_head_keeps_its_value(
    seed: int, rank: int, count: int, bias: bool, nested: bool
) -> None:
    build = Build(seed)
    rng = random.Random(seed)
    branches: list[str] = []
    for _ in range(count):
        factor = rng.choice([1, 2, 4])
        x = build.relu(build.input(None, rng.choice([2, 3, 5]), *[4 // factor] * rank))
        if rng.random() < 0.5:
            x = build.conv(x, rng.choice([2, 6]), (1,) * rank, bias=rng.random() < 0.5)
        branches.append(x if factor == 1 else build.resize(x, *[factor] * rank))
    joined = build.concat(*branches)
    if nested:
        joined = build.resize(build.concat(joined, joined), *[2] * rank)
    out = build.conv(joined, rng.choice([1, 4, 7]), (1,) * rank, bias=bias, name="fuse")
    plan = moved(build, build.relu(out))
    assert multiply_adds(plan.after) <= multiply_adds(plan.before)


@given(SEED)
def test_any_graph_keeps_its_values(seed: int) -> None:
    build, outs = random_build(random.Random(seed), steps=16)
    plan = moved(build, *outs)
    again = make_plan(build.graph(*outs), free={node.name for node in plan.before.nodes})
    assert str(again.after) == str(plan.after)


# ---- what stays


def upsampled(build: Build, **how: Any) -> str:
    x = build.relu(build.input(None, 6, 4, 4))
    return build.relu(build.conv(build.resize(x, 2, 2), 4, name="point", **how))


STAYS: dict[str, Callable[[Build], Sequence[str]]] = {
    "POINT: it has groups": lambda b: [upsampled(b, kernel=(1, 1), groups=2)],
    "POINT: it has a stride": lambda b: [upsampled(b, kernel=(1, 1), stride=(2, 2))],
    "POINT: it is padded": lambda b: [upsampled(b, kernel=(1, 1), pads=((1, 1), (1, 1)))],
    "POINT: it reads neighbours": lambda b: [upsampled(b, kernel=(3, 3))],
    "POINT: it is transposed": lambda b: [upsampled(b, kernel=(1, 1), transposed=True)],
    "CHANNELS: its own axis is enlarged": lambda b: [_own_axis(b)],
    "CHANNELS: its own axis is repeated": lambda b: [_repeated(b)],
    "CHANNELS: its own axis is split": lambda b: [_heads(b)],
    "SOLE_USER: another reads what is enlarged": lambda b: _read_twice(b),
    "SOLE_USER: what is enlarged is an output": lambda b: _output(b),
    "SOLE_USER: another reads what is joined": lambda b: _joined_twice(b),
    "CHEAPER: it makes less": lambda b: [_fewer(b)],
    "MEAN: a sum would add the bias often": lambda b: [_totalled(b)],
    "MEAN: an average counts zeros": lambda b: [_averaged(b)],
}


def _own_axis(b: Build) -> str:
    """With its own, another one, so that it would be worth it."""
    return b.relu(b.linear(b.resize(b.relu(b.input(None, 6, 4, 4)), 2, 2), 3))


def _repeated(b: Build, alone: bool = False) -> str:
    """Its weights take the repetition over if that is all that an operator does."""
    x = b.take(b.relu(b.input(None, 3, 4)), 1, (0, 1, 2, 0, 1, 2))[0]
    own = b.node(Take(2, ((0, 1, 2, 3, 0, 1, 2, 3),), alone), x)
    return b.relu(b.linear(own, 3))


def _heads(b: Build) -> str:
    x = b.resize(b.relu(b.input(None, 6, 4)), 2)
    return b.relu(b.linear(b.transpose(b.reshape(x, None, 2, 3, 8), 0, 3, 1, 2), 3))


def _read_twice(b: Build) -> Sequence[str]:
    up = b.resize(b.relu(b.input(None, 6, 4, 4)), 2, 2)
    return [b.relu(b.conv(up, 3, (1, 1))), b.relu(up)]


def _output(b: Build) -> Sequence[str]:
    up = b.resize(b.relu(b.input(None, 6, 4, 4)), 2, 2)
    return [b.relu(b.conv(up, 3, (1, 1))), up]


def _joined_twice(b: Build) -> Sequence[str]:
    x, y = b.relu(b.input(None, 6, 4, 4)), b.relu(b.input(None, 3, 8, 8))
    both = b.concat(b.resize(x, 2, 2), y)
    return [b.relu(b.conv(both, 3, (1, 1))), b.relu(both)]


def _fewer(b: Build) -> str:
    x = b.take(b.relu(b.input(None, 6, 4, 4)), 2, (0, 2))[0]
    return b.relu(b.conv(x, 3, (1, 1)))


def _totalled(b: Build, bias: bool = True) -> str:
    x = b.conv(b.relu(b.input(None, 6, 4, 4)), 3, (1, 1), bias=bias)
    return b.relu(b.node(Mean((2, 3), True, total=True), x))


def _averaged(b: Build, bias: bool = True) -> str:
    x = b.conv(b.relu(b.input(None, 6, 4, 4)), 3, (1, 1), bias=bias)
    return b.relu(
        b.pool(x, "avg", (3, 3), stride=(2, 2), pads=((1, 1),) * 2, count_include_pad=True)
    )


@pytest.mark.parametrize("make", STAYS.values(), ids=STAYS)
def test_a_map_stays_where_it_is(make: Callable[[Build], Sequence[str]]) -> None:
    build = Build()
    assert not moved(build, *make(build)).made


@pytest.mark.parametrize("make", [_totalled, _averaged])
def test_a_map_without_bias_passes_what_is_no_mean(make: Callable[..., str]) -> None:
    build = Build()
    assert_moved(moved(build, make(build, bias=False)))


def test_a_map_whose_weights_repeat_its_own_axis_goes_on() -> None:
    build = Build()
    plan = assert_moved(moved(build, _repeated(build, alone=True)))
    assert order(plan) == ["Activation", "Linear", "Take", "Activation"]


def test_what_is_not_free_stays() -> None:
    build = Build()
    graph = build.graph(upsampled(build, kernel=(1, 1)))
    names = {node.name for node in graph.nodes}
    assert make_plan(graph, free=names).made
    for needed in ("point", next(n.name for n in graph.nodes if isinstance(n.op, Resize))):
        assert not make_plan(graph, free=names - {needed}).made
        locked = {needed: Refusal(Reason.OTHER_READERS, "it is shared", needed)}
        assert not make_plan(graph, locked, free=names).made
    assert not make_plan(graph).made


def test_where_a_size_is_not_known_nothing_moves() -> None:
    build = Build()
    out = upsampled(build, kernel=(1, 1))
    graph = build.graph(out)
    names = {node.name for node in graph.nodes}
    for value, shape in graph.shapes.items():
        assert shape is not None
        open_ = replace(graph, shapes={**graph.shapes, value: (*shape[:-1], "width")})
        on_the_way = value not in (*graph.inputs, out)
        assert bool(make_plan(open_, free=names).made) is not on_the_way


def test_segments_of_unknown_size_stay() -> None:
    build = Build()
    x, y = build.relu(build.input(None, 6, 4, 4)), build.relu(build.input(None, 3, 8, 8))
    up = build.resize(x, 2, 2)
    graph = build.graph(build.relu(build.conv(build.concat(up, y), 3, (1, 1))))
    names = {node.name for node in graph.nodes}
    assert make_plan(graph, free=names).made
    assert not make_plan(replace(graph, shapes={**graph.shapes, up: None}), free=names).made


def test_a_row_of_pixels_is_still_enlarged() -> None:
    """ONE_PIXEL: a sum repeats along all axes or none."""
    build = Build()
    x, y = build.relu(build.input(None, 6, 1, 4)), build.relu(build.input(None, 3, 2, 8))
    plan = moved(build, build.relu(build.conv(build.concat(build.resize(x, 2, 2), y), 3, (1, 1))))
    assert kinds(assert_moved(plan))["Resize"] == 1


def test_several_pixels_are_still_repeated() -> None:
    build = Build()
    x, y = build.relu(build.input(None, 6, 2)), build.relu(build.input(None, 3, 4))
    joined = build.concat(build.take(x, 2, (0, 1, 0, 1))[0], y)
    plan = moved(build, build.relu(build.conv(joined, 3, (1,))))
    assert kinds(assert_moved(plan))["Take"] == 1


def test_a_sum_of_pixels_alone_is_still_enlarged() -> None:
    build = Build()
    ups = [build.resize(build.relu(build.input(None, 6, 1, 1)), 5, 4) for _ in range(2)]
    plan = moved(build, build.relu(build.conv(build.concat(*ups), 3, (1, 1))))
    assert kinds(assert_moved(plan))["Resize"] == 2


def test_a_branch_that_gains_nothing_stays_in_the_concatenation() -> None:
    build = Build()
    whole = [build.relu(build.input(None, 4, 8, 8)) for _ in range(2)]
    up = build.resize(build.relu(build.input(None, 4, 4, 4)), 2, 2)
    plan = moved(build, build.relu(build.conv(build.concat(whole[0], up, whole[1]), 5, (1, 1))))
    (left,) = (node for node in assert_moved(plan).after.nodes if isinstance(node.op, Concat))
    assert left.inputs == tuple(whole)
    assert kinds(plan)["Conv"] == 2


def test_the_bias_is_added_once() -> None:
    build = Build()
    x, y = build.relu(build.input(None, 3, 2, 2)), build.relu(build.input(None, 3, 4, 4))
    joined = build.concat(build.resize(x, 2, 2), y)
    plan = assert_moved(moved(build, build.relu(build.conv(joined, 3, (1, 1), bias=True))))
    ops = [node.op for node in plan.after.nodes if isinstance(node.op, Conv | Linear)]
    assert [op.bias is not None for op in ops].count(True) == 1


# ---- what it costs


def test_a_small_map_is_not_worth_more_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    build = Build()
    x, y = build.relu(build.input(None, 3, 2, 2)), build.relu(build.input(None, 3, 4, 4))
    out = build.relu(build.conv(build.concat(build.resize(x, 2, 2), y), 3, (1, 1)))
    assert moved(build, out).made
    monkeypatch.setattr(cost, "STARTED", 1 << 16)
    assert not moved(build, out).made


def test_moving_numbers_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many channels of few: fewer multiply-adds, but far more to enlarge."""
    build = Build()
    x = build.relu(build.input(None, 2, 4, 4))
    out = build.relu(build.conv(build.resize(x, 2, 2), 32, (1, 1)))
    assert moved(build, out).made
    monkeypatch.setattr(cost, "MOVED", 16)
    assert not moved(build, out).made


def test_a_gain_within_the_error_of_estimates_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build()
    out = upsampled(build, kernel=(1, 1))
    monkeypatch.setattr(placing, "GAIN", 0.76)
    assert not moved(build, out).made  # a quarter is left
    monkeypatch.setattr(placing, "GAIN", 0.74)
    assert moved(build, out).made


def test_the_work_of_nodes() -> None:
    shapes = {"x": (None, 3, 4, 4), "y": (None, 3, 8, 8), "z": (None, 5, 8, 8)}
    build = Build()
    weight = build.graph(build.conv(build.input(None, 3, 8, 8), 5, (1, 1))).nodes[0].op
    numbers = 3 * 64 + 5 * 64 + 15 + 5
    assert work(Node("c", "Conv", weight, ("y",), ("z",)), shapes) == Work(15 * 64, numbers, 1)
    enlarged = 3 * 16 + 4 * 3 * 64
    assert work(Node("r", "Resize", Resize(2), ("x",), ("y",)), shapes) == Work(0, enlarged, 1)
    assert work(Node("a", "Add", Add(), ("y", "y"), ("y",)), shapes) == Work(0, 3 * 3 * 64, 1)
    assert work(Node("t", "Take", Take(2, (None,)), ("x",), ("?",)), shapes) is None


def test_long_rows_take_no_longer_than_they_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map looks past MOST_PASSED nodes at most, and each node is on the way of few."""
    build = Build()
    x = build.relu(build.input(None, 2, 2, 2))
    for _ in range(400):
        x = build.identity(x)
    for _ in range(20):
        x = build.relu(build.conv(x, 2, (1, 1)))
    graph = build.graph(x)
    asked: list[str] = []
    origins = placing.origins

    def counted(node: Node, shapes: Any) -> Any:
        asked.append(node.name)
        return origins(node, shapes)

    monkeypatch.setattr(placing, "origins", counted)
    make_plan(graph, free={node.name for node in graph.nodes})
    assert len(asked) < 2 * (placing.MOST_PASSED + 2 * 20)


def test_what_cannot_be_moved_is_planned_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    build, outs = random_build(random.Random(3))
    plain = make_plan(build.graph(*outs))
    monkeypatch.setattr(planner, "relocation", lambda *arguments: None)
    assert str(moved(build, *outs).after) == str(plain.after)


def test_numbers_of_random_maps_are_exact_to_the_last_digits() -> None:
    build = Build(1)
    out = upsampled(build, kernel=(1, 1))
    assert difference(build, moved(build, out)) < 64 * np.finfo(np.float64).eps


def test_a_node_that_reads_nothing_is_no_map() -> None:
    assert point_map(Node("n", "arange", Opaque(), (), ("v",)), {}) is None
