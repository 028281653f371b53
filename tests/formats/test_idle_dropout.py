"""A dropout that gives what it is given is no random operator, whatever it works on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnfold
from bnfold.errors import ModelError
from tests.formats.networks import trained


class Dropping(nn.Module):
    """A dropout on a constant, and a BatchNorm that folds; the probability and mode are given."""

    def __init__(self, p: float, training: bool) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("table", torch.rand(4, 7, 5))
        self.p, self.active = p, training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = nn.functional.dropout(self.table, self.p, training=self.active)
        return self.bn(self.conv(x)) + table  # type: ignore[no-any-return]


def test_in_eval_a_constant_stays_one() -> None:
    result = bnfold.fold(trained(Dropping(0.5, False)), "2x3x9x7", form="graph")
    assert (result.verdict, result.plan.batchnorms.folded) == ("pass", 1)


def test_in_training_it_is_random() -> None:
    with pytest.raises(ModelError, match="gives other numbers each time"):
        bnfold.fold(trained(Dropping(0.5, True)), "2x3x9x7", form="graph")
