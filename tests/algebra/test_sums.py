"""Sums of sums: their terms merge by the value they start at, wherever in them they stand."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.def_use import DefUse
from bnfold.algebra.graph import Add, Affine, Conv, Linear, Node, Op
from bnfold.algebra.merge import at_sum
from bnfold.algebra.plan import Outcome, Plan
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal
from tests.algebra.graphs import Build, planned, site

SAME = ((1, 1), (1, 1))
MINUS = Add((1.0, -1.0))


def kinds(plan: Plan) -> list[str]:
    return [type(node.op).__name__ for node in plan.after.nodes]


def wide(build: Build, x: str, name: str | None = None) -> str:
    return build.conv(x, build.size(x, 1), (3, 3), pads=SAME, name=name)


def narrow(build: Build, x: str, name: str | None = None) -> str:
    return build.conv(x, build.size(x, 1), (1, 1), bias=False, name=name)


def branching(build: Build) -> tuple[str, str]:
    """A value and another of its shape that no linear layer makes."""
    x = build.input(None, 4, 6, 5)
    return x, build.relu(build.input(None, 4, 6, 5))


def test_a_repmixer_is_one_depthwise_convolution() -> None:
    """x + scale * (mixer(x) - norm(x)), FastViT, Vasu et al. 2023, arXiv:2303.14189, 3.2."""
    build = Build()
    x = build.input(None, 4, 6, 5)
    mixer = build.conv(x, 4, (3, 3), pads=SAME, groups=4, bias=False, name="mixer")
    small = build.affine(build.conv(x, 4, (1, 1), groups=4, bias=False))
    mixed = build.add(build.add(build.affine(mixer), small), build.affine(x))
    scaled = build.affine(build.node(MINUS, mixed, build.affine(x, name="norm")), holds="scale")
    plan = planned(build, build.relu(build.add(x, scaled)))
    assert kinds(plan) == ["Conv", "Activation"]
    assert site(plan, "norm").outcome is Outcome.MERGED
    assert plan.affines.kept == 0


def test_an_inner_sum_that_cannot_merge_by_itself_merges_with_the_outer_one() -> None:
    """x - 2x has no layer of its own to go into."""
    build = Build()
    x = build.input(None, 4, 6, 5)
    inner = build.node(MINUS, x, build.relu(x, 1.0))
    assert kinds(planned(build, inner)) == ["Activation", "Add"]
    build = Build()
    x = build.input(None, 4, 6, 5)
    inner = build.node(MINUS, x, build.identity(x))
    plan = planned(build, build.relu(build.node(MINUS, wide(build, x), inner)))
    assert Counter(kinds(plan)) == {"Conv": 1, "Activation": 1}


def test_terms_of_one_root_merge_beside_a_term_of_another() -> None:
    build = Build()
    x, y = branching(build)
    total = build.add(build.add(wide(build, x, "wide"), y), narrow(build, x))
    plan = planned(build, build.relu(total))
    assert kinds(plan) == ["Activation", "Conv", "Add", "Activation"]
    assert [n.name for n in plan.after.nodes if isinstance(n.op, Conv)] == ["wide"]


def test_each_root_of_a_sum_has_its_own_convolution() -> None:
    build = Build()
    x, y = build.input(None, 4, 6, 5), build.input(None, 4, 6, 5)
    parts = [wide(build, x), wide(build, y), narrow(build, x), narrow(build, y), y, x]
    total = parts[0]
    for part in parts[1:]:
        total = build.add(total, part)
    assert Counter(kinds(planned(build, build.relu(total)))) == {
        "Conv": 2,
        "Add": 1,
        "Activation": 1,
    }


def test_kernels_that_do_not_fit_each_other_stay_and_the_rest_goes_into_one() -> None:
    build = Build()
    x = build.input(None, 4, 6, 5)
    flat = build.conv(x, 4, (1, 3), pads=((0, 0), (1, 1)))
    tall = build.conv(x, 4, (3, 1), pads=((1, 1), (0, 0)))
    total = build.add(build.add(build.add(flat, tall), narrow(build, x)), x)
    assert Counter(kinds(planned(build, build.relu(total)))) == {
        "Conv": 2,
        "Add": 1,
        "Activation": 1,
    }


@pytest.mark.parametrize("first", [True, False])
def test_what_was_subtracted_is_not_left_alone(first: bool) -> None:
    """(a(x) - y) + b(x): without a(x), -y would have to stand for the difference."""
    build = Build()
    x, y = branching(build)
    layers = [narrow(build, x), wide(build, x)]
    a, b = layers if first else layers[::-1]
    plan = planned(build, build.relu(build.add(build.node(MINUS, a, y), b)))
    assert kinds(plan).count("Conv") == (2 if first else 1)


def test_the_main_term_may_have_been_subtracted() -> None:
    build = Build()
    x = build.input(None, 4, 6, 5)
    outer = build.node(MINUS, x, build.node(MINUS, narrow(build, x), wide(build, x)))
    assert kinds(planned(build, build.relu(outer))) == ["Conv", "Activation"]
    build = Build()
    x = build.input(None, 4, 6, 5)
    outer = build.node(MINUS, narrow(build, x), build.node(MINUS, wide(build, x), x))
    assert kinds(planned(build, build.relu(outer))) == ["Conv", "Activation"]


@pytest.mark.parametrize(("others", "left"), [(1, 1), (2, 3)])
def test_an_addition_of_many_operands_dissolves_whole_or_not_at_all(others: int, left: int) -> None:
    build = Build()
    x, y = branching(build)
    values = [y] * (others - 1)
    total = build.add(wide(build, x), narrow(build, x), narrow(build, x), *values)
    plan = planned(build, build.relu(total))
    assert kinds(plan).count("Conv") == left


def test_an_inner_sum_of_the_same_value_twice_goes_altogether() -> None:
    build = Build()
    x, y = branching(build)
    total = build.add(build.add(build.add(x, x), y), wide(build, x))
    assert kinds(planned(build, build.relu(total))) == ["Activation", "Conv", "Add", "Activation"]


NOT_INNER = {
    "something else reads it": "reader",
    "it is an output": "output",
    "it may not change": "locked",
}


@pytest.mark.parametrize("case", NOT_INNER.values(), ids=NOT_INNER)
def test_a_sum_is_not_part_of_another_when(case: str) -> None:
    build = Build()
    x, y = branching(build)
    inner = build.node(Add(), wide(build, x), y, name="inner")
    ends = [build.relu(build.add(inner, narrow(build, x)))]
    if case == "reader":
        ends.append(build.relu(inner))
    if case == "output":
        ends.append(inner)
    locked = {"inner": Refusal(Reason.NOT_A_PLAIN_MODULE, "it may not")} if case == "locked" else {}
    plan = planned(build, *ends, locked=locked)
    assert kinds(plan).count("Conv") == 2


@pytest.mark.parametrize("name", ["outer", "wide", "narrow"])
def test_what_is_locked_neither_changes_nor_goes(name: str) -> None:
    build = Build()
    x = build.input(None, 4, 6, 5)
    total = build.node(Add(), wide(build, x, "wide"), narrow(build, x, "narrow"), name="outer")
    locked = {name: Refusal(Reason.NOT_A_PLAIN_MODULE, "it may not")}
    assert "Add" in kinds(planned(build, build.relu(total), locked=locked))


def test_an_operand_that_is_broadcast_does_not_stand_for_the_sum() -> None:
    """(a(x) + y) + b(x), y of one pixel: without a(x), the inner sum would have one pixel."""
    build = Build()
    x = build.input(None, 4, 6, 5)
    y = build.relu(build.input(None, 4, 1, 1))
    inner = build.add(narrow(build, x), y)
    plan = planned(build, build.relu(build.add(inner, wide(build, x))))
    assert kinds(plan).count("Conv") == 2


def test_identities_between_a_layer_and_the_sums_do_not_matter() -> None:
    build = Build()
    x, y = branching(build)
    a = build.identity(wide(build, build.identity(x)))
    inner = build.identity(build.add(build.identity(a), y))
    total = build.add(inner, build.identity(narrow(build, x)))
    assert kinds(planned(build, build.relu(total))).count("Conv") == 1


def test_a_value_that_an_identity_passes_to_several_layers_is_still_that_value() -> None:
    build = Build()
    x = build.input(None, 4, 6, 5)
    passed = build.identity(x)
    total = build.add(build.add(wide(build, passed), narrow(build, passed)), x)
    plan = planned(build, build.relu(total))
    assert kinds(plan) == ["Identity", "Conv", "Activation"]


def test_a_sum_in_one_that_is_locked_merges_by_itself() -> None:
    build = Build()
    x, y = branching(build)
    inner = build.add(wide(build, x), narrow(build, x))
    total = build.node(Add(), inner, y, name="outer")
    locked = {"outer": Refusal(Reason.NOT_A_PLAIN_MODULE, "it may not")}
    plan = planned(build, build.relu(total), locked=locked)
    assert kinds(plan).count("Conv") == 1


def mergings(build: Build, total: str) -> list[tuple[str, int, list[str]]]:
    """What becomes of a sum in one go: the layer, how many it takes, the additions that go."""
    graph = build.graph(build.relu(total))
    (add,) = (node for node in graph.nodes if node.outputs == (total,))
    found = at_sum(DefUse(graph), add, ())
    return [(m.result.name, len(m.branches), [name for name, _ in m.gone]) for m in found]


@pytest.mark.parametrize("position", [0, 3, 7])
def test_a_long_sum_merges_in_one_go(position: int) -> None:
    """Wherever the widest layer stands; else every round would take one operand only."""
    build = Build()
    x = build.input(None, 4, 6, 5)
    parts = [wide(build, x, "main") if i == position else narrow(build, x) for i in range(8)]
    total = parts[0]
    for i, part in enumerate(parts[1:]):
        total = build.node(Add(), total, part, name=f"sum{i}")
    assert mergings(build, total) == [("main", 7, [f"sum{i}" for i in range(7)])]


def test_a_term_that_was_left_by_one_merging_goes_in_the_next() -> None:
    """(((1x3 + 3x1) + 1x5) + 5x1): 1x3 moves up where 3x1 goes into 5x1, then into 1x5."""
    build = Build()
    x = build.input(None, 4, 6, 5)
    sizes = ((1, 3), (3, 1), (1, 5), (5, 1))
    parts = [
        build.conv(x, 4, (k, m), pads=((k // 2,) * 2, (m // 2,) * 2), name=f"{k}x{m}")
        for k, m in sizes
    ]
    total = parts[0]
    for i, part in enumerate(parts[1:]):
        total = build.node(Add(), total, part, name=f"sum{i}")
    found = mergings(build, total)
    assert found == [("5x1", 1, ["sum0"]), ("1x5", 1, ["sum1"])]


def test_affines_of_one_value_merge_beside_another_value() -> None:
    build = Build()
    x, y = branching(build)
    total = build.add(build.add(build.affine(x, name="a"), y), build.affine(x, name="b"))
    plan = planned(build, build.relu(build.add(total, x)))
    assert Counter(kinds(plan)) == {"Activation": 2, "Affine": 1, "Add": 1}
    assert {site(plan, "a").outcome, site(plan, "b").outcome} == {Outcome.KEPT, Outcome.MERGED}


def test_an_affine_that_was_subtracted_takes_the_sign_on() -> None:
    build = Build()
    x = build.input(None, 4, 6, 5)
    plan = planned(build, build.relu(build.node(MINUS, x, build.affine(x))))
    assert kinds(plan) == ["Affine", "Activation"]
    build = Build()
    x, y = branching(build)
    inner = build.add(build.affine(x), x)
    plan = planned(build, build.relu(build.node(MINUS, y, inner)))
    assert Counter(kinds(plan)) == {"Activation": 2, "Affine": 1, "Add": 1}


def test_a_layer_that_took_another_over_keeps_it_when_it_is_taken_over() -> None:
    """Of three operands the main one cannot be the only one left, so the other main goes first."""
    build = Build()
    x, y = branching(build)
    third = build.add(y, build.relu(y, 0.5), wide(build, x, "third"))
    second = build.add(wide(build, x, "second"), y)
    average = build.pool(x, "avg", (3, 3), pads=SAME, count_include_pad=True)
    total = build.add(build.add(third, second), build.add(y, average))
    plan = planned(build, build.relu(total))
    assert [n.name for n in plan.after.nodes if isinstance(n.op, Conv)] == ["third"]
    assert "Pool" not in kinds(plan)


def test_an_inner_sum_is_left_to_the_outer_one() -> None:
    build = Build()
    x, y = branching(build)
    inner = build.node(Add(), wide(build, x), narrow(build, x), name="inner")
    graph = build.graph(build.relu(build.identity(build.add(build.identity(inner), y))))
    (add,) = (node for node in graph.nodes if node.name == "inner")
    assert at_sum(DefUse(graph), add, ()) == []
    assert len(at_sum(DefUse(graph), add, [graph.nodes[-3].name])) == 1


HELD = {
    "a scale takes the value itself": ("scale", "itself", True),
    "a scale takes another scale": ("scale", "scale", True),
    "a scale cannot take a shift": ("scale", "shift", False),
    "a shift cannot take the value itself": ("shift", "itself", False),
    "a BatchNorm takes a shift": ("both", "shift", True),
}


@pytest.mark.parametrize(("own", "other", "merges"), HELD.values(), ids=HELD)
def test_a_native_node_holds_what_it_can(own: str, other: str, merges: bool) -> None:
    build = Build()
    x = build.input(None, 4, 6, 5)
    main = build.affine(x, holds=own)  # type: ignore[arg-type]
    second = x if other == "itself" else build.affine(x, holds=other)  # type: ignore[arg-type]
    plan = planned(build, build.relu(build.add(main, second), -0.5))
    assert ("Add" not in kinds(plan)) == merges


@pytest.mark.parametrize("first", [None, 1])
def test_a_uniform_scale_does_not_become_one_of_many_channels(first: int | None) -> None:
    """Its constant is one number, and its layout is not known to fit more."""
    build = Build()
    x = build.input(None, 4, 6, 5)
    main = build.affine(x, first, holds="scale")
    other = build.conv(build.relu(x), 4, (1, 1))
    second = build.affine(x, 1 if first is None else None, holds="scale")
    total = build.add(build.add(main, other), second)
    plan = planned(build, build.relu(total))
    native = next(n for n in plan.before.nodes if n.name == _only_affine(plan).name)
    assert native.op.affine.axes == (1,)  # type: ignore[union-attr]


def _only_affine(plan: Plan) -> Node:
    (node,) = (n for n in plan.after.nodes if isinstance(n.op, Affine))
    return node


def cost(build: Build, nodes: tuple[Node, ...]) -> tuple[int, int]:
    """Multiply-adds of one sample, and weights, of all layers."""
    sizes = {name: values[0] for name, values in build.values.items()}
    work = weights = 0
    for node in nodes:
        op: Op = node.op
        if isinstance(op, Conv | Linear):
            count = int(np.prod(op.weight.shape))
            data = sizes[node.inputs[0] if _is_transposed(op) else node.outputs[0]]
            channels = op.in_channels if _is_transposed(op) else op.weight.shape[0]  # type: ignore[union-attr]
            work += count * data[0].size // channels
            weights += count
    return work, weights


def _is_transposed(op: Op) -> bool:
    return isinstance(op, Conv) and op.transposed


TERMS = ["conv", "point", "depthwise", "strips", "dilated", "identity", "affine", "average"]
TERMS += ["row", "short row", "other", "shared", "dropout", "sum", "sum", "weighted", "weighted"]


def random_terms(build: Build, choose: random.Random, x: str, other: str, depth: int = 0) -> str:
    """A random linear map of x, or a sum or difference of several, or another value."""
    rank = build.rank(x) - 2
    same, ones = ((1, 1),) * rank, (1,) * rank
    bias = choose.random() < 0.5
    match choose.choice(TERMS if depth < 4 else TERMS[:-4]):
        case "conv":
            groups = choose.choice([1, 1, 2])
            return build.conv(x, 4, (3,) * rank, pads=same, groups=groups, bias=bias)
        case "point":
            return build.conv(x, 4, ones, groups=choose.choice([1, 2, 4]), bias=bias)
        case "depthwise":
            return build.conv(x, 4, (3,) * rank, pads=same, groups=4, bias=bias)
        case "strips":
            pads = (*same[1:], (0, 0))
            return build.conv(x, 4, (*(3,) * (rank - 1), 1), pads=pads, bias=bias)
        case "dilated":
            twice = ((2, 2),) * rank
            return build.conv(x, 4, (3,) * rank, dilation=(2,) * rank, pads=twice, bias=bias)
        case "affine":
            return build.affine(x, choose.choice([1, None]), shift=bias)
        case "average":
            return build.pool(x, "avg", (3,) * rank, pads=same, count_include_pad=True)
        case "row":
            first = build.conv(x, choose.choice([1, 2, 7]), ones, bias=bias)
            return build.conv(first, 4, (3,) * rank, pads=same)
        case "short row":
            first = build.conv(x, 4, (3,) * rank, pads=same, bias=bias)
            return build.affine(build.conv(first, 4, ones, groups=choose.choice([1, 4])))
        case "other":
            return other
        case "shared":
            build.conv(x, 4, ones, name=f"shared{len(build.nodes)}")
            return build.relu(build.nodes[-1].outputs[0])
        case "dropout":
            return build.identity(x)
        case "sum" | "weighted" as kind:
            parts = [
                random_terms(build, choose, x, other, depth + 1)
                for _ in range(choose.choice([2, 2, 2, 3]))
            ]
            factors = [1.0, *(choose.choice([1.0, -1.0, 0.3, -2.5]) for _ in parts[1:])]
            choose.shuffle(factors)
            return build.node(Add(tuple(factors) if kind == "weighted" else ()), *parts)
    return x


def random_sum(seed: int) -> tuple[Build, list[str]]:
    choose = random.Random(seed)
    build = Build(seed)
    x = build.input(None, 4, *[choose.choice([5, 6])] * choose.choice([1, 2]))
    other = build.relu(build.input(None, *[int(s or 0) for s in build.shape(x)[1:]]))
    parts = [random_terms(build, choose, x, other, 1) for _ in range(choose.randint(2, 4))]
    total = parts[0]
    for part in parts[1:]:
        total = build.add(total, part)
    ends = [build.relu(total)]
    if choose.random() < 0.2:
        ends.append(choose.choice(build.nodes).outputs[0])
    return build, list(dict.fromkeys(ends))


@given(st.integers(0, 2**32 - 1))
def test_any_sum_of_sums_keeps_its_value_and_does_not_cost_more(seed: int) -> None:
    build, ends = random_sum(seed)
    plan = planned(build, *ends)
    before, after = (cost(build, graph.nodes) for graph in (plan.before, plan.after))
    assert after[0] <= before[0]
    assert after[1] <= before[1]
    assert str(make_plan(build.graph(*ends)).after) == str(plan.after)


def test_most_of_these_sums_lose_layers_of_every_kind() -> None:
    """A rule that never fires would pass the test above."""
    gone: Counter[str] = Counter()
    for seed in range(60):
        build, ends = random_sum(seed)
        plan = make_plan(build.graph(*ends))
        left = {node.name for node in plan.after.nodes}
        gone.update({type(n.op).__name__ for n in plan.before.nodes if n.name not in left})
    assert all(gone[kind] > count for kind, count in {"Add": 40, "Conv": 30, "Pool": 10}.items())
    assert gone["Affine"] > 10
