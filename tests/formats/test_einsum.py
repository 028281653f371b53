"""Einstein sums that are layers, in every form that has them; and those that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.algebra.graph import Conv, Graph, Linear, Node, Param
from bnfold.algebra.reference import evaluate
from bnfold.formats.meaning.einsum import layer
from tests.formats.networks import noise, trained
from tests.formats.onnx_nets import Net, check_fold, kinds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MATRIX = np.random.default_rng(0).normal(size=(5, 6))

LAYERS = [
    ("ni,oi->no", 0, (2, 6)),
    ("bnd,ed->bne", 0, (2, 4, 6)),
    ("bnd,de->bne", 0, (2, 4, 5)),
    ("...c,oc->...o", 0, (2, 3, 4, 6)),
    ("oc, ...c -> ...o", 1, (2, 4, 6)),
    ("ncl,oc->nol", 0, (2, 6, 7)),
    ("bchw,oc->bohw", 0, (2, 6, 4, 3)),
    ("co,bchw->bohw", 1, (2, 5, 4, 3)),
    ("nc...,oc->no...", 0, (2, 6, 4, 3, 2)),
]


@pytest.mark.parametrize(("equation", "data", "shape"), LAYERS)
def test_a_sum_that_is_a_layer(equation: str, data: int, shape: tuple[int, ...]) -> None:
    op = layer(equation, data, shape, Param("w", MATRIX.shape, "float64", lambda: MATRIX))
    assert isinstance(op, Conv | Linear)
    x = noise(*shape, dtype="float64")
    node = Node("layer", "einsum", op, ("x",), ("y",))
    found = evaluate(Graph(("x",), (node,), ("y",), {"x": shape}), {"x": x})["y"]
    expected = np.einsum(equation, *((x, MATRIX) if data == 0 else (MATRIX, x)))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("bchw,oc->bohw", None),
        ("bchw,oc->bohw", (2, 1, 4, 3)),
        ("bchw,oc->bohw", (2, "C", 4, 3)),
        ("bchw,oc->bhwo", (2, 6, 4, 3)),
        ("bchw,oc->bchwo", (2, 6, 4, 3)),
        ("bchw,oc->boh", (2, 6, 4, 3)),
        ("bchw,hc->bhw", (2, 6, 5, 3)),
        ("bchw,oh->bcow", (2, 4, 6, 3)),
        ("bbc,oc->bbo", (2, 2, 6)),
        ("bcc,oc->bo", (2, 6, 6)),
        ("...c,oc->o", (2, 4, 6)),
        ("bnc,oc", (2, 4, 6)),
        ("bnc,oc,o->bno", (2, 4, 6)),
        ("bnc,oc->bno", (2, 6)),
        ("c,oc->o", (6,)),
        ("bnc,oo->bno", (2, 4, 6)),
        ("bc,o...c->bo", (2, 6)),
    ],
)
def test_a_sum_that_is_none(equation: str, shape: tuple[int | str, ...] | None) -> None:
    assert layer(equation, 0, shape, Param("w", MATRIX.shape, "float64", lambda: MATRIX)) is None


class Summed(nn.Module):
    """A BatchNorm on either side of an einsum; behind it, a second reader of the matrix."""

    def __init__(self, equation: str, shape: tuple[int, int], first: bool = False) -> None:
        super().__init__()
        self.equation, self.first = equation, first
        self.matrix = nn.Parameter(torch.from_numpy(noise(*shape)))
        self.before, self.after = nn.BatchNorm2d(6), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(torch.tanh(x))
        last = self.equation.endswith("o") and "h" not in self.equation
        x = x.movedim(1, -1) if last else x
        y = torch.einsum(self.equation, *((self.matrix, x) if self.first else (x, self.matrix)))
        return torch.relu(self.after(y.movedim(-1, 1) if last else y)) + self.matrix.sum()


@pytest.mark.parametrize("form", ["graph", "torchscript"])
@pytest.mark.parametrize(
    ("equation", "shape", "first"),
    [
        ("bchw,oc->bohw", (5, 6), False),
        ("co,bc...->bo...", (6, 5), True),
        ("...c,oc->...o", (5, 6), False),
    ],
)
def test_batchnorms_fold_into_a_sum(
    form: str, equation: str, shape: tuple[int, int], first: bool
) -> None:
    network, x = trained(Summed(equation, shape, first)), torch.from_numpy(noise(2, 6, 5, 4))
    model = torch.jit.trace(network, x) if form == "torchscript" else network
    result = bnfold.fold(model, x, form="graph" if form == "graph" else "auto")
    assert result.plan.batchnorms.kept == 0, str(result.plan)
    assert result.verification is not None
    assert result.verification.passed


def test_a_module_keeps_what_stands_beside_a_sum() -> None:
    network, x = trained(Summed("bchw,oc->bohw", (5, 6))), torch.from_numpy(noise(2, 6, 5, 4))
    plan = bnfold.fold(network, x, keep_classes=True).plan
    sites = {site.name: site for site in plan.sites}
    assert str(sites["after"].reason) == "not-a-plain-module"
    assert str(sites["after"].remedy).startswith("the graph form folds it")


@pytest.mark.parametrize("side", ["before", "after", "both"])
@pytest.mark.parametrize(
    ("equation", "shape", "first", "left"),
    [
        ("bchw,oc->bohw", (5, 6), False, ["Conv"]),
        ("co,bchw->bohw", (6, 5), True, ["Conv"]),
        ("bnc,oc->bno", (5, 6), False, ["MatMul", "Add"]),
        ("co,bnc->bno", (6, 5), True, ["MatMul", "Add"]),
        ("nc,co->no", (6, 5), False, ["Gemm"]),
    ],
)
def test_batchnorms_fold_into_an_onnx_einsum(
    side: str, equation: str, shape: tuple[int, int], first: bool, left: list[str]
) -> None:
    net, rank = Net(), len(equation.partition("->")[2])
    x = net.input("x", *{2: ("N", 6), 3: ("N", 7, 6), 4: ("N", 6, 4, 3)}[rank])
    tail = (1, 1) if rank == 4 else ()
    if side != "after":
        x = net.node("Mul", net.node("Add", x, net.normal(6, *tail)), net.normal(6, *tail))
    matrix = net.normal(*shape)
    y = net.node("Einsum", *((matrix, x) if first else (x, matrix)), equation=equation)
    if side != "before":
        y = net.node("Add", net.node("Mul", y, net.normal(5, *tail)), net.normal(5, *tail))
    net.output(y, rank)
    after, plan = check_fold(net.proto())
    assert plan.affines.kept == 0, str(plan)
    assert kinds(after) == left


def test_a_shift_alone_leaves_the_matrix_of_an_einsum_as_it_was() -> None:
    net = Net()
    matrix = net.weight(MATRIX)
    y = net.node("Einsum", net.input("x", "N", 6, 4, 3), matrix, equation="bchw,oc->bohw")
    net.output(net.node("Add", y, net.normal(5, 1, 1)))
    after, _ = check_fold(net.proto())
    weight = after.ir.graph[0].inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy().squeeze(), MATRIX.astype(np.float32))


def test_an_einsum_that_takes_nothing_stays() -> None:
    net = Net()
    x = net.node("Relu", net.input("x", "N", 6, 4, 3))
    net.output(net.node("Einsum", x, net.weight(MATRIX), equation="bchw,oc->bohw"))
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["Relu", "Einsum"]
