"""TorchScript that asks for more than any network does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bnfold as package
from bnfold.errors import ModelError
from bnfold.formats.opening import open_model
from bnfold.formats.torchscript.bounds import require_few_rounds
from tests.formats.networks import trained


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        trained(self)


class Counts(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(x))
        for _ in range(1000000000000000):
            y = y + 1.0
        return y


class Inside(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(x))
        if x.size(0) > 1000:
            for _ in range(1000000000000000):
                y = y + 1.0
        return y


class Few(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(x))
        for _ in range(7):
            y = y + 1.0
        return y


class Breaks(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(x))
        for i in range(1000000000000000):
            y = y + 1.0
            if i > 3:
                break
        return y


class Ends(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.conv(x))
        n = 0
        while n < 4:
            y = y + 1.0
            n += 1
        return y


@pytest.mark.parametrize("made", [Counts, Inside])
def test_a_loop_that_only_counts_is_refused(made: type[Net]) -> None:
    with pytest.raises(ModelError, match="goes round 1,000,000,000,000,000 times") as caught:
        open_model(torch.jit.script(made().eval()))
    assert "made to do harm" in str(caught.value.hint)


def test_so_many_rounds_are_too_many() -> None:
    for rounds, refused in ((10_000_000, False), (10_000_001, True)):
        loop = f"for _ in range({rounds}):\n        x = x + 1.0"
        unit: Any = torch.jit.CompilationUnit(f"def f(x):\n    {loop}\n    return x\n")
        with pytest.raises(ModelError, match="goes round") if refused else nullcontext():
            require_few_rounds(unit.f)


@pytest.mark.parametrize("made", [Few, Ends, Breaks])
def test_others_fold(made: type[Net]) -> None:
    result = package.fold(torch.jit.script(made().eval()), "2x3x5x7")
    assert (result.plan.batchnorms.folded, result.passed) == (1, True)


def test_a_chain_of_equal_nodes() -> None:
    """More than Python's stack is deep."""

    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(1200):
                x = torch.relu(x)
            return x

    traced = torch.jit.trace(Chain(), torch.randn(2, 3, 5, 7), check_trace=False)
    _, plan = package.inspect(traced, "2x3x5x7")
    assert len(plan.before.nodes) == 1200


def test_modules_in_modules() -> None:
    inner: nn.Module = nn.BatchNorm2d(4)
    for _ in range(60):
        inner = nn.Sequential(inner)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), inner).eval()
    result = package.fold(net, "2x3x5x7")
    assert (result.plan.batchnorms.folded, result.passed) == (1, True)


class Only(Net):
    """Runs with one number, which nothing but a recorded input tells."""

    def forward(self, x: torch.Tensor, rate: int) -> torch.Tensor:
        if rate != 16000:
            raise ValueError("only 16000")
        return self.bn(self.conv(x))


def test_what_was_recorded_is_what_a_model_is_read_with(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 9, 7)).astype(np.float32)
    np.savez(tmp_path / "rate.npz", x=x, rate=np.array(16000))
    protocol = package.Protocol(recorded=(tmp_path / "rate.npz",))
    result = package.fold(torch.jit.script(Only().eval()), protocol=protocol)
    assert (result.plan.batchnorms.folded, result.passed) == (1, True)
    assert result.verification is not None
    first, *others = [row.place.case for row in result.verification.rows]
    assert first == "rate.npz"
    assert "noise" in others  # which keeps the number
