"""Networks by address, for the tests of weights without a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations


class Net(nn.Module):
    def __init__(self, channels: int = 6, affine: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(self.conv(x)))  # type: ignore[no-any-return]


def tied() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, bias=False),
    )
    net[3].weight = net[0].weight
    return net


def normed() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6))


def two_norms() -> nn.Module:
    """The first BatchNorm has no parameters of its own, and has to take the second."""
    return nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3), nn.ReLU())


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()


def named(name: str) -> nn.Module:
    """A module, a parameter and a buffer of one name, which no constructor would have allowed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
        for tensor in (*block[1].parameters(), block[1].running_mean):
            tensor.detach().normal_()
        block[1].running_var.uniform_(0.5, 2)
        net = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    net._modules = {name: block, "relu": net[0], "last": net[1]}
    block._parameters[name] = nn.Parameter(torch.ones(1))
    block._buffers[f"{name}b"] = torch.ones(1)
    return net


def broken() -> nn.Module:
    raise RuntimeError("no weights here")


def not_a_module() -> int:
    return 3


number = 3
