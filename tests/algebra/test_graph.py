"""The grammar of the graph: what the checker refuses, and what the printer shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.checking import MalformedGraphError, check
from bnfold.algebra.graph import (
    Add,
    Affine,
    Conv,
    Graph,
    Identity,
    Linear,
    MatMul,
    Mean,
    Multiply,
    Node,
    Op,
    Opaque,
    PixelShuffle,
    Pool,
    Shape,
    Transpose,
    params,
)
from bnfold.algebra.refusal import Reason, Refusal
from tests.algebra.graphs import Build, param


def _one(op: Op, shape: Shape | None = (None, 4, 5, 5), inputs: int = 1) -> Graph:
    names = tuple(f"x{i}" for i in range(inputs))
    return Graph(names, (Node("n", "N", op, names, ("y",)),), ("y",), dict.fromkeys(names, shape))


def _conv(**how: object) -> Conv:
    plain = Conv(param("w", np.ones((4, 4, 3, 3))), None, (1, 1), (1, 1), ((0, 0), (0, 0)))
    return replace(plain, **how)  # type: ignore[arg-type]


def _affine(axis: int, size: int) -> Affine:
    return Affine(ChannelAffine.on_axis(axis, np.ones(size), np.ones(size)))


def _named(*nodes: tuple[str, str, str]) -> Graph:
    made = tuple(Node(n, "I", Identity(), (a,), (b,)) for n, a, b in nodes)
    return Graph(("x",), made, ("y",))


BROKEN = {
    "two nodes of one name": (_named(("a", "x", "z"), ("a", "z", "y")), "two nodes are called 'a'"),
    "a value read before it is made": (_named(("a", "y", "z"), ("b", "x", "y")), "before it is"),
    "a value made twice": (_named(("a", "x", "y"), ("b", "x", "y")), "'y' a second time"),
    "an input made again": (_named(("a", "x", "x")), "'x' a second time"),
    "an output never made": (_named(("a", "x", "z")), "output 'y' is never made"),
    "a stride short": (_one(_conv(stride=(1,))), "1 entries for rank 2"),
    "pads missing": (_one(_conv(pads=())), "0 entries for rank 2"),
    "other channels than the data": (_one(_conv(), (None, 3, 5, 5)), "wants 4 channels on axis 1"),
    "a rank without room for channels": (_one(_conv(), (5, 5)), "2 spatial axes on shape"),
    "a rank with room to spare": (_one(_conv(), (1, 1, 4, 5, 5)), "2 spatial axes on shape"),
    "groups that do not divide": (_one(_conv(groups=3), None), "4 rows for 3 groups"),
    "an unknown pad mode": (_one(_conv(pad_mode="edge")), "pad mode 'edge'"),
    "a padded mode on a transposed convolution": (
        _one(_conv(transposed=True, pad_mode="reflect")),
        "pad mode 'reflect'",
    ),
    "a bias of another length": (_one(_conv(bias=param("c", np.ones(3)))), "bias that is not [4]"),
    "a linear weight of rank three": (
        _one(Linear(param("w", np.ones((2, 5, 1))))),
        "weight of rank 3",
    ),
    "other features than the data": (
        _one(Linear(param("w", np.ones((2, 4))))),
        "wants 4 channels on axis 3",
    ),
    "an affine beyond the rank": (_one(_affine(4, 5)), "axis 4"),
    "an affine counted from the right": (_one(_affine(-1, 5)), "axis -1"),
    "a uniform affine of many numbers": (
        _one(Affine(ChannelAffine((), np.ones(3), np.ones(3)))),
        "scales",
    ),
    "an affine on two axes": (
        _one(Affine(ChannelAffine((1, 2), np.ones((4, 5)), np.ones((4, 5))))),
        "on the axes (1, 2)",
    ),
    "unequal scales and shifts": (
        _one(Affine(ChannelAffine.on_axis(1, np.ones(4), np.ones(3)))),
        "scales",
    ),
    "a mean beyond the rank": (_one(Mean((4,), False)), "axis 4"),
    "a permutation of another rank": (_one(Transpose((1, 0))), "permutes"),
    "a permutation that repeats": (_one(Transpose((0, 0)), None), "permutes"),
    "a pool with a pad short": (_one(Pool("max", (2, 2), (1, 1), ((0, 0),))), "1 entries"),
    "a product of one value": (_one(Multiply()), "reads 1 values, not 2"),
    "a product of three matrices": (_one(MatMul(), inputs=3), "reads 3 values, not 2"),
    "a product with a vector": (_one(MatMul(), (5,), inputs=2), "multiplies a vector"),
    "pixels without channels": (_one(PixelShuffle(2), (4, 4)), "channels and pixels on shape"),
    "channels that no shuffle divides": (_one(PixelShuffle(3)), "divides [?x4x5x5] by 3"),
    "pixels that no shuffle divides": (_one(PixelShuffle(2, inverse=True)), "[?x4x5x5] by 2"),
    "a convolution of two values": (_one(_conv(), inputs=2), "reads 2 values"),
    "a sum of nothing": (_one(Add(), inputs=0), "reads 0 values"),
}


@pytest.mark.parametrize(("graph", "message"), BROKEN.values(), ids=BROKEN)
def test_the_checker_refuses(graph: Graph, message: str) -> None:
    with pytest.raises(MalformedGraphError) as caught:
        check(graph)
    assert message in str(caught.value)


def test_the_checker_returns_a_sound_graph_and_accepts_unknown_sizes() -> None:
    for shape in (None, (None, None, None, None), ("n", 4, "h", "w"), (4, 5, 5)):
        graph = _one(_conv(), shape)
        assert check(graph) is graph


def test_the_printer_shows_every_node_with_its_shapes() -> None:
    build = Build()
    y = build.affine(build.conv(build.input(None, 3, 5, 5), 4, (3, 3), name="stem"), name="bn")
    assert str(build.graph(y)).splitlines() == [
        "inputs x0",
        "  v0[?x4x3x3] = Conv(x0) weight[4, 3, 3, 3] bias[4]  # stem",
        "  v1[?x4x3x3] = Affine(v0)  # bn",
        "outputs v1",
    ]


def test_a_mapped_parameter_keeps_its_name_and_leaves_the_old_one_alone() -> None:
    old = param("w", np.ones(3), "float16")
    new = old.mapped(lambda w: w * 2).mapped(lambda w: w + 1)
    assert (new.name, new.shape, new.dtype) == ("w", (3,), "float16")
    assert new.load().tolist() == [3, 3, 3]
    assert old.load().tolist() == [1, 1, 1]


def test_the_parameters_of_an_op_come_with_their_roles() -> None:
    op = _conv(bias=param("c", np.ones(4)))
    assert [(role, p.name) for role, p in params(op)] == [("weight", "w"), ("bias", "c")]
    assert [role for role, _ in params(_conv())] == ["weight"]
    assert list(params(Add())) == []


def test_sites_are_affines_and_what_was_refused_as_one() -> None:
    def node(op: Op) -> Node:
        return Node("n", "N", op, ("x",), ("y",))

    refusal = Refusal(Reason.BATCH_STATISTICS, "it uses the statistics of the batch")
    assert node(_affine(1, 4)).is_site
    assert node(_affine(1, 4)).is_batchnorm
    assert node(Opaque(refusal, batchnorm=True)).is_site
    assert node(Opaque(refusal, batchnorm=True)).is_batchnorm
    assert node(Opaque(refusal)).is_site
    assert not node(Opaque(refusal)).is_batchnorm
    assert not node(Opaque()).is_site
    assert not node(Add()).is_site
