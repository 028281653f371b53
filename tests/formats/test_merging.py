"""Merged branches as every form writes them: sums of sums, several roots, rows, linear layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.algebra.plan import Plan
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net, check_fold


class RepMixer(nn.Module):
    """x + scale * (mixer(x) - norm(x)), Vasu et al. 2023, arXiv:2303.14189, 3.2."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.point = nn.Conv2d(6, 6, 1, groups=6, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(4))
        self.scale = nn.Parameter(torch.tensor([0.3, -0.7, 1.2, 0.5, -0.2, 0.9]).reshape(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.norms[0](self.wide(x)) + self.norms[1](self.point(x)) + self.norms[2](x)
        return torch.relu(x + self.scale * (mixed - self.norms[3](x)))


class TwoRoots(nn.Module):
    """Layers of two values in one sum; what joins them stays."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(6, 6, k, padding=k // 2) for k in (3, 1, 3, 1))
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.layers
        y = torch.tanh(x)
        return torch.relu((a(x) + c(y)) - (d(self.drop(y)) + (y - b(x))))


class Row(nn.Module):
    """Conv 1x1, conv 3x3, conv 1x1: the first and the last need not be layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        widths = (6, 12, 5)
        self.first = nn.Conv2d(6, widths[0], 1)
        self.second = nn.Conv2d(widths[0], widths[1], 3)
        self.third = nn.Conv2d(widths[1], widths[2], 1)
        self.norm, self.drop = nn.BatchNorm2d(widths[1]), nn.Dropout2d()

    def forward(self, x: Tensor) -> Tensor:
        second = self.norm(self.drop(self.second(nn.functional.dropout(self.first(x), 0.1, False))))
        return torch.relu(self.third(second))


class Adapted(nn.Module):
    """W x + 2 B A x (Hu et al. 2021, arXiv:2106.09685, 4.1), then two layers in a row."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.whole = nn.Linear(7, 7, bias=bias)
        self.down, self.up = nn.Linear(7, 2, bias=False), nn.Linear(2, 7, bias=False)
        self.drop = nn.Dropout()
        self.row = nn.Sequential(nn.Linear(7, 9), nn.Linear(9, 4))

    def forward(self, x: Tensor) -> Tensor:
        adapted = self.whole(x) + 2.0 * self.up(self.down(self.drop(x)))
        return torch.relu(self.row(torch.relu(adapted)))


class Weighted(nn.Module):
    """Sums with `alpha`: of branches of one value, and of two values before a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(6, 6, k, padding=k // 2) for k in (3, 1, 3, 1))
        self.before, self.after = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.layers
        y = torch.tanh(torch.sub(a(x), self.before(b(x)), alpha=2.5))
        return torch.relu(self.after(torch.add(c(torch.relu(y)), d(y), alpha=-0.3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Counter[str]]] = {
    "RepMixer": (RepMixer, Counter(Conv=1)),
    "two roots": (TwoRoots, Counter(Conv=2, Add=1)),
    "weighted": (Weighted, Counter(Conv=3, Add=1)),
    "row": (Row, Counter(Conv=1)),
    "adapted": (Adapted, Counter(Linear=2)),
}


def layers(plan: Plan) -> Counter[str]:
    names = Counter(type(node.op).__name__ for node in plan.after.nodes)
    return Counter({kind: names[kind] for kind in ("Conv", "Linear", "Add") if names[kind]})


def sample(name: str) -> Tensor:
    shape = (2, 7) if name == "adapted" else (2, 6, 9, 7)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["graph", "torchscript", "onnx"])
@pytest.mark.parametrize("name", NETWORKS)
def test_branches_become_one_layer(name: str, form: str) -> None:
    make, left = NETWORKS[name]
    torch.manual_seed(0)
    network, x = trained(make()), sample(name)
    if form == "onnx":
        export = bnfold.export(network, x, to=["onnx"]).exports["onnx"]
        plan, verification = export.plan, export.verification
    else:
        model = torch.jit.trace(network, x) if form == "torchscript" else network
        result = bnfold.fold(model, x, form="graph" if form == "graph" else "auto")
        plan, verification = result.plan, result.verification
    assert verification is not None
    assert verification.passed
    assert plan is not None
    assert layers(plan) == left


def test_layers_of_a_module_say_the_sizes_that_they_have_now() -> None:
    network, x = trained(Adapted()), sample("adapted")
    folded = bnfold.fold(network, x).model
    assert isinstance(folded.row[0], nn.Identity)
    assert (folded.row[1].in_features, folded.row[1].out_features) == (7, 4)
    network, x = trained(Row()), sample("row")
    folded = bnfold.fold(network, x).model
    assert (folded.second.in_channels, folded.second.out_channels) == (6, 5)


def test_a_matmul_that_goes_takes_the_addition_of_its_bias_along() -> None:
    """Of an ONNX layer that is MatMul and Add, the Add makes the value that is read."""
    net = Net()
    x = net.input("x", "N", 3, 6)
    value = x
    for channels in (9, 4):
        width = 6 if value == x else 9
        product = net.node("MatMul", value, net.normal(width, channels))
        value = net.node("Add", product, net.normal(channels))
    net.node("Relu", value, made="y")
    net.output("y", 3)
    _, plan = check_fold(net.proto())
    assert layers(plan) == Counter(Linear=1)
