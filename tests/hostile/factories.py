"""The network of files that hold weights only."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


def small() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 3), b=nn.BatchNorm2d(4))).eval()
    statistics = net.b
    assert isinstance(statistics, nn.BatchNorm2d)
    for tensor in (statistics.running_mean, statistics.weight.data, statistics.bias.data):
        assert tensor is not None
        tensor.normal_()
    return net
