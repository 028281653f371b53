"""An exported program that asks for more memory than its inputs and weights explain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._export.serde import schema

from bnfold.errors import ModelError
from bnfold.formats import sizes
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch.exported_program import ExportedProgramModel
from bnfold.formats.pytorch.program_entries import EntryError, _Checks


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


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        *((schema.Argument, entry) for entry in (7, {}, {"nothing": 1})),
        (schema.Argument, {"as_int": 1, "as_bool": True}),
        *((float, entry) for entry in (True, [1.0], "1e5", "os.system")),
    ],
    ids=str,
)
def test_an_entry_is_of_the_kind_that_the_schema_says(kind: Any, entry: Any) -> None:
    with pytest.raises(EntryError):
        _Checks().walk(kind, entry, ("Argument.as_float",))
