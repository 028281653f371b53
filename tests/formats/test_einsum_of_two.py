"""Einstein sums of two computed values that are matrix products, in every form."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn

from bnfold.algebra.checking import check
from bnfold.algebra.rounding import make_rounded_plan
from tests.formats import test_parity
from tests.formats.networks import excess, first, noise, trained

SAMPLE = {"x": noise(2, 3, 7, 5)}
Pair = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Case(NamedTuple):
    """What is made of two values [2, 8, 7, 5], with channels on axis 1; whether it folds."""

    run: Pair
    folds: bool
    shifts: bool = False


def attention(v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Over the 35 pixels, in two heads of four channels: [2, 8, 35]."""
    logits = torch.einsum("bhdq,bhdk->bhqk", w.reshape(2, 2, 4, 35), w.reshape(2, 2, 4, 35).tanh())
    values = v.reshape(2, 2, 4, 35).permute(0, 3, 1, 2)
    mixed = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), values)
    return mixed.flatten(2).transpose(1, 2)


def last(y: torch.Tensor) -> torch.Tensor:
    return y.flatten(2).transpose(1, 2)


def wide(y: torch.Tensor) -> torch.Tensor:
    """Eight columns."""
    return y.repeat(1, 1, 1, 2)[..., :8]


CASES = {
    "rows": Case(lambda v, w: torch.einsum("nchw,ncHw->nchH", v, w), True),
    "rows, turned": Case(lambda v, w: torch.einsum("nchw,ncHw->ncHh", v, w), True),
    "channels of one": Case(lambda v, w: torch.einsum("nchw,ndhw->ncdh", v, w[:, :6]), True),
    "channels last": Case(lambda v, w: torch.einsum("nkc,nkq->ncq", last(v), last(w)), True),
    "shifted": Case(lambda v, w: torch.einsum("nchw,ncHw->nchH", v, w), False, True),
    "attention": Case(attention, True, True),
    "channels summed": Case(lambda v, w: torch.einsum("nchw,nchv->nvhw", v, wide(w)), False),
    "one of size 1": Case(lambda v, w: torch.einsum("nchw,nchv->ncwv", v[:, :, :1], w), False),
    "with a diagonal": Case(lambda v, w: torch.einsum("nchw,nchw->nch", v, w), False),
}


class Two(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        made = case.run(torch.zeros(2, 8, 7, 5), torch.zeros(2, 8, 7, 5))
        self.norm = nn.BatchNorm2d(8) if made.ndim == 4 else nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.norm(self.case.run(self.one(x), self.two(x).sigmoid()))
        return made


@pytest.mark.parametrize("form", ["pt2", "torchscript", "onnx"])
@pytest.mark.parametrize("name", CASES)
def test_an_einstein_sum_is_the_product_that_it_is(
    name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_parity, "SAMPLE", SAMPLE)
    case = CASES[name]
    net = trained(Two(case))
    if not case.shifts:
        nn.init.zeros_(net.norm.bias)
        nn.init.zeros_(net.norm.running_mean)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model = test_parity.MADE[form](net)
    plan, weights = make_rounded_plan(check(model.read(SAMPLE)), model.locked(), model.veto)
    assert (plan.batchnorms.kept == 0) == case.folds, str(plan)
    made = model.write(plan, weights)
    assert excess(model, first(model, SAMPLE), first(made, SAMPLE), SAMPLE) < 8
