"""What an entry of the zoo is: a real architecture with random numbers, and what must become of it.

The numbers are those of no training, but they hide no mistake: every parameter is drawn, gammas
have both signs, and the statistics are those of noise, moved off as they would be on other data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PASSES = 3

Run = Callable[[nn.Module, Tensor], Any]


def _call(model: nn.Module, x: Tensor) -> Any:
    return model(x)[0]


@dataclass(frozen=True, eq=False)
class Architecture:
    """`batchnorms` are in it; `kept` of them stay, by form; a form that is not named keeps none.

    `affines` is given for a network whose norms or scales are arithmetic, not BatchNorm modules:
    as many of all its channel-wise multiplications and additions stay, by form. Every number but
    zero has its reason beside it.
    """

    name: str
    build: Callable[[], nn.Module]
    batchnorms: int = 0
    kept: Mapping[str, int] = field(default_factory=dict)
    affines: Mapping[str, int] | None = None
    shape: tuple[int, ...] = (2, 3, 65, 63)
    run: Run = _call

    def make(self) -> nn.Module:
        """In eval mode; the same numbers every time."""
        torch.manual_seed(0)
        net = Net(self.build(), self.run)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in net.parameters():
                _draw(parameter, generator)
            norms = [m for m in net.modules() if _has_statistics(m)]
            for norm in norms:
                _draw_norm(norm, generator)
            _calibrate(net, [torch.randn(self.shape, generator=generator) for _ in range(PASSES)])
            for norm in norms:
                _move(norm, generator)
        return net.eval()

    def sample(self, seed: int = 0) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A model called with one tensor; what it gives is a tensor, or several."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self.model, x)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor)


def _draw(parameter: Tensor, generator: torch.Generator) -> None:
    """Weights of the scale that keeps a layer's output as large as its input; others moved."""
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim > 1:
        parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
    else:
        parameter.add_(0.2 * noise)


def _draw_norm(norm: Any, generator: torch.Generator) -> None:
    """Gamma of magnitude 0.6 to 1.4, one in five negative."""
    size = norm.running_mean.shape
    if isinstance(norm.weight, Tensor):
        sign = torch.where(torch.rand(size, generator=generator) < 0.2, -1.0, 1.0)
        sign[:2] = torch.tensor([-1.0, 1.0])
        norm.weight.copy_(sign * (0.6 + 0.8 * torch.rand(size, generator=generator)))
        norm.bias.copy_(0.3 * torch.randn(size, generator=generator))


def _calibrate(net: nn.Module, batches: list[Tensor]) -> None:
    """The statistics become the mean over the batches, as seen in train mode."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    net.train()
    for batch in batches:
        net(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _move(norm: Any, generator: torch.Generator) -> None:
    """Off by a fifth of a deviation; a frozen norm, which learns nothing, gets its own that way."""
    size = norm.running_mean.shape
    norm.running_mean.add_(0.2 * norm.running_var.sqrt() * torch.randn(size, generator=generator))
    norm.running_var.mul_(0.7 + 0.7 * torch.rand(size, generator=generator))
