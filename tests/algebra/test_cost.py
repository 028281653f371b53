"""Parameters and multiply-adds, counted by hand and by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import bnfold
from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.cost import Cost, cost
from bnfold.algebra.graph import Affine, Conv, Graph, Linear, MatMul, Node, Op, Opaque, Param, Shape


def param(*shape: int, name: str = "w") -> Param:
    return Param(name, shape, "float32", lambda: np.zeros(shape))


def graph(op: Op, *shapes: Shape | None) -> Graph:
    """One node, of which the last shape is that of its output."""
    values = [f"v{i}" for i in range(len(shapes))]
    node = Node("node", "op", op, tuple(values[:-1]), (values[-1],))
    return Graph(tuple(values[:-1]), (node,), (values[-1],), dict(zip(values, shapes, strict=True)))


AFFINE = ChannelAffine.on_axis(1, np.ones(6), np.ones(6))


@pytest.mark.parametrize(
    ("op", "shapes", "expected"),
    [
        # 6 * 5 * 5 results, each of (4 / 2) * 3 * 3 products
        (Conv(param(6, 2, 3, 3), groups=2), ((1, 4, 7, 7), (1, 6, 5, 5)), Cost(108, 2700)),
        # 4 * 7 * 7 numbers, each of which goes into 3 * 2 * 2 results of its own group
        (
            Conv(param(4, 3, 2, 2), groups=2, transposed=True),
            ((1, 4, 7, 7), (1, 6, 8, 8)),
            Cost(48, 2352),
        ),
        (
            Linear(param(5, 3), param(5, name="b")),
            (("N", 7, 3), ("N", 7, 5)),
            Cost(20, 105),
        ),
        (Affine(AFFINE), ((2, 6, 4), (2, 6, 4)), Cost(12, 48)),
        (Affine(AFFINE, holds="scale"), ((2, 6, 4), (2, 6, 4)), Cost(6, 48)),
        (MatMul(), ((2, 3, 4), (2, 4, 5), (2, 3, 5)), Cost(0, 120)),
        (Opaque(), (None, None), Cost(0, 0)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, tuple) else "",
)
def test_counted_by_hand(op: Op, shapes: tuple[Shape | None, ...], expected: Cost) -> None:
    assert cost(graph(op, *shapes)) == expected


@pytest.mark.parametrize("shape", [None, (1, 6, "H", 5), (1, 6, None, 5)])
def test_what_is_not_known_is_not_guessed(shape: Shape | None) -> None:
    assert cost(graph(Conv(param(6, 4, 3, 3)), (1, 4, 7, 7), shape)) == Cost(216, None)


def test_a_tied_weight_counts_once() -> None:
    shared = Linear(param(3, 3))
    nodes = tuple(Node(f"n{i}", "op", shared, (f"v{i}",), (f"v{i + 1}",)) for i in range(2))
    shapes: dict[str, Shape | None] = {f"v{i}": (1, 3) for i in range(3)}
    assert cost(Graph(("v0",), nodes, ("v2",), shapes)) == Cost(9, 18)


def test_it_agrees_with_torch() -> None:
    """Gamma and beta are parameters of torch too, mean and variance are not."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Flatten(),
        nn.Linear(4 * 16 * 16, 10),
    ).eval()
    result = bnfold.fold(network, "1x3x8x8", verify=False)
    before, after = (result.to_json()["cost"][side] for side in ("before", "after"))
    assert before["parameters"] == sum(p.numel() for p in network.parameters())
    assert after["parameters"] == sum(p.numel() for p in result.model.parameters())
    convolutions = 8 * 64 * 27 + 8 * 64 * 16 + 10 * 4 * 256
    assert before["multiply_adds"] == convolutions + 8 * 64
    assert after["multiply_adds"] == convolutions


def test_the_tables_say_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)).eval()
    with torch.no_grad():
        network[1].running_mean += 1
    told = bnfold.render(bnfold.fold(network, "1x3x4x4", verify=False))
    assert told.splitlines()[-6:] == [
        "ops            before  after",
        "BatchNorm           1      0",
        "Conv                1      1",
        "all                 2      1",
        "parameters         40     32",
        "multiply-adds     512    384",
    ]
