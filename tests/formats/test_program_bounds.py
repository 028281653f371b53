"""An exported program that asks for more memory than its inputs and weights explain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bnfold.errors import ModelError
from bnfold.formats import sizes
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch.exported_program import ExportedProgramModel


class Makes(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv, self.side = nn.Conv2d(3, 2, 1), side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + torch.ones([self.side, self.side]).sum()


def program(side: int) -> ExportedProgramModel:
    """Captured without taking the memory."""
    model = open_model(torch.export.export(Makes(side).eval(), (torch.randn(2, 3, 5, 7),)))
    assert isinstance(model, ExportedProgramModel)
    return model


USES: dict[str, Callable[[ExportedProgramModel], Any]] = {
    "read": lambda model: model.read(),
    "truth": lambda model: model.truth(),
    "runners": lambda model: model.runners(),
}


@pytest.mark.parametrize("use", USES)
def test_gigabytes_are_refused_by_whatever_would_take_them(use: str) -> None:
    with pytest.raises(ModelError, match=r"of which ones \(aten.ones.default\) 10.0 GB"):
        USES[use](program(50_000))
    USES[use](program(100))


def test_the_bound_grows_with_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """840 bytes of input and 32 of weights explain a thousand times as much."""
    monkeypatch.setattr(sizes, "MOST_BYTES", 0)
    program(400).read()
    with pytest.raises(ModelError, match="its values take"):
        program(500).read()
