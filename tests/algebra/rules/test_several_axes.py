"""Every rule against the oracle, for affines on any axes: what it answers is exact, or refused.

A rule is asked directly, with an affine that no layer needs to be able to take in the end.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Conv,
    Graph,
    Identity,
    Linear,
    MatMul,
    Mean,
    Multiply,
    Node,
    Op,
    Pad,
    PixelShuffle,
    Pool,
    Resize,
    Shape,
    Size,
    Take,
    Transpose,
    WeightedMean,
)
from bnfold.algebra.reference import evaluate
from bnfold.algebra.refusal import Refusal
from bnfold.algebra.reshaping import reshape
from bnfold.algebra.rules import RULES, Ask, Move
from tests.algebra.graphs import param, softmax

Sizes = tuple[int, ...]


def _reshape(source: Sizes, target: Sizes) -> Op:
    found = reshape(source, target)
    assert found is not None
    return found


def _conv(shape: Sizes, *, transposed: bool = False) -> Conv:
    weight = param("w", np.random.default_rng(0).normal(size=shape))
    return Conv(weight, None, (1, 1), (1, 1), ((0, 0), (0, 0)), 2, "zeros", transposed)


def _linear() -> Linear:
    return Linear(param("w", np.random.default_rng(0).normal(size=(5, 4))))


def _pool(kind: str, **how: bool) -> Pool:
    return Pool(kind, (2, 2), (1, 1), ((1, 0), (0, 1)), **how)  # type: ignore[arg-type]


def _scaled(axis: int | None, size: int) -> Affine:
    numbers = np.random.default_rng(0).normal(size=(2, size))
    return Affine(ChannelAffine.on_axis(axis, *numbers))


@dataclass(frozen=True)
class Case:
    """An op, the shapes of its inputs, and on how many axes at once affines must have passed."""

    op: Op
    shapes: tuple[Sizes, ...]
    up: int = 2
    down: int = 2


MAP = (2, 4, 4, 6)

CASES = {
    "Identity": Case(Identity(), (MAP,), 3, 3),
    "Activation": Case(Activation(np.array(0.1)), (MAP,)),
    "Transpose": Case(Transpose((2, 0, 3, 1)), (MAP,), 3, 3),
    "Reshape that splits": Case(_reshape((4, 12, 5), (4, 3, 2, 2, 5)), ((4, 12, 5),)),
    "Reshape that merges": Case(_reshape((2, 3, 4, 5), (6, 20)), ((2, 3, 4, 5),)),
    "Reshape of other runs": Case(_reshape((2, 6, 4), (3, 4, 4)), ((2, 6, 4),)),
    "Take of parts": Case(Take(1, ((3, 0), (1,))), ((2, 4, 3),)),
    "Take with repetitions": Case(Take(1, ((1, 1, 0),)), ((2, 4, 3),)),
    "Concat": Case(Concat(1), ((2, 4, 3), (2, 2, 3))),
    "Add": Case(Add((1.0, -1.0)), ((2, 4, 3), (4, 3)), down=-1),
    "Add that broadcasts": Case(Add(), ((2, 4, 3), (4, 1)), 1, -1),
    "maximum": Case(_pool("max"), (MAP,)),
    "average": Case(_pool("avg"), (MAP,)),
    "average with zeros": Case(_pool("avg", count_include_pad=True), (MAP,)),
    "AdaptivePool": Case(AdaptivePool("avg", (2, 1)), (MAP,)),
    "Mean": Case(Mean((0, 2), keepdims=False), (MAP,)),
    "Mean that keeps its axes": Case(Mean((0, 2), keepdims=True), (MAP,)),
    "Pad with zeros": Case(Pad(((0, 0), (0, 0), (1, 0), (0, -1))), (MAP,)),
    "Pad with a number": Case(Pad(((0, 0), (0, 0), (1, 0), (0, 1)), "constant", 0.5), (MAP,), 0, 0),
    "Pad that reflects": Case(Pad(((0, 0), (0, 0), (1, 0), (0, 1)), "reflect"), (MAP,)),
    "Resize": Case(Resize(2, (2, 1)), (MAP,)),
    "values on the right": Case(WeightedMean(), ((2, 4, 5, 3), (2, 4, 3, 6))),
    "values on the left": Case(WeightedMean(1, -1), ((2, 4, 3, 5), (2, 4, 6, 3))),
    "values that are broadcast": Case(WeightedMean(0), ((4, 3, 6), (2, 4, 5, 3))),
    "values of one head": Case(WeightedMean(), ((2, 4, 5, 3), (2, 1, 3, 6))),
    "Multiply": Case(Multiply(), (MAP, MAP), 3, 3),
    "Multiply by a gate": Case(Multiply(), (MAP, (2, 4, 1, 1)), 3, 3),
    "Multiply that broadcasts both": Case(Multiply(), ((4, 1, 6), (2, 1, 4, 1)), 1, 2),
    "MatMul": Case(MatMul(), ((2, 4, 5, 3), (2, 4, 3, 6)), 2, 2),
    "MatMul that broadcasts": Case(MatMul(), ((4, 5, 3), (2, 1, 3, 6)), 1, 2),
    "PixelShuffle": Case(PixelShuffle(2), ((2, 8, 2, 3),)),
    "strided PixelShuffle": Case(PixelShuffle(2, strided=True), ((2, 8, 2, 3),)),
    "inverse PixelShuffle": Case(PixelShuffle(2, inverse=True), (MAP,)),
    "inverse strided PixelShuffle": Case(PixelShuffle(2, True, True), (MAP,)),
    "PixelShuffle without a batch": Case(PixelShuffle(2), ((8, 2, 3),)),
    "Conv": Case(_conv((6, 2, 2, 1)), (MAP,), 1, 1),
    "transposed Conv": Case(_conv((4, 3, 1, 1), transposed=True), (MAP,), 1, 1),
    "Linear": Case(_linear(), ((2, 3, 4),), 1, 1),
    "Affine": Case(_scaled(1, 4), ((2, 4, 3),), 1, 1),
    "uniform Affine": Case(_scaled(None, 1), ((2, 4, 3),), 1, 1),
}


def _evaluated(node: Node, values: dict[str, Array]) -> dict[str, Array]:
    return evaluate(Graph(node.inputs, (node,), node.outputs), values)


def _random_affine(rng: random.Random, sizes: Sizes) -> ChannelAffine:
    """On up to three axes, at lengths that divide them: often positive, often without a shift."""
    axes = tuple(sorted(rng.sample(range(len(sizes)), min(len(sizes), rng.randint(0, 3)))))
    lengths = [
        rng.choice([n for n in range(1, s + 1) if s % n == 0]) for s in (sizes[i] for i in axes)
    ]
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    scale = numbers.choice([0.5, 2.0, 0.0, 1.5], lengths)
    if rng.random() < 0.3:
        scale = scale * numbers.choice([-1.0, 1.0], lengths)
    shift = numbers.normal(size=lengths) * rng.choice([0, 0, 1])
    return ChannelAffine(axes, np.asarray(scale), np.asarray(shift))


def _hidden(rng: random.Random, sizes: Sizes) -> Shape | None:
    """What a reader may know of a shape; equal names are equal sizes."""
    if rng.random() < 0.05:
        return None

    def seen(size: int) -> Size:
        return size if rng.random() < 0.8 else rng.choice([None, f"n{size}"])

    return tuple(map(seen, sizes))


def _inputs(case: Case, node: Node, rng: random.Random) -> dict[str, Array]:
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    values = {n: numbers.normal(size=s) for n, s in zip(node.inputs, case.shapes, strict=True)}
    if isinstance(op := case.op, WeightedMean):
        weights = values[node.inputs[1 - op.port]]
        summed = (
            softmax(weights)
            if op.axis == -2
            else np.swapaxes(softmax(weights.swapaxes(-1, -2)), -1, -2)
        )
        values[node.inputs[1 - op.port]] = summed
    return values


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("name", CASES)
def test_what_a_rule_answers_is_exact(name: str, direction: str) -> None:
    case = CASES[name]
    rng = random.Random(name + direction)
    names = tuple(f"x{i}" for i in range(len(case.shapes)))
    outs = tuple(f"y{i}" for i in range(len(case.op.parts) if isinstance(case.op, Take) else 1))
    node = Node("n", "N", case.op, names, outs)
    rule = getattr(RULES[type(case.op)], direction)
    passed: Counter[int] = Counter()
    for _ in range(400):
        given = _inputs(case, node, rng)
        made = _evaluated(node, given)
        known = {v: _hidden(rng, a.shape) for v, a in (given | made).items()}
        ports = outs if direction == "up" else names
        port = rng.randrange(len(ports))
        changed = ports[port]
        affine = _random_affine(rng, (given | made)[changed].shape)
        answer = rule(case.op, node, affine, port, known)
        if isinstance(answer, Refusal):
            continue
        for move in answer:
            if not all(_fits(ask, given | made) for ask in move.asks):
                continue  # an operand of unknown size was broadcast: no layer could take it
            passed[len(affine.reduced().axes)] += 1
            if direction == "up":
                want = made | {changed: affine.on(made[changed])}
                got = _evaluated(move.node or node, _asked(move, given))
            else:
                want = _evaluated(node, given | {changed: affine.on(given[changed])})
                got = _asked(move, _evaluated(move.node or node, given))
            for value in outs:
                assert np.allclose(got[value], want[value], rtol=1e-12, atol=1e-12), (move, affine)
    assert max(passed, default=-1) >= getattr(case, direction)


def _fits(ask: Ask, values: dict[str, Array]) -> bool:
    sizes = values[ask.value].shape
    return all(sizes[axis] % ask.affine.length(axis) == 0 for axis in ask.affine.axes)


def _asked(move: Move, values: dict[str, Array]) -> dict[str, Array]:
    """The values with what the move asks of them done to them."""
    changed = dict(values)
    for ask in move.asks:
        changed[ask.value] = ask.affine.on(changed[ask.value])
    return changed
