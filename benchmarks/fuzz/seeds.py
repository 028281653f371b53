"""Random valid models of every format, small, with statistics that are never the default."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.formats.test_onnx_random import grown
from tests.hostile.meeting import good

SHAPE = (2, 3, 9, 7)
INPUT = ("--input", "x".join(map(str, SHAPE)))
LAYERS = "benchmarks.fuzz.seeds:layers"


def _norm(channels: int, chance: random.Random) -> nn.Module:
    norm = nn.BatchNorm2d(channels, eps=chance.choice((1e-5, 1e-3)))
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    norm.weight.data *= torch.tensor([chance.choice((-1.0, 1.0)) for _ in range(channels)])
    torch.nn.init.normal_(norm.bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    return norm


def _steps(channels: int, chance: random.Random) -> list[tuple[nn.Module, int]]:
    """Every layer that may follow so many channels, and how many it gives."""
    out = chance.choice((2, 4, 6))
    bias = chance.random() < 0.5
    size, pad = chance.choice(((1, 0), (3, 1), (3, 0)))
    groups = 2 if channels % 2 == out % 2 == 0 and chance.random() < 0.4 else 1
    conv = nn.Conv2d(channels, out, size, padding=pad, bias=bias, groups=groups)
    return [
        (conv, out),
        (conv, out),
        (nn.ConvTranspose2d(channels, out, 2, bias=bias), out),
        (_norm(channels, chance), channels),
        (_norm(channels, chance), channels),
        (nn.ReLU(), channels),
        (chance.choice((nn.Sigmoid(), nn.LeakyReLU(0.1), nn.Hardswish(), nn.PReLU())), channels),
        (chance.choice((nn.MaxPool2d, nn.AvgPool2d))(3, stride=1, padding=1), channels),
        (nn.Dropout(), channels),
        (nn.Upsample(scale_factor=2), channels),
    ]


def layers(seed: int) -> nn.Sequential:
    """A row of layers, with rows in it."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    channels, made, pending = SHAPE[1], nn.Sequential(), nn.Sequential()
    for _ in range(chance.randrange(2, 9)):
        layer, channels = chance.choice(_steps(channels, chance))
        pending.append(layer)
        if chance.random() < 0.3:
            made.append(pending)
            pending = nn.Sequential()
    made.append(pending)
    return made.eval()


class Branched(nn.Module):
    """Two rows side by side, added or joined, and a row after them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = random.Random(seed)
        torch.manual_seed(seed)
        width = chance.choice((2, 4))
        self.left = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), _norm(width, chance))
        self.right = nn.Sequential(nn.Conv2d(3, width, 1), *[_norm(width, chance)] * 1)
        self.joins = chance.random() < 0.5
        total = 2 * width if self.joins else width
        self.factor = chance.choice((1.0, -0.5, 3.0))
        self.tail = nn.Sequential(_norm(total, chance), nn.ReLU(), nn.Conv2d(total, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x) * self.factor
        both = torch.cat([left, right], 1) if self.joins else left + right
        return self.tail(both)  # type: ignore[no-any-return]


def network(seed: int) -> nn.Module:
    return Branched(seed).eval() if seed % 2 else layers(seed)


def _module(seed: int, path: Path) -> None:
    torch.save(layers(seed), path)


def _older(seed: int, path: Path) -> None:
    torch.save(layers(seed), path, _use_new_zipfile_serialization=False)


def _weights(seed: int, path: Path) -> None:
    torch.save(layers(seed).state_dict(), path)


def _safetensors(seed: int, path: Path) -> None:
    save_file(layers(seed).state_dict(), path, {"format": "pt"})


def _traced(seed: int, path: Path) -> None:
    torch.jit.trace(network(seed), torch.zeros(SHAPE)).save(str(path))


def _scripted(seed: int, path: Path) -> None:
    torch.jit.script(network(seed)).save(str(path))


def _torchscript(seed: int, path: Path) -> None:
    (_scripted if seed % 3 else _traced)(seed, path)


def _program(seed: int, path: Path) -> None:
    free = {"x" if seed % 2 else "input": {0: torch.export.Dim("N", min=2, max=9)}}
    sizes = free if seed % 3 == 0 else None
    program = torch.export.export(network(seed), (torch.zeros(SHAPE),), dynamic_shapes=sizes)
    with path.open("wb") as file:
        torch.export.save(program, file)


def _onnx(seed: int, path: Path) -> None:
    path.write_bytes(grown(seed).proto().SerializeToString())


def _golden(seed: int, path: Path) -> None:
    """A bundle of the model that nothing is wrong with, whose numbers are those of every seed."""
    from bnfold import golden

    golden(good(path.with_name("good.onnx"))).save(path)


def _recorded(seed: int, path: Path) -> None:
    """An input of that model."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    with path.open("wb") as file:
        np.savez(file, input=values)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a format is made, what it is called, the options that open it, and its commands.

    The first command meets every case, the others one in `RARELY`.
    """

    write: Callable[[int, Path], None]
    name: str
    options: Callable[[int], tuple[str, ...]] = lambda seed: INPUT
    commands: tuple[str, ...] = ("fold", "inspect", "golden", "export onnx", "verify candidate")


def _factory(seed: int) -> tuple[str, ...]:
    return ("--model", LAYERS, "--model-args", f"[{seed}]", *INPUT)


KINDS = {
    "onnx": Kind(_onnx, "m.onnx", lambda seed: ()),
    "module": Kind(_module, "m.pt"),
    "older module": Kind(_older, "m.pt"),
    "weights": Kind(_weights, "m.pt", _factory),
    "safetensors": Kind(_safetensors, "m.safetensors", _factory),
    "torchscript": Kind(_torchscript, "m.pt"),
    "program": Kind(_program, "m.pt2", lambda seed: ()),
    "golden": Kind(_golden, "m.golden.npz", lambda seed: (), ("verify golden",)),
    "recorded": Kind(_recorded, "m.npz", lambda seed: (), ("verify recorded", "golden recorded")),
}
