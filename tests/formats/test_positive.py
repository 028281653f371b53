"""A scale above zero passes what is positively homogeneous, in every form; others stay."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from bnfold.algebra.refusal import Reason
from bnfold.algebra.rounding import make_rounded_plan
from tests.formats import test_parity
from tests.formats.networks import excess, first, noise, trained

Run = Callable[[torch.Tensor], torch.Tensor]
SAMPLE = {"x": noise(2, 3, 7, 5)}
POSITIVE = torch.linspace(0.5, 2.0, 8)

RUNS: dict[str, Run] = {
    "relu": lambda y: y.relu(),
    "abs": lambda y: y.abs(),
    "amax": lambda y: y.amax((2, 3), keepdim=True),
    "amax of rows": lambda y: y.amax(2).unsqueeze(2),
    "amin": lambda y: y.amin((2, 3), keepdim=True),
    "amin of rows": lambda y: y.amin(2).unsqueeze(2),
    "min of an axis": lambda y: y.min(3, keepdim=True)[0],
    "l1": lambda y: y.abs().sum((2, 3), keepdim=True),
}


class Scaled(nn.Module):
    def __init__(self, run: Run, scale: torch.Tensor) -> None:
        super().__init__()
        self.conv, self.run = nn.Conv2d(3, 8, 1), run
        self.scale = nn.Parameter(scale.view(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.run(self.conv(x)) * self.scale).tanh()


@pytest.mark.parametrize("form", ["pt2", "torchscript", "onnx"])
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("negative", [False, True])
def test_a_scale_passes_where_it_is_positive(
    name: str, form: str, negative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_parity, "SAMPLE", SAMPLE)
    scale = POSITIVE.clone()
    scale[3] *= -1 if negative else 1
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model = test_parity.MADE[form](trained(Scaled(RUNS[name], scale)))
    plan, weights = make_rounded_plan(model.read(SAMPLE), model.locked(), model.veto)
    assert {site.reason for site in plan.sites} == ({Reason.NEGATIVE_SCALE} if negative else {None})
    made = model.write(plan, weights)
    assert excess(model, first(model, SAMPLE), first(made, SAMPLE), SAMPLE) < 8


def test_the_larger_of_two_tensors_is_no_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_parity, "SAMPLE", SAMPLE)
    model = test_parity.script(trained(Scaled(lambda y: torch.max(y, y.tanh()), POSITIVE)))
    plan, _ = make_rounded_plan(model.read(SAMPLE), model.locked(), model.veto)
    assert {site.reason for site in plan.sites} == {Reason.NOT_LINEAR}
