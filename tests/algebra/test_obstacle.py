"""What is said of an affine that stays: both sides of it, the node, the tensor and the remedy."""

from __future__ import annotations

import pytest

from bnfold.algebra.graph import Node, Opaque
from bnfold.algebra.obstacle import Obstacle, Side, obstacle
from bnfold.algebra.plan import Outcome, Site
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import MOST_NAMES, Reason, Refusal, listed
from tests.algebra.graphs import Build, site

BN = Node("bn", "batch_norm", Opaque(), ("x",), ("y",))
NODES = {"bn": BN, "act": Node("act", "gelu", Opaque(), ("y",), ("z",))}


def _obstacle(side: Side, reason: Reason, node: str = "act") -> Obstacle:
    return obstacle(side, Refusal(reason, "it refuses", node), BN, NODES)


def _kept(*obstacles: Obstacle) -> Site:
    return Site("bn", "batch_norm", True, Outcome.KEPT, obstacles=obstacles)


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_every_reason_has_a_remedy_that_can_name_the_node(reason: Reason) -> None:
    told = _obstacle(Side.AFTER, reason)
    assert told.remedy
    assert not set("{}") & set(told.remedy)
    assert ("act (gelu)" in told.remedy) == ("{node}" in reason.remedy)
    assert (told.node, told.op) == ("act", "gelu")


@pytest.mark.parametrize("node", [None, "it left the graph"])
def test_what_concerns_no_node_concerns_the_affine_itself(node: str | None) -> None:
    told = obstacle(Side.ITSELF, Refusal(Reason.NON_FINITE, "NaN", node), BN, NODES)
    assert (told.node, told.op, str(told)) == ("bn", "batch_norm", "NaN")


def test_both_sides_are_told_with_what_refused_there() -> None:
    build = Build()
    y = build.conv(build.input(None, 3, 5, 5), 3, (1, 1), name="conv")
    end = build.relu(build.affine(y, name="bn"))
    left = site(make_plan(build.graph(end, y)), "bn")
    before, after = left.obstacles
    assert (before.side, before.reason, before.node) == (Side.BEFORE, Reason.GRAPH_OUTPUT, "bn")
    assert before.tensor == y
    assert (after.side, after.reason, after.op) == (Side.AFTER, Reason.SHIFT, "Activation")
    assert left.why == f"before it, {before.why}; after it, {after.why}"
    assert left.obstacle is before


def test_a_node_that_may_not_be_edited_is_an_obstacle_itself() -> None:
    build = Build()
    end = build.affine(build.conv(build.input(None, 3, 5, 5), 3, (1, 1)), name="bn")
    locked = {"bn": Refusal(Reason.SHARED_MODULE, "it serves two calls", "bn")}
    (told,) = site(make_plan(build.graph(end), locked), "bn").obstacles
    assert (told.side, told.reason, str(told)) == (Side.ITSELF, Reason.SHARED_MODULE, told.why)


def test_many_readers_are_counted() -> None:
    build = Build()
    y = build.conv(build.input(None, 3, 5, 5), 3, (1, 1))
    readers = [build.opaque(y) for _ in range(5)]
    plan = make_plan(build.graph(build.affine(y, name="bn"), *readers))
    assert site(plan, "bn").obstacles[0].why == (
        f"{y} is read 6 times (by opaque1, opaque2, opaque3 and 3 more)"
    )


def test_a_layer_right_before_it_can_be_computed_twice() -> None:
    build = Build()
    y = build.conv(build.input(None, 3, 5, 5), 3, (1, 1), name="conv")
    build.affine(y, name="near")
    build.affine(build.pool(y, "avg"), name="far")
    ends = [build.opaque(node.outputs[0]) for node in build.nodes if node.kind == "Affine"]
    plan = make_plan(build.graph(*ends))
    assert site(plan, "near").remedy == (
        "compute conv (Conv) once more, for this affine alone: exact, but slower"
    )
    assert "nothing for these weights" in (site(plan, "far").remedy or "")
    assert site(plan, "near").to_json()["node"] == "conv"
    assert site(plan, "near").to_json()["tensor"] == y


def test_the_remedy_is_the_one_that_a_person_can_apply() -> None:
    final, able = Reason.SHIFT, Reason.PRECISION
    told = _kept(_obstacle(Side.BEFORE, final), _obstacle(Side.AFTER, able))
    assert "store the parameters" in (told.remedy or "")
    told = _kept(_obstacle(Side.BEFORE, able), _obstacle(Side.AFTER, final))
    assert "store the parameters" in (told.remedy or "")
    told = _kept(_obstacle(Side.BEFORE, Reason.NOT_LINEAR), _obstacle(Side.AFTER, final))
    assert told.reason is final
    assert told.remedy == _obstacle(Side.AFTER, final).remedy


@pytest.mark.parametrize(
    ("fate", "remedy"),
    [
        (Site("bn", "", True, Outcome.MERGED, ("c",)), "the graph form merges it into c: "),
        (Site("bn", "", True, Outcome.FOLDED, ("c", "d")), "the graph form folds it into c, d: "),
        (Site("bn", "", True, Outcome.FOLDED), "the graph form folds it: "),
    ],
)
def test_what_the_graph_form_does_is_the_remedy(fate: Site, remedy: str) -> None:
    told = Site("bn", "", True, Outcome.KEPT, graph_form=fate)
    assert told.remedy == f"{remedy}--form graph"
    assert told.to_json()["graph_form"] == {"outcome": fate.outcome, "into": list(fate.into)}


def test_what_the_graph_form_keeps_too_is_not_sent_there() -> None:
    fate = _kept(_obstacle(Side.AFTER, Reason.ZERO_PADDING))
    told = Site("bn", "", True, Outcome.KEPT, graph_form=fate)
    assert told.remedy == fate.remedy


def test_what_was_folded_needs_no_remedy() -> None:
    told = Site("bn", "", True, Outcome.FOLDED, ("conv",)).to_json()
    empty = {key for key, value in told.items() if value in (None, [])}
    assert {"reason", "why", "node", "tensor", "remedy", "obstacles", "graph_form"} <= empty


def test_a_list_of_names_is_cut_and_counted() -> None:
    names = [f"n{i}" for i in range(7)]
    assert listed(names[:MOST_NAMES]) == "n0, n1, n2"
    assert listed(names) == "n0, n1, n2 and 4 more"
    assert listed(["a", "b", "a"]) == "a, b"
    assert listed([]) == ""
