"""Folds that well-known tools got silently wrong, in every form, by the public verbs.

What one reader or one rule does about each stands in the tests of that reader or rule; here the
whole way is gone, and the result verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from bnfold.algebra.refusal import Reason
from tests.formats.networks import Function, trained
from tests.forms import FORMS, fold_in

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

IMAGE = (2, 4, 9, 7)
every_form = pytest.mark.parametrize("form", FORMS)


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def norm(channels: int = 4, **options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


@dataclass(frozen=True, eq=False)
class Trap:
    """A network, and what must be left of it: how many affines, and for which reason."""

    name: str
    build: Callable[[], nn.Module]
    reason: Reason | None = None
    kept: int = 1
    shape: Sequence[int] = IMAGE


class Times(nn.Module):
    """Multiplies by four numbers that lie along one axis of [N, C, H, W]."""

    def __init__(self, axis: int, numbers: Sequence[float] = (-2, 0.5, 1.5, 3)) -> None:
        super().__init__()
        sizes = [1, 1, 1, 1]
        sizes[axis] = 4
        self.register_buffer("by", torch.tensor(numbers).view(*sizes[axis:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


def out_of_order() -> nn.Module:
    """Registered as conv, bn; called as bn, ReLU, conv."""
    return Function(lambda m, x: m.c(torch.relu(m.b(x))), c=conv(), b=norm())


TRAPS = [
    Trap(
        "Linear and BatchNorm1d on [N, L, C], L the number of features",
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)),
        Reason.WRONG_AXIS,
        shape=(3, 6, 5),
    ),
    Trap(
        "constant of shape [W], W the number of channels",
        lambda: nn.Sequential(conv(), Times(3), nn.Sigmoid()),
        Reason.WRONG_AXIS,
        shape=(2, 4, 6, 6),
    ),
    Trap(
        "constant of shape [H, 1], H the number of channels",
        lambda: nn.Sequential(conv(), Times(2), nn.Sigmoid()),
        Reason.WRONG_AXIS,
        shape=(2, 4, 6, 6),
    ),
    Trap(
        "constant of shape [C, 1, 1]",
        lambda: nn.Sequential(conv(), Times(1), nn.Sigmoid()),
        shape=(2, 4, 6, 6),
    ),
    Trap(
        'padding="same" after a BatchNorm',
        lambda: nn.Sequential(norm(), conv(padding="same", dilation=2)),
        Reason.ZERO_PADDING,
    ),
    Trap(
        'padding="valid" after a BatchNorm',
        lambda: nn.Sequential(norm(), conv(padding="valid", dilation=2)),
    ),
    Trap(
        "numbered padding after a BatchNorm",
        lambda: nn.Sequential(norm(), conv(padding=(0, 1))),
        Reason.ZERO_PADDING,
    ),
    Trap(
        "ConvTranspose in groups",
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), norm(6), nn.ReLU()),
    ),
    Trap(
        "negative scale after a max pool",
        lambda: nn.Sequential(conv(), nn.MaxPool2d(2), norm()),
        Reason.NEGATIVE_SCALE,
    ),
    Trap(
        "negative scale after a ReLU",
        lambda: nn.Sequential(conv(), nn.ReLU(), Times(1), nn.Sigmoid()),
        Reason.NEGATIVE_SCALE,
    ),
    Trap(
        "shift after an average that counts its padding",
        lambda: nn.Sequential(conv(), nn.AvgPool2d(3, 2, 1, count_include_pad=True), norm()),
        Reason.ZERO_PADDING,
    ),
    Trap(
        "shift after an average that does not count its padding",
        lambda: nn.Sequential(conv(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), norm()),
    ),
    Trap(
        "conv, ReLU, BatchNorm",
        lambda: nn.Sequential(conv(), nn.ReLU(), norm(), nn.Sigmoid()),
        Reason.SHIFT,
    ),
    Trap("called in another order than registered", out_of_order, Reason.SHIFT),
    Trap(
        "conv, deconv, BatchNorm",
        lambda: nn.Sequential(conv(), nn.ConvTranspose2d(4, 4, 2, 2), norm(), nn.ReLU()),
    ),
    Trap(
        "bias, groups and dilation",
        lambda: nn.Sequential(conv(4, 6, 3, groups=2, dilation=2, padding=2, stride=2), norm(6)),
    ),
    Trap(
        "convolution's output also an output",
        lambda: Function(lambda m, x: (y := m.c(x), m.b(y)), c=conv(), b=norm()),
        Reason.GRAPH_OUTPUT,
    ),
    Trap(
        "BatchNorm's output also an output",
        lambda: Function(lambda m, x: (y := m.b(m.c(x)), torch.relu(y)), c=conv(), b=norm()),
    ),
]


@every_form
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_no_form_is_caught(trap: Trap, form: str) -> None:
    torch.manual_seed(0)
    found = fold_in(form, trained(trap.build()), torch.randn(*trap.shape))
    assert found.plan.affines.kept == (trap.kept if trap.reason else 0), str(found.plan)
    assert found.reasons == ({trap.reason} if trap.reason else set()), str(found.plan)
