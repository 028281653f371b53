"""How many folds each rule makes in random graphs: a rule that never fires would be seen here.

A fold is a rule's if it is gone once the rule refuses. That an answer was given is not enough: a
question that is granted here may be refused further on, and then nothing happens.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

import tests.algebra.graphs
from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Embedding, Graph, Node, Op, Opaque, Recurrent
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rules import RULES, Answer, Shapes
from bnfold.algebra.rules.move import refused
from tests.algebra.graphs import KINDS, Build, random_build

EACH = 150
"""Graphs for each kind of node, in which that kind is frequent."""

COMMON = ["conv", "point", "affine", "affine", "relu", "opaque"]
"""What is in all of them: without layers and affines nothing folds."""

Sites = set[tuple[int, str]]
"""Number of the graph, name of the affine."""


def sum_of_two(build: Build) -> str:
    x = build.input(None, 3, 5, 5)
    return build.affine(build.add(build.conv(x, 4, (3, 3)), build.conv(build.relu(x), 4, (3, 3))))


def shift_before_a_sum(build: Build) -> str:
    x = build.input(None, 3, 5, 5)
    shifted = build.affine(x, holds="shift")
    return build.relu(build.add(shifted, build.conv(build.relu(x), 3, (1, 1))))


def scale_of_a_product(build: Build) -> str:
    value = build.linear(build.input(None, 4, 6), 5)
    return build.affine(build.matmul(build.input(None, 3, 4), value), 2, shift=False)


def shuffled(build: Build) -> str:
    return build.affine(build.pixels(build.conv(build.input(None, 3, 4, 5), 8, (1, 1)), 2))


def before_a_shuffle(build: Build) -> str:
    x = build.affine(build.input(None, 8, 4, 6))
    return build.conv(build.pixels(x, 2, inverse=True), 3, (1, 1))


def rows_of_a_table(build: Build) -> str:
    return build.affine(build.embedding(build.input(None, 5), 4), 2)


def shift_before_a_norm(build: Build) -> str:
    x = build.affine(build.input(None, 4, 3, 5), holds="shift")
    return build.relu(build.norm(x, groups=4))


NEVER = {(Embedding, "down"), (Recurrent, "up"), (Recurrent, "down")}
"""Rules that refuse everything; and what cannot be evaluated, and lies in no graph here."""

WRITTEN = [
    *(rows_of_a_table, shift_before_a_norm, sum_of_two, shift_before_a_sum),
    *(scale_of_a_product, shuffled, before_a_shuffle),
]
"""For the rules that random graphs hardly ever give a chance."""


@pytest.fixture(scope="module")
def graphs() -> list[Graph]:
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in dict.fromkeys(KINDS):
            patch.setattr(tests.algebra.graphs, "KINDS", [*COMMON, *[kind] * 4])
            for seed in range(EACH):
                build, ends = random_build(random.Random(f"{kind} {seed}"), 4 + seed % 8)
                found.append(build.graph(*ends))
    for write in WRITTEN:
        build = Build()
        found.append(build.graph(write(build)))
    return found


@pytest.fixture(scope="module")
def folded(graphs: list[Graph]) -> Sites:
    return _folded(graphs, object)


def _folded(graphs: list[Graph], op: type) -> Sites:
    """What folds in the graphs that have a node of `op`."""
    return {
        (i, site.name)
        for i, graph in enumerate(graphs)
        if any(isinstance(node.op, op) for node in graph.nodes)
        for site in make_plan(graph).sites
        if site.reason is None
    }


def _refuse(op: Op, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return refused(Reason.NOT_LINEAR, node, "its rule is switched off")


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("op", [op for op in RULES if op is not Opaque], ids=lambda op: op.__name__)
def test_the_rule_makes_folds(
    op: type[Op],
    direction: str,
    graphs: list[Graph],
    folded: Sites,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    having = {i for i, graph in enumerate(graphs) if any(isinstance(n.op, op) for n in graph.nodes)}
    if (op, direction) in NEVER:
        return
    monkeypatch.setitem(RULES, op, RULES[op]._replace(**{direction: _refuse}))
    lost = {site for site in folded if site[0] in having} - _folded(graphs, op)
    record_property("rule", (op.__name__, direction, len(lost)))
    assert lost
