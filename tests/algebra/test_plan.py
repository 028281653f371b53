"""The planner: who may be changed, where an affine ends up, and that nothing else changes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine, Conv, Identity, Layer, Node, Op, Opaque
from bnfold.algebra.plan import Count, Outcome, Plan
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules import RULES, Rules
from bnfold.algebra.rules.move import Answer, Shapes
from tests.algebra.graphs import (
    Build,
    assert_folded,
    assert_kept,
    difference,
    param,
    planned,
    random_build,
    site,
)


def _start(channels: int = 3) -> tuple[Build, str]:
    build = Build()
    return build, build.input(None, channels, 5, 5)


def _left(plan: Plan) -> list[str]:
    return [s.name for s in plan.sites if s.outcome is Outcome.KEPT]


# Whose value it is


def test_a_convolution_read_by_something_else_too_is_left_alone() -> None:
    build, x = _start()
    y = build.conv(x, 3, (3, 3))
    out = build.relu(build.affine(y))
    left = assert_kept(build, Reason.OTHER_READERS, out, build.pool(y, "max"))
    assert "is read 2 times (by affine1, pool3)" in (left.why or "")


def test_a_convolution_read_by_two_batchnorms_folds_neither() -> None:
    build, x = _start()
    y = build.conv(x, 3, (3, 3))
    plan = planned(build, *(build.relu(build.affine(y)) for _ in range(2)))
    assert {s.reason for s in plan.sites} == {Reason.OTHER_READERS}


def test_a_convolution_whose_output_is_an_output_of_the_model_is_left_alone() -> None:
    build, x = _start()
    y = build.conv(x, 3, (3, 3))
    left = assert_kept(build, Reason.GRAPH_OUTPUT, build.relu(build.affine(y)), y)
    assert f"{y} is an output of the model" in (left.why or "")


def test_an_affine_whose_result_is_an_output_leaves_an_identity_behind() -> None:
    build, x = _start()
    y = build.affine(build.conv(x, 3, (3, 3), name="conv"), name="bn")
    plan = planned(build, y, build.relu(y))
    assert site(plan, "bn").into == ("conv",)
    after = {n.name: n for n in plan.after.nodes}
    assert isinstance(after["bn"].op, Identity)
    assert after["bn"].outputs == (y,)
    assert [n.name for n in plan.dissolved()] == ["bn"]
    assert [b.name for b, _ in plan.changed()] == ["conv"]


def test_an_affine_whose_result_is_an_output_does_not_go_down() -> None:
    build, x = _start()
    y = build.affine(x)
    assert_kept(build, Reason.GRAPH_OUTPUT, build.conv(y, 2, (3, 3)), y)


def test_every_reader_must_take_its_part() -> None:
    build, x = _start()
    a = build.affine(x, name="bn")
    one, two = build.conv(a, 2, (3, 3), name="one"), build.conv(a, 2, (1, 1), name="two")
    assert site(assert_folded(build, one, two), "bn").into == ("one", "two")

    build, x = _start()
    a = build.affine(x)
    outs = build.conv(a, 2, (3, 3)), build.conv(a, 2, (3, 3), pads=((1, 1), (1, 1)))
    assert_kept(build, Reason.ZERO_PADDING, *outs)


def test_an_affine_that_nothing_reads_is_kept_as_it_is() -> None:
    build, x = _start()
    out = build.relu(x)
    build.affine(x, name="dead")
    assert assert_kept(build, Reason.NO_READER, out).name == "dead"


def test_a_value_read_twice_by_one_node_is_changed_for_both_or_not_at_all() -> None:
    build, x = _start()
    a = build.affine(x)
    assert_folded(build, build.conv(build.concat(a, a), 2, (1, 1)))
    build, x = _start()
    a = build.affine(x)
    assert_kept(build, Reason.OTHER_OPERAND, build.conv(build.add(a, a), 2, (1, 1)))
    build, x = _start()
    y = build.conv(x, 3, (1, 1))
    assert_kept(build, Reason.OTHER_READERS, build.affine(build.add(y, y)))


def test_a_diamond_that_joins_again_takes_both_parts() -> None:
    build, x = _start()
    a = build.affine(x, sign="plus", shift=False)
    both = build.concat(build.relu(a), build.relu(a, 0.3), build.pool(a, "max", (1, 1)))
    assert_folded(build, build.conv(both, 2, (3, 3), pads=((1, 1), (1, 1))))


# Where it goes


def test_a_shared_parameter_is_copied_and_never_changed_under_its_other_reader() -> None:
    build, x = _start()
    tied = param("tied", build.numbers(3, 3, 1, 1))
    one = build.affine(build.conv(x, 3, (1, 1), weight=tied, name="one"))
    two = build.conv(x, 3, (1, 1), weight=tied, name="two")
    plan = assert_folded(build, one, two)
    ops = {n.name: n.op for n in plan.after.nodes}
    assert isinstance(ops["one"], Conv)
    assert isinstance(ops["two"], Conv)
    assert ops["two"].weight is tied
    assert ops["one"].weight is not tied
    assert ops["one"].weight.name == "tied"


def test_one_op_object_in_two_nodes_is_edited_in_one() -> None:
    build, x = _start()
    y = build.conv(x, 3, (1, 1), name="first")
    op = build.nodes[0].op
    again = build.node(op, x, name="again")
    plan = assert_folded(build, build.affine(y), again)
    assert [n.name for n in plan.after.nodes if n.op is op] == ["again"]


@pytest.mark.parametrize("before", [True, False], ids=["before a layer", "after a layer"])
def test_a_chain_of_batchnorms_folds_as_one_and_each_names_where_it_went(before: bool) -> None:
    build, x = _start()
    if not before:
        x = build.conv(x, 3, (3, 3), name="conv")
    for number in range(4):
        x = build.affine(x, name=f"bn{number}")
    plan = assert_folded(build, build.conv(x, 2, (3, 3), name="conv") if before else x)
    assert {s.into for s in plan.sites} == {("conv",)}


def test_a_chain_that_has_to_stay_becomes_one_node() -> None:
    build, x = _start()
    for number in range(4):
        x = build.affine(x, name=f"bn{number}")
    plan = planned(build, build.opaque(x), same=False)
    assert _left(plan) == ["bn0"]
    assert {s.into for s in plan.sites} == {("bn0",), ()}
    assert [n.name for n in plan.after.nodes] == ["bn0", "opaque4"]


def test_multiplications_and_additions_in_turn_all_reach_the_layer_below() -> None:
    build, x = _start()
    for number in range(6):
        x = build.affine(x, holds="shift" if number % 2 else "scale")
    assert_folded(build, build.conv(x, 2, (3, 3)))


def test_batchnorms_on_both_sides_fold_into_the_one_layer_between() -> None:
    build, x = _start()
    assert_folded(build, build.affine(build.conv(build.affine(x), 2, (3, 3)), 1))


def test_a_site_folded_through_branches_names_each_layer_once_in_graph_order() -> None:
    build, x = _start()
    parts = [build.conv(x, 2, (1, 1), name=f"c{i}") for i in range(3)]
    out = build.affine(build.affine(build.concat(*parts), name="a"), name="b")
    plan = assert_folded(build, out)
    assert {s.into for s in plan.sites} == {("c0", "c1", "c2")}


def test_what_is_folded_into_an_affine_that_stays_names_that_affine() -> None:
    build, x = _start()
    held = build.relu(build.affine(x, name="stays", sign="plus"))
    y = build.conv(x, 3, (1, 1), name="conv")
    out = build.affine(build.add(held, y), name="bn", sign="plus")
    plan = planned(build, out)
    assert _left(plan) == ["stays"]
    assert site(plan, "bn").into == ("stays", "conv")


def test_amplification_is_the_largest_scale() -> None:
    build, x = _start(2)
    a = Affine(ChannelAffine.on_axis(1, build.numbers(2) * 0 + [-3.0, 2.0], build.numbers(2)))
    plan = assert_folded(build, build.node(a, build.conv(x, 2, (1, 1)), name="bn"))
    assert site(plan, "bn").amplification == 3.0


# Locks, opaque sites, and what is shown

LOCK = Refusal(Reason.SHARED_MODULE, "one module serves two calls", "conv")


def test_a_locked_layer_is_not_edited_and_its_reason_is_given() -> None:
    build, x = _start()
    out = build.affine(build.conv(x, 3, (3, 3), name="conv"), name="bn")
    plan = planned(build, out, locked={"conv": LOCK})
    assert site(plan, "bn").reason is Reason.SHARED_MODULE
    assert "one module serves two calls" in (site(plan, "bn").why or "")
    assert list(plan.changed()) == []


def test_with_a_locked_layer_above_an_affine_goes_down() -> None:
    build, x = _start()
    y = build.affine(build.conv(x, 3, (3, 3), name="conv"), name="bn")
    plan = planned(build, build.conv(y, 2, (1, 1), name="next"), locked={"conv": LOCK})
    assert site(plan, "bn").into == ("next",)


def test_a_locked_affine_stays_and_takes_nothing() -> None:
    build, x = _start()
    y = build.affine(build.affine(x, name="first"), name="second")
    plan = planned(build, build.relu(y), locked={"second": LOCK})
    assert _left(plan) == ["first", "second"]
    assert {s.reason for s in plan.sites} == {Reason.SHARED_MODULE}


def test_a_lock_does_not_stop_what_only_passes() -> None:
    build, x = _start()
    y = build.conv(x, 3, (3, 3))
    out = build.affine(build.pool(y, "avg"), name="bn")
    plan = planned(build, out, locked={"pool1": LOCK})
    assert plan.affines == Count(1, 1, 0)


def test_a_refused_batchnorm_is_a_kept_site() -> None:
    build, x = _start()
    refusal = Refusal(Reason.BATCH_STATISTICS, "it has no running statistics")
    out = build.opaque(x, refusal)
    plan = planned(build, build.affine(out), same=False)
    opaque, bn = plan.sites
    assert (opaque.outcome, opaque.reason, opaque.why) == (
        Outcome.KEPT,
        Reason.BATCH_STATISTICS,
        "it has no running statistics",
    )
    assert bn.outcome is Outcome.KEPT
    assert plan.batchnorms == Count(2, 0, 2)


def test_counts_tell_batchnorms_from_other_affines() -> None:
    build, x = _start()
    y = build.affine(build.affine(build.conv(x, 3, (3, 3)), holds="scale"))
    plan = planned(build, build.affine(build.opaque(y)), same=False)
    assert (plan.batchnorms, plan.affines) == (Count(2, 1, 1), Count(3, 2, 1))


def test_a_graph_without_affines_is_its_own_plan() -> None:
    build, x = _start()
    plan = planned(build, build.relu(build.conv(x, 3, (3, 3))))
    assert plan.sites == ()
    assert plan.after.nodes == plan.before.nodes
    assert plan.to_json() == {"sites": []}
    assert str(plan) == ""


def test_both_directions_are_explained() -> None:
    build, x = _start()
    out = build.conv(build.affine(x, name="bn"), 2, (3, 3), pads=((1, 0), (0, 1)))
    assert str(planned(build, out)) == (
        "bn (Affine): kept, because before it, x0 is an input of the model; after it, conv1 "
        "(Conv): it pads its input with zeros (1+0x0+1), which the shift would not reach"
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_same_graph_gives_the_same_plan(seed: int) -> None:
    texts = []
    for _ in range(2):
        build, ends = random_build(random.Random(seed))
        plan = make_plan(build.graph(*ends))
        texts.append((json.dumps(plan.to_json()), str(plan.after)))
    assert texts[0] == texts[1]
    assert texts[0][0] == json.dumps(json.loads(texts[0][0]))


# Random graphs


@given(st.integers(0, 1 << 40), st.integers(2, 20))
def test_no_plan_of_any_graph_changes_what_it_computes(seed: int, steps: int) -> None:
    build, ends = random_build(random.Random(seed), steps)
    plan = make_plan(build.graph(*ends))
    for s in plan.sites:
        event(str(s.reason or s.outcome))
    assert difference(build, plan) < 1e-9, f"{plan.before}\n{plan}"
    _consistent(plan)


def _consistent(plan: Plan) -> None:
    after = {n.name: n for n in plan.after.nodes}
    for s in plan.sites:
        if s.outcome is Outcome.KEPT:
            assert s.reason is not None
            assert s.why
            assert isinstance(after[s.name].op, Affine | Opaque)
        else:
            assert s.name not in after or isinstance(after[s.name].op, Identity)
            assert all(isinstance(after[name].op, Layer | Affine) for name in s.into)


def _counted(tally: Counter[str], op: type[Op], rules: Rules) -> Rules:
    def wrap(direction: str, rule: Callable[..., Answer]) -> Callable[..., Answer]:
        def counted(
            own: Op, node: Node, affine: ChannelAffine, port: int, shapes: Shapes
        ) -> Answer:
            answer = rule(own, node, affine, port, shapes)
            what = (
                "refused"
                if isinstance(answer, Refusal)
                else "passed"
                if answer[0].node is None
                else "absorbed"
            )
            tally[f"{op.__name__} {direction} {what}"] += 1
            return answer

        return counted

    return Rules(wrap("up", rules.up), wrap("down", rules.down))


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts every answer of every rule while the test runs."""
    counts: Counter[str] = Counter()
    for op, rules in list(RULES.items()):
        monkeypatch.setitem(RULES, op, _counted(counts, op, rules))
    return counts


