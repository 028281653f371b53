"""An affine before a recurrent layer, of which only what it reads of a sequence is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine, Graph, Identity, Node, Recurrent
from bnfold.algebra.plan import Outcome
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason
from tests.algebra.graphs import param

RNG = np.random.default_rng(0)
OP = Recurrent(
    *(param("w", RNG.normal(size=(6, 4))), param("c", RNG.normal(size=6))),
    *(param("v", RNG.normal(size=(6, 4))), param("d", RNG.normal(size=6))),
)
X = RNG.normal(size=(3, 5, 4))


def graph(op: Recurrent, *axes: int, port: int = 0, shift: bool = True) -> Graph:
    """A sequence [3, 5, 4] and a state [5, 4], one of them behind an affine."""
    value, shape = ("x", (3, 5, 4)) if port == 0 else ("h", (5, 4))
    sizes = tuple(shape[axis] for axis in axes)
    scale, shifts = RNG.normal(size=sizes), RNG.normal(size=sizes) * shift
    affine = Node("a", "Affine", Affine(ChannelAffine(axes, scale, shifts)), (value,), ("y",))
    read = ("y", "h") if port == 0 else ("x", "y")
    layer = Node("rnn", "LSTM", op, read, ("z", "last"))
    shapes = {"x": (3, 5, 4), "h": (5, 4), "y": shape, "z": (3, 5, 6)}
    return Graph(("x", "h"), (affine, layer), ("z", "last"), shapes)


@pytest.mark.parametrize("op", [OP, Recurrent(OP.weight, OP.bias)], ids=["both ways", "one way"])
@pytest.mark.parametrize("shift", [True, False])
def test_what_its_gates_read_stays_what_it_was(op: Recurrent, shift: bool) -> None:
    before = graph(op, 2, shift=shift)
    plan = make_plan(before)
    assert [(s.outcome, s.into) for s in plan.sites] == [(Outcome.FOLDED, ("rnn",))]
    assert isinstance(before.nodes[0].op, Affine)
    read = before.nodes[0].op.affine.on(X)
    (layer,) = plan.after.nodes
    assert isinstance(layer.op, Recurrent)
    for weight, bias in (("weight", "bias"), ("reverse_weight", "reverse_bias")):
        was, now = ((getattr(o, weight), getattr(o, bias)) for o in (op, layer.op))
        if was[0] is None:
            assert now == (None, None)
            continue
        wanted = read @ was[0].load().T + was[1].load()
        assert np.allclose(X @ now[0].load().T + now[1].load(), wanted, rtol=1e-13, atol=1e-13)


def test_without_biases_there_is_room_for_a_scale_alone() -> None:
    plain = replace(OP, bias=None, reverse_bias=None)
    assert make_plan(graph(plain, 2, shift=False)).sites[0].outcome is Outcome.FOLDED
    kept = make_plan(graph(plain, 2)).sites[0]
    assert {each.reason for each in kept.obstacles} == {Reason.GRAPH_INPUT, Reason.FORM}


@pytest.mark.parametrize(
    ("axis", "port", "reason"),
    [(2, 0, None), (0, 0, Reason.WRONG_AXIS), (1, 0, Reason.WRONG_AXIS), (1, 1, Reason.NOT_LINEAR)],
    ids=["folds", "FEATURES, time", "FEATURES, batch", "INPUT"],
)
def test_each_condition_is_needed(axis: int, port: int, reason: Reason | None) -> None:
    (site,) = make_plan(graph(OP, axis, port=port)).sites
    assert reason is None or reason in {each.reason for each in site.obstacles}
    assert (reason is None) == (site.outcome is Outcome.FOLDED)


def test_what_it_makes_is_what_it_reads_next() -> None:
    affine = ChannelAffine((2,), RNG.normal(size=6), RNG.normal(size=6))
    nodes = (
        Node("rnn", "LSTM", OP, ("x",), ("z",)),
        Node("a", "Affine", Affine(affine), ("z",), ("y",)),
        Node("end", "Identity", Identity(), ("y",), ("out",)),
    )
    (site,) = make_plan(Graph(("x",), nodes, ("out",), {"x": (3, 5, 4), "z": (3, 5, 6)})).sites
    assert site.obstacles[0].reason is Reason.NOT_LINEAR
