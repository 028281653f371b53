"""An affine behind an embedding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.graph import Embedding, Graph, Linear, Node
from bnfold.algebra.plan import Outcome
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rounding import make_rounded_plan
from tests.algebra.graphs import Build, assert_folded, assert_kept


@given(st.integers(0, 1 << 20), st.sampled_from([2, None]), st.integers(1, 5))
def test_the_table_takes_it(seed: int, axis: int | None, channels: int) -> None:
    build = Build(seed)
    assert_folded(build, build.affine(build.embedding(build.input(None, 5), channels), axis))


def test_another_axis_is_refused() -> None:
    """FEATURES: even where it has as many indices as the table has channels."""
    build = Build()
    y = build.embedding(build.input(None, 4), 4)
    assert_kept(build, Reason.WRONG_AXIS, build.affine(y, 1))


def test_what_it_reads_are_indices() -> None:
    build = Build()
    x = build.affine(build.input(None, 4), None, shift=False)
    assert_kept(build, Reason.NOT_LINEAR, build.embedding(x, 4))


def _tied(build: Build, *ends: str) -> Graph:
    """Every parameter is one and the same, in float32."""
    graph = build.graph(*ends)
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node.op, Embedding | Linear):
            weight = replace(node.op.weight, name="tied", dtype="float32")
            node = node.with_op(replace(node.op, weight=weight))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


@pytest.mark.parametrize("other", ["alike", "another", "head"])
def test_a_table_that_something_else_reads_is_not_doubled(other: str) -> None:
    build = Build()
    x, z = build.input(None, 5), build.input(None, 3)
    first = build.embedding(x, 4)
    op = next(node.op for node in build.nodes if isinstance(node.op, Embedding))
    second = build.node(op, z) if other != "head" else build.linear(build.input(None, 4), 9)
    scaled = build.affine(first, 2, shift=False)
    affine = build.nodes[-1].op
    ends = [build.relu(scaled)]
    if other == "alike":
        ends.append(build.relu(build.node(affine, second)))
    elif other == "another":
        ends.append(build.relu(build.affine(second, 2, shift=False)))
    else:
        ends.append(build.relu(second))
    plan, _ = make_rounded_plan(_tied(build, *ends), {})
    outcomes = {site.outcome for site in plan.sites}
    assert outcomes == ({Outcome.FOLDED} if other == "alike" else {Outcome.KEPT})
    if other != "alike":
        assert plan.sites[0].reason is Reason.SHARED_MODULE


def test_a_row_that_is_too_small_for_the_type_is_found_by_channel() -> None:
    """Rounding judges a table by channels, its last axis: one may vanish, all may not."""
    build = Build()
    y = build.embedding(build.input(None, 3), 2)
    scale = np.array([1e-44, 1e-44])
    build.affine(y, 2, shift=False)
    graph = build.graph(build.nodes[-1].outputs[0])
    affine = graph.nodes[-1].op
    node = graph.nodes[-1].with_op(replace(affine, affine=replace(affine.affine, scale=scale)))
    tied = _tied(build, *graph.outputs)
    plan, _ = make_rounded_plan(replace(tied, nodes=(*tied.nodes[:-1], node)), {})
    assert plan.sites[0].reason is Reason.PRECISION
