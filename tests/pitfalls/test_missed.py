"""Folds that users ask other tools for in vain: here they happen in every form that has a graph.

A module keeps its structure, so that form may keep some of them; what it keeps it says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bnfold.algebra.graph import Affine
from tests.formats.networks import Function, Normalise, Scale, trained
from tests.forms import fold_in

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

IMAGE = (2, 3, 9, 7)


def conv(inputs: int = 3, outputs: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


class Product(nn.Module):
    """x @ w + c, no layer of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.c = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(6))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(x @ self.w + self.c))


def dense(m: Any, x: Tensor) -> Tensor:
    """DenseNet: a BatchNorm across a concatenation, then no padding."""
    return m.last(m.norm(torch.cat([m.one(x), m.two(x)], 1)))


def turned(m: Any, x: Tensor) -> Tensor:
    """LeViT: a BatchNorm1d of flattened tokens, after a linear layer."""
    y = m.linear(x.flatten(2).transpose(1, 2))
    return torch.tanh(m.norm(y.flatten(0, 1)).reshape_as(y))


def functional(m: Any, x: Tensor) -> Tensor:
    norm = m.norm
    y = F.batch_norm(m.one(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return torch.tanh(y)


MISSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear and BatchNorm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh()),
        (4, 5),
    ),
    "product, sum, BatchNorm": (Product, (4, 5)),
    "BatchNorm before a convolution": (lambda: nn.Sequential(nn.BatchNorm2d(3), conv()), IMAGE),
    "BatchNorm before a linear layer": (
        lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 6)),
        (4, 5),
    ),
    "BatchNorm across a concatenation": (
        lambda: Function(dense, one=conv(), two=conv(), norm=nn.BatchNorm2d(8), last=conv(8, 2)),
        IMAGE,
    ),
    "through an average": (
        lambda: nn.Sequential(conv(), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.Tanh()),
        IMAGE,
    ),
    "through flattening": (
        lambda: nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(189, 4)),
        IMAGE,
    ),
    "between permutations": (
        lambda: Function(turned, linear=nn.Linear(3, 6), norm=nn.BatchNorm1d(6)),
        IMAGE,
    ),
    "SyncBatchNorm": (lambda: nn.Sequential(conv(), nn.SyncBatchNorm(4), nn.Tanh()), IMAGE),
    "F.batch_norm": (lambda: Function(functional, one=conv(), norm=nn.BatchNorm2d(4)), IMAGE),
    "LayerScale": (lambda: nn.Sequential(conv(), Scale(4), nn.Tanh()), IMAGE),
    "multiplied, divided, added, subtracted": (
        lambda: Function(lambda m, x: torch.tanh((m.one(x) * 3 - 1) / 0.7 + 2), one=conv()),
        IMAGE,
    ),
    "input normalisation": (lambda: nn.Sequential(Normalise(), conv()), IMAGE),
    "spectral_norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(conv()), nn.BatchNorm2d(4)),
        IMAGE,
    ),
}


@pytest.mark.parametrize("form", ["graph", "torchscript", "onnx"])
@pytest.mark.parametrize("name", MISSED)
def test_it_folds(name: str, form: str) -> None:
    torch.manual_seed(0)
    build, shape = MISSED[name]
    found = fold_in(form, trained(build()), torch.randn(shape))
    assert found.plan.affines.kept == 0, str(found.plan)
    assert not any(isinstance(node.op, Affine) for node in found.plan.after.nodes)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("form", ["module", "graph", "onnx"])
def test_it_folds_through_upsampling(mode: str, form: str) -> None:
    torch.manual_seed(0)
    layers = conv(), nn.Upsample(scale_factor=2, mode=mode), nn.BatchNorm2d(4), nn.Tanh()
    found = fold_in(form, trained(nn.Sequential(*layers)), torch.randn(IMAGE))
    assert found.plan.affines.kept == 0, str(found.plan)
