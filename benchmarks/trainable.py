"""Networks as they are trained: branches, BatchNorms and all, with random statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def conv_bn(wide: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(wide, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class Branches(nn.Module):
    """Convolutions with a BatchNorm each, and one alone where the shape allows, added up."""

    def __init__(self, wide: int, out: int, kernels: list[int], stride: int, groups: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv_bn(wide, out, k, stride, groups) for k in kernels)
        self.skip = nn.BatchNorm2d(wide) if wide == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        total = sum((conv(x) for conv in self.convs), torch.zeros(()))
        return torch.relu(total if self.skip is None else total + self.skip(x))


def classified(layers: list[nn.Module], wide: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 1000))


def repvgg() -> nn.Module:
    """RepVGG-A0 (Ding et al. 2021, arXiv:2101.03697)."""
    layers: list[nn.Module] = []
    wide = 3
    for out, depth in ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)):
        for i in range(depth):
            layers.append(Branches(wide, out, [3, 1], 2 if i == 0 else 1, 1))
            wide = out
    return classified(layers, wide)


def mobileone() -> nn.Module:
    """MobileOne-S0 with four branches (Vasu et al. 2022, arXiv:2206.04040)."""
    layers: list[nn.Module] = [Branches(3, 48, [3, 3, 3, 3, 1], 2, 1)]
    wide = 48
    for out, depth in ((48, 2), (128, 8), (256, 10), (1024, 1)):
        for i in range(depth):
            stride = 2 if i == 0 else 1
            layers.append(Branches(wide, wide, [3, 3, 3, 3, 1], stride, wide))
            layers.append(Branches(wide, out, [1, 1, 1, 1], 1, 1))
            wide = out
    return classified(layers, wide)


class Dense(nn.Module):
    """A layer of DenseNet: BatchNorm before each convolution, its input beside its output."""

    def __init__(self, wide: int, growth: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, 4 * growth, 1, bias=False)
        )
        self.second = nn.Sequential(
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.second(self.first(x))], 1)


def densenet() -> nn.Module:
    """DenseNet-121 (Huang et al. 2017, arXiv:1608.06993)."""
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    wide, growth = 64, 32
    for block, depth in enumerate((6, 12, 24, 16)):
        if block:
            half = [nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, wide // 2, 1, bias=False)]
            layers += [*half, nn.AvgPool2d(2)]
            wide //= 2
        for _ in range(depth):
            layers.append(Dense(wide, growth))
            wide += growth
    return classified([*layers, nn.BatchNorm2d(wide), nn.ReLU()], wide)


class Logits(nn.Module):
    """A model of transformers as a function from an image to scores."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image, return_dict=False)[0]
        return logits


def resnet() -> nn.Module:
    """ResNet-50 (He et al. 2016, arXiv:1512.03385)."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return Logits(ResNetForImageClassification(ResNetConfig(num_labels=1000)))


def levit() -> nn.Module:
    """LeViT-128S (Graham et al. 2021, arXiv:2104.01136)."""
    from transformers import LevitConfig, LevitForImageClassification

    sizes = {"hidden_sizes": [128, 256, 384], "num_attention_heads": [4, 6, 8]}
    return Logits(LevitForImageClassification(LevitConfig(**sizes, depths=[2, 3, 4])))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "RepVGG-A0": repvgg,
    "MobileOne-S0": mobileone,
    "ResNet-50": resnet,
    "DenseNet-121": densenet,
    "LeViT-128S": levit,
}


def trained(name: str) -> nn.Module:
    """The network in eval mode; every BatchNorm has statistics and scales of its own."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()