ANSWERS = {
    "Conv": ["absorbed", "refused"],
    "Linear": ["absorbed", "refused"],
    "Affine": ["absorbed", "refused"],
    "Concat": ["passed"],
    "Pool": ["passed", "refused"],
    "AdaptivePool": ["passed", "refused"],
    "Mean": ["passed"],
    "Activation": ["passed", "refused"],
    "Reshape": ["passed"],
    "Transpose": ["passed"],
    "Take": ["passed"],
    "Resize": ["passed", "refused"],
    "WeightedMean": ["passed", "refused"],
    "Multiply": ["passed", "refused"],
    "MatMul": ["passed", "refused"],
    "PixelShuffle": ["passed"],
    "Identity": ["passed"],
}


def test_every_rule_answers_in_every_way_in_three_hundred_graphs(tally: Counter[str]) -> None:
    for seed in range(300):
        build, ends = random_build(random.Random(seed), 16)
        plan = make_plan(build.graph(*ends))
        assert difference(build, plan) < 1e-9, f"seed {seed}\n{plan.before}\n{plan}"
    wanted = {
        f"{op} {direction} {answer}"
        for op, answers in ANSWERS.items()
        for direction in ("up", "down")
        for answer in answers
    } | {"Add up passed", "Add down refused", "Mean down refused"}
    assert wanted - set(tally) == set()


