"""Small networks for the tests of torch's forms, each with a trap in it, and how to judge a fold.

Every BatchNorm gets statistics and parameters that are far from their defaults: mean 0, variance 1,
gamma 1 and beta 0 would hide every mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bnfold.algebra.rounding import EPSILON, numpy_dtype
from bnfold.formats.model import Model
from bnfold.runtimes import Outputs, Sample

K = 8.0


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` in eval mode with random parameters and statistics; scales have both signs."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase):
                scatter(layer, normal)
            elif isinstance(layer, FrozenBatchNorm2d):
                for buffer in (layer.weight, layer.bias, layer.running_mean):
                    buffer.copy_(normal(buffer))
                layer.running_var.copy_(normal(layer.running_var).abs() + 0.3)
    return module.eval()


def scatter(layer: Any, normal: Callable[[torch.Tensor], torch.Tensor]) -> None:
    if layer.running_mean is not None:
        layer.running_mean.copy_(normal(layer.running_mean))
        layer.running_var.copy_(normal(layer.running_var).abs() + 0.3)
    if layer.weight is not None:
        sign = normal(layer.weight).sign()
        sign[:2] = torch.tensor([-1.0, 1.0])[: len(sign)]
        layer.weight.copy_(sign * (normal(layer.weight).abs() + 0.3))
        layer.bias.copy_(normal(layer.bias))


def noise(*shape: int, dtype: str = "float32", seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(numpy_dtype(dtype))


def excess(original: Model, outputs: Outputs, folded: Outputs, sample: Sample) -> float:
    """The largest RMS error of `folded`, in units of max(the original's own error, one ulp)."""
    truth = original.truth()(sample)
    assert list(folded) == list(outputs) == list(truth)
    ratios = [0.0]
    for name, exact in truth.items():
        assert folded[name].shape == outputs[name].shape == exact.shape
        assert folded[name].dtype == outputs[name].dtype
        scale = rms(exact)
        assert scale > 0
        ulp = EPSILON.get(outputs[name].dtype.name, 0.0) * scale
        floor = max(rms(outputs[name].astype(np.float64) - exact), ulp)
        error = rms(folded[name].astype(np.float64) - exact)
        ratios.append(error / floor if error else 0.0)
    return max(ratios)


def rms(values: np.ndarray[Any, Any]) -> float:
    return float(np.sqrt(np.mean(np.abs(values.astype(np.float64)) ** 2)))


def first(model: Model, sample: Sample) -> Outputs:
    """What the model gives where it runs first."""
    return model.runners()[0](sample)


class FrozenBatchNorm2d(nn.Module):
    """torchvision's: buffers only, scale and shift computed in forward."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        scale = weight * (self.running_var.reshape(1, -1, 1, 1) + self.eps).rsqrt()
        return x * scale + (bias - self.running_mean.reshape(1, -1, 1, 1) * scale)


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's: a BatchNorm2d that computes its activation as well."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.act(self.drop(x))


class Basic(nn.Module):
    """The basic block of ResNet, with an activation and an addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.down = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(True)),
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
            ),
            nn.Conv2d(8, 4, 1, bias=False),
            nn.BatchNorm2d(4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


class Function(nn.Module):
    """A forward given as a function of the module, for networks that need only a few lines."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


class Named(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


class Scale(nn.Module):
    """LayerScale: a parameter [C, 1, 1] that multiplies."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1.5, 2.0, channels).view(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Normalise(nn.Module):
    """What is done to images: the mean of each channel off, over its standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


class UnbiasedConv(nn.Conv2d):
    """A bias that is given to it later would have no effect."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, None)


class StandardisedConv(nn.Conv2d):
    """Weight standardisation, as in BiT: the weight is computed in forward."""

    def __init__(self) -> None:
        super().__init__(3, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, self.weight - mean, self.bias)


class DoubledBatchNorm(nn.BatchNorm2d):
    """Computes with more than its four tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.weight is not None
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight * 2, self.bias, False, 0.1, self.eps
        )
