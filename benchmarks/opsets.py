"""docs/opsets.md: which opset which way reaches, verified.

python -m benchmarks.opsets

Networks with random statistics: what a classifier, a mobile network, a U-Net and a transformer are
made of. "pass" is a verified export with every BatchNorm folded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import BnfoldError
from bnfold.verbs.targets import Conversion

OPSETS = (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
WAYS = ("PyTorch", "TorchScript", "ONNX 20")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem(x), 2)
        return self.head(torch.relu(self.block(x) + x).mean((2, 3)))  # type: ignore[no-any-return]


class Mobile(nn.Module):
    """Hard-swish, squeeze and excitation, depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(12, 12, 3, groups=12), nn.BatchNorm2d(12))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.expand(x))
        return x * self.gate(x)


class UNet(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU())
        self.up = nn.Sequential(nn.Conv2d(12, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        small = nn.functional.avg_pool2d(x, 2)
        large = nn.functional.interpolate(small, scale_factor=2.0, mode=self.mode)
        return self.up(torch.cat([x, large], 1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return nn.functional.gelu(self.norm(tokens + mixed))


NETWORKS: Mapping[str, Any] = {
    "residual": Residual,
    "mobile": Mobile,
    "U-Net, nearest": partial(UNet, "nearest"),
    "U-Net, bilinear": partial(UNet, "bilinear"),
    "attention": Attention,
}


def made(name: str) -> nn.Module:
    """The network with random statistics, and gammas of both signs."""
    torch.manual_seed(0)
    network: nn.Module = NETWORKS[name]().eval()
    for each in network.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.normal_(each.weight)
            nn.init.normal_(each.bias)
            assert each.running_mean is not None
            assert each.running_var is not None
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
    return network


def fate(given: Any, opset: int) -> str:
    """ "pass", "fail" or what the refusal proposes."""
    try:
        result = bnfold.export(given, "Nx3x20x16", how=Conversion(opset=opset))
    except BnfoldError as error:
        return (error.hint or str(error)).removeprefix("use --opset ")
    kept = result["onnx"].plan.batchnorms.kept
    return "pass" if result.passed and not kept else f"{kept} kept" if result.passed else "fail"


def rows() -> Iterator[tuple[str, ...]]:
    for name in NETWORKS:
        network = made(name)
        onnx = bnfold.export(network, "Nx3x20x16")["onnx"].model
        forms = (network, torch.jit.script(network), onnx)
        for way, form in zip(WAYS, forms, strict=True):
            yield name, way, *(fate(form, opset) for opset in OPSETS)


def main() -> None:
    warnings.simplefilter("ignore")
    headings = ("network", "from", *map(str, OPSETS))
    for cells in (headings, tuple("---" for _ in headings), *rows()):
        print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