# Linear time

BLOCKS: dict[str, Callable[[Build, str], str]] = {
    "BatchNorm and ReLU": lambda b, x: b.relu(b.affine(x)),
    "scale and ReLU": lambda b, x: b.relu(b.affine(x, sign="plus", shift=False)),
    "BatchNorm": lambda b, x: b.affine(x),
    "Conv, BatchNorm and ReLU": lambda b, x: b.relu(b.affine(b.conv(x, 2, (1, 1)))),
    "BatchNorm, ReLU and Conv": lambda b, x: b.conv(b.relu(b.affine(x)), 2, (1, 1)),
    "multiplication and addition": lambda b, x: b.affine(b.affine(x, holds="scale"), holds="shift"),
    "channel shuffle": lambda b, x: b.shuffle(b.relu(b.affine(x)), 2),
    "gate": lambda b, x: b.multiply(
        b.relu(b.affine(x, shift=False)), b.conv(b.mean(x, 2, 3, keepdims=True), 2, (1, 1))
    ),
    "residual": lambda b, x: b.relu(b.add(x, b.affine(b.conv(x, 2, (1, 1))))),
    "residual before activation": lambda b, x: b.add(x, b.conv(b.relu(b.affine(x)), 2, (1, 1))),
    "residual that carries a shift": lambda b, x: b.add(
        x, b.conv(b.relu(b.affine(x, sign="plus")), 2, (1, 1))
    ),
    "shift and residual": lambda b, x: b.add(b.affine(x, holds="shift"), b.relu(x)),
}


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("end", ["conv", "opaque"])
def test_twice_the_blocks_take_twice_the_questions(
    block: Callable[[Build, str], str], end: str, tally: Counter[str]
) -> None:
    def questions(blocks: int) -> int:
        tally.clear()
        build = Build()
        x = build.input(None, 2, 1, 1)
        for _ in range(blocks):
            x = block(build, x)
            # keep the numbers in range: only the questions matter here
            build.values[x] = build.values["x0"]
        make_plan(build.graph(build.conv(x, 2, (1, 1)) if end == "conv" else build.opaque(x)))
        return sum(tally.values())

    few, many = questions(200), questions(400)
    assert many <= 2.2 * few
