"""Networks by address, for the tests of weights without a network."""

from __future__ import annotations

from collections import OrderedDict

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


def row() -> nn.Module:
    """Convolutions that become one, with BatchNorms between."""
    convs = nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 4, 1, bias=False)
    return nn.Sequential(convs[0], nn.BatchNorm2d(5), convs[1], nn.BatchNorm2d(4), nn.ReLU())


def before_conv() -> nn.Module:
    """The shift of the BatchNorm would need a bias in the convolution behind it."""
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False), nn.ReLU())


def pooled() -> nn.Module:
    """The BatchNorm lies a pooling away from the convolution, which has no bias."""
    layers = nn.Conv2d(3, 4, 3, bias=False), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.ReLU()
    return nn.Sequential(*layers)


def dropped() -> nn.Module:
    """Between convolution and BatchNorm stands what does nothing in eval mode."""
    layers = nn.Conv2d(3, 4, 3, bias=False), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU()
    return nn.Sequential(*layers)


def transposed() -> nn.Module:
    conv = nn.ConvTranspose2d(3, 4, 3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def with_statistics() -> nn.Module:
    """An InstanceNorm with running statistics is a BatchNorm."""
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm, nn.ReLU())


class Branches(nn.Module):
    """A padded 3x3 and a 1x1 convolution that meet in a sum, as in RepVGG."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.nb = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.na(self.a(x)) + self.nb(self.b(x)))


class Features(nn.Module):
    """One BatchNorm on the features of a linear layer without a bias, one on another axis."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(7, 5, bias=False), nn.BatchNorm1d(9)
        self.two, self.norm = nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        within = torch.relu(self.other(self.one(x[:, 0]))).mean(1)
        return self.norm(self.two(within))  # type: ignore[no-any-return]


class Aliased(nn.Module):
    """The BatchNorm has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.alias = self.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.alias(self.conv(x)))


class Scaled(nn.Module):
    """An affine that is no BatchNorm, as a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def scaled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), Scaled(), nn.ReLU())


def scaled_and_normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


class OtherEpsilon(nn.BatchNorm2d):
    """It computes with another eps than it says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        numbers = self.running_mean, self.running_var, self.weight, self.bias
        return torch.nn.functional.batch_norm(x, *numbers, eps=0.1)


def other_epsilon() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), OtherEpsilon(4), nn.ReLU())


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()


def named(name: str) -> nn.Module:
    """A module, a parameter and a buffer of one name, which no constructor would have allowed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        block = nn.Sequential(OrderedDict(conv=conv, bn=bn)).eval()
        for tensor in (*bn.parameters(), bn.running_mean):
            tensor.detach().normal_()
        bn.running_var.uniform_(0.5, 2)
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
