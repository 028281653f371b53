"""What it gains that linear maps go to where they cost least: heads that upsample and join.

python -m benchmarks.moving                       all networks, on one thread
python -m benchmarks.moving "SegFormer-B0 256"

Random weights; batch 1, float32, in ONNX Runtime on the CPU, everything optimised. From one file
that torch wrote with nothing folded: folded with its maps left where they are (`--no-move`), and
with maps moved. Every model runs in a process of its own and has a turn in every round; a figure is
how many times as fast as the unfolded model it is: the median over the rounds, and what nine of ten
stay above and below. `ratio` is the error of the moved model over that of the unfolded one, the
worst of all probes, both against float64.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold.formats.opening import open_model
from bnfold.verbs.input_resolution import resolve_inputs
from bnfold.verbs.inputs import example
from bnfold.verbs.targets import AS_IT_IS, converted

CLASSES = 19
"""Of Cityscapes (Cordts et al. 2016, arXiv:1604.01685), 4."""

B0 = (32, 64, 160, 256)
"""Channels of the four stages of SegFormer-B0 (Xie et al. 2021, arXiv:2105.15203, table 6)."""

W18 = (18, 36, 72, 144)
"""Channels of the four resolutions of HRNet-W18 (Sun et al. 2019, arXiv:1904.04514)."""


def segformer() -> nn.Module:
    """SegFormer-B0 as transformers has it."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(hidden_sizes=[*B0], num_labels=CLASSES)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = SegformerForSemanticSegmentation(config)

        def forward(self, x: Tensor) -> Any:
            return self.network(pixel_values=x).logits

    return Logits()


class SegformerHead(nn.Module):
    """A linear layer for each stage, upsampled, joined, and two 1x1 convolutions (3.2)."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(channels, width) for channels in B0)
        self.fuse = nn.Conv2d(width * len(B0), width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        images = []
        for layer, x in zip(self.layers, (a, b, c, d), strict=True):
            n, _, height, width = x.shape
            tokens = layer(x.flatten(2).transpose(1, 2))
            image = tokens.transpose(1, 2).reshape(n, -1, height, width)
            images.append(functional.interpolate(image, size=a.shape[2:], mode="bilinear"))
        fused = self.norm(self.fuse(torch.cat(images[::-1], 1)))
        logits: Tensor = self.classifier(torch.relu(fused))
        return logits


class HrnetHead(nn.Module):
    """Four resolutions, upsampled and joined, and two 1x1 convolutions (figure 3)."""

    def __init__(self) -> None:
        super().__init__()
        width = sum(W18)
        self.fuse = nn.Conv2d(width, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        size = a.shape[2:]
        ups = [functional.interpolate(x, size=size, mode="bilinear") for x in (b, c, d)]
        fused = self.norm(self.fuse(torch.cat((a, *ups), 1)))
        logits: Tensor = self.classifier(torch.relu(fused))
        return logits


class Aspp(nn.Module):
    """Dilated convolutions beside the mean of the image (Chen et al. 2017, arXiv:1706.05587)."""

    def __init__(self, channels: int = 320, width: int = 256) -> None:
        super().__init__()
        self.point = self._block(channels, width, 1)
        self.wide = nn.ModuleList(self._block(channels, width, 3, d) for d in (12, 24, 36))
        self.pooled = self._block(channels, width, 1)
        self.project = self._block(width * 5, width, 1)
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def _block(self, channels: int, width: int, kernel: int, dilation: int = 1) -> nn.Module:
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(channels, width, kernel, padding=padding, dilation=dilation, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        whole = self.pooled(functional.adaptive_avg_pool2d(x, 1))
        whole = functional.interpolate(whole, size=x.shape[2:], mode="bilinear")
        joined = torch.cat([self.point(x), *(each(x) for each in self.wide), whole], 1)
        logits: Tensor = self.classifier(self.project(joined))
        return logits


class PointnetHead(nn.Module):
    """The feature of each point beside that of the whole cloud (arXiv:1612.00593, figure 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv1d(64, 1024, 1)
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in ((1088, 512), (512, 128)))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in (512, 128))

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.relu(self.wide(x)).amax(2, keepdim=True)
        x = torch.cat((x, whole.expand(-1, -1, x.shape[2])), 1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.relu(norm(layer(x)))
        return x


@dataclass(frozen=True, slots=True)
class Case:
    make: Callable[[], nn.Module]
    inputs: tuple[str, ...]


def _pyramid(widths: tuple[int, ...], size: int) -> tuple[str, ...]:
    """Features at a quarter of `size`, an eighth, and so on."""
    return tuple(f"1x{c}x{size >> (2 + i)}x{size >> (2 + i)}" for i, c in enumerate(widths))


CASES = {
    **{f"SegFormer-B0 {s}": Case(segformer, (f"1x3x{s}x{s}",)) for s in (256, 512)},
    **{f"SegFormer head {s}": Case(SegformerHead, _pyramid(B0, s)) for s in (256, 512)},
    **{f"HRNet head {s}": Case(HrnetHead, _pyramid(W18, s)) for s in (256, 512)},
    "ASPP 512": Case(Aspp, ("1x320x32x32",)),
    "PointNet head 1024": Case(PointnetHead, ("1x64x1024",)),
}


def trained(module: nn.Module) -> nn.Module:
    """Statistics and scales as training leaves them, never the default."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.rand, generator=generator)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.copy_(draw(norm.num_features) - 0.5)
                norm.running_var.copy_(draw(norm.num_features) + 0.5)
                norm.weight.copy_(draw(norm.num_features) + 0.5)
                norm.bias.copy_(draw(norm.num_features) - 0.5)
    return module.eval()


def measured(name: str, folder: Path, timing: bnfold.Timing) -> list[str]:
    """The line of one network."""
    torch.manual_seed(0)
    case = CASES[name]
    module = trained(case.make())
    original = open_model(module)
    inputs = resolve_inputs(original, case.inputs)
    paths = [folder / f"{label}.onnx" for label in ("unfolded", "folded", "moved")]
    converted(original, "onnx", inputs, example(inputs), AS_IT_IS).save(paths[0])
    bnfold.fold(paths[0], verify=False, move=False).save(paths[1])
    moved = bnfold.fold(paths[0])
    moved.save(paths[2])
    found = bnfold.bench(paths, timing=timing)
    ratios = {
        each.model: each.speedup for each in found.comparisons if each.baseline == paths[0].name
    }
    work = moved.to_json()["cost"]
    adds = [work[when]["multiply_adds"] / 1e6 for when in ("before", "after")]
    assert moved.verification is not None
    return [
        f"`{name}`",
        f"{adds[0]:,.0f} M",
        f"{adds[1]:,.0f} M",
        f"{1e3 * found.measurements[0].latency.median:.1f} ms",
        *(f"{r.median:.2f} ({r.p10:.2f}-{r.p90:.2f})" for r in (ratios[p.name] for p in paths[1:])),
        f"{moved.verification.smallest_k:.2f}",
    ]


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(CASES)))
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--rounds", type=int, default=30, show_default=True)
def main(names: tuple[str, ...], threads: int, rounds: int) -> None:
    timing = bnfold.Timing(rounds=rounds, threads=threads)
    columns = ["network", "multiply-adds", "moved", "unfolded", "folded", "moved", "ratio"]
    click.echo(f"| {' | '.join(columns)} |")
    click.echo(f"| --- |{' ---: |' * (len(columns) - 1)}")
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            click.echo(f"| {' | '.join(measured(name, Path(folder), timing))} |")


if __name__ == "__main__":
    main()
