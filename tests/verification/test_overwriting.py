"""What a model does to the inputs of its caller is a part of what it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bnfold as package
from bnfold.formats.opening import Opening
from bnfold.protocol import Protocol
from bnfold.runtimes import overwritten
from bnfold.runtimes.torch_eager import TorchRunner
from bnfold.verbs.recording import golden


class Rectified(nn.Module):
    """conv(relu(x)), in place or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 2, 1)
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.relu_() if self.inplace else x.relu())


KEEPS, WRITES = Rectified(False).eval(), Rectified(True).eval()
SHAPE = "2x3x5x4"


def test_a_candidate_that_overwrites_its_input_fails() -> None:
    verdict = package.verify(KEEPS, WRITES, SHAPE)
    assert not verdict.passed
    assert "overwrites its caller's input x" in str(verdict.rows[0].why)
    assert [row.place.case for row in verdict.rows if row.passed] == ["zeros", "ones"]


@pytest.mark.parametrize("candidate", [WRITES, KEEPS], ids=["as well", "not"])
def test_an_original_that_does_may_be_followed(candidate: nn.Module) -> None:
    assert package.verify(WRITES, candidate, SHAPE).passed


def test_it_is_seen_in_a_process_of_its_own(tmp_path: Path) -> None:
    torch.save(WRITES, tmp_path / "writes.pt")
    verdict = package.verify(
        KEEPS,
        tmp_path / "writes.pt",
        SHAPE,
        protocol=Protocol(isolate=True),
        opening=Opening(trust=True),
    )
    assert "overwrites" in str(verdict.rows[0].why)


def test_a_golden_bundle_does_not_tell(tmp_path: Path) -> None:
    golden(WRITES, SHAPE).save(tmp_path / "golden.npz")
    assert package.verify(tmp_path / "golden.npz", WRITES).passed


@pytest.mark.parametrize(("module", "names"), [(KEEPS, ()), (WRITES, ("x",))])
def test_nan_is_no_change(module: nn.Module, names: tuple[str, ...]) -> None:
    sample = {"x": np.full((2, 3, 5, 4), np.nan, np.float32)}
    sample["x"][0] = -1.0
    assert overwritten(TorchRunner(module, {"x": None})(sample)) == names
