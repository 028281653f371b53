"""Affines and operands that are broadcast, also where the reader did not know that they are."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import (
    Affine,
    Concat,
    Conv,
    Linear,
    Mean,
    Multiply,
    Node,
    Op,
    Pad,
    Pool,
    Reshape,
    Resize,
    Shape,
    Take,
)
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.reshaping import reshape
from bnfold.algebra.rules import RULES, broadcast
from tests.algebra.graphs import param

FOUR = ChannelAffine.on_axis(1, np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4))

OPERANDS: dict[str, tuple[Shape, Shape, int | Reason]] = {
    "has the axis": ((2, 4, 3), (2, 4, 3), 1),
    "has it under another number": ((2, 4, 3), (4, 3), 0),
    "lacks the axis": ((2, 4, 3), (3,), Reason.OTHER_OPERAND),
    "has one index of it": ((2, 4, 3), (2, 1, 3), Reason.OTHER_OPERAND),
    "has one index of an unknown number": ((2, None, 3), (2, 1, 3), Reason.OTHER_OPERAND),
    "has half of it": ((2, 8, 3), (2, 4, 3), Reason.OTHER_OPERAND),
    "has an unknown number": ((2, 4, 3), (2, None, 3), 1),
}


@pytest.mark.parametrize(("whole", "shape", "found"), OPERANDS.values(), ids=OPERANDS)
def test_an_operand_that(whole: Shape, shape: Shape, found: int | Reason) -> None:
    node = Node("n", "N", Multiply(), ("x", "z"), ("y",))
    seen = broadcast.on_operand(node, FOUR, "x", {"y": whole, "x": shape})
    assert found == (seen.reason if isinstance(seen, Refusal) else seen.axis)


def _reshape(source: Shape, target: Shape) -> Reshape:
    found = reshape(source, target)
    assert found is not None
    return found


def _conv() -> Conv:
    weight = param("w", np.ones((1, 1, 1)))
    return Conv(weight, None, (1,), (1,), ((0, 0),))


ONE = (2, 1, 3)

TOO_SHORT: dict[str, tuple[Op, Shape]] = {
    "a convolution": (_conv(), ONE),
    "a layer": (Linear(param("w", np.ones((1, 3)))), (2, 3)),
    "an affine": (Affine(ChannelAffine.on_axis(1, np.ones(1), np.ones(1))), ONE),
    "an affine of one number": (Affine(ChannelAffine.on_axis(None, np.ones(1), np.ones(1))), ONE),
    "a mean that kept it": (Mean((1,), keepdims=True), (2, 4, 3)),
    "a pool": (Pool("avg", (4, 1), (1, 1), ((0, 0), (0, 0))), (2, 4, 3)),
    "a resizing": (Resize(2), ONE),
    "a pad": (Pad(((0, 0), (0, -3), (0, 0))), (2, 4, 3)),
    "a part": (Take(1, ((0,),)), (2, 4, 3)),
    "a concatenation": (Concat(1), ONE),
    "a reshape that merges it": (_reshape((2, 1, 3), (2, 3)), ONE),
    "a reshape that has it within": (_reshape((6,), (2, 1, 3)), (6,)),
    "a reshape that splits it": (_reshape((2, 1, 3), (2, 1, 1, 3)), ONE),
    "a reshape that leaves it": (_reshape((2, 1, 6), (2, 1, 2, 3)), (2, 1, 6)),
}


@pytest.mark.parametrize(("op", "shape"), TOO_SHORT.values(), ids=TOO_SHORT)
def test_numbers_that_do_not_fit_an_axis_of_one_index_are_not_taken_by(
    op: Op, shape: Shape
) -> None:
    """They were asked of an operand whose size the reader did not know."""
    node = Node("n", "N", op, ("x",), ("y",))
    after = op.target if isinstance(op, Reshape) else ONE[: len(shape)]
    answer = RULES[type(op)].up(op, node, FOUR, 0, {"x": shape, "y": after})
    if not isinstance(answer, Refusal):
        (move,) = answer
        (ask,) = move.asks
        assert any(
            n % ask.affine.length(axis) for axis, n in enumerate(shape) if isinstance(n, int)
        )
