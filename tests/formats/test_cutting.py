"""Submodules whose programs are cut out of the network's, and those that are captured again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bnfold
from bnfold.verbs.folding import FoldResult
from tests.formats.networks import trained
from tests.formats.test_generating import PARTS, Net, Part, assert_same_at_every_size

Then = Callable[[Any, Tensor], Any]


def folded(net: Net, monkeypatch: pytest.MonkeyPatch) -> tuple[FoldResult, int]:
    """The result, with every BatchNorm folded, and how often torch.export was called."""
    calls: list[object] = []
    export = torch.export.export

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return export(*args, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    net = trained(net)
    result = bnfold.fold(net, "1x3x16x12")
    assert result.passed
    assert result.plan.batchnorms.kept == 0
    assert_same_at_every_size(net, result.model)
    return result, len(calls)


def _with_rank(m: Any, y: Tensor) -> Tensor:
    torch._assert(y.ndim == 4, "images")
    return F.relu(y)


CUT: dict[str, Then] = {
    "an activation": lambda m, y: F.hardswish(y, inplace=True),
    "a residual": lambda m, y: y + F.relu(y),
    "the rank": _with_rank,
    "a mean": lambda m, y: y * y.mean((2, 3), keepdim=True).sigmoid(),
}

CAPTURED: dict[str, Then] = {
    "NO_SIZES: of its lists": lambda m, y: torch.cat(list(y.split(1, 1)), 1),
    "NO_SIZES: of torch's code": lambda m, y: F.interpolate(
        y, scale_factor=1.5, recompute_scale_factor=True
    ),
    "NO_SIZES: of an operator": lambda m, y: F.adaptive_avg_pool2d(y, (None, 3)),
    "ONE_VALUE: two results": lambda m, y: (y, y.relu()),
    "ONE_VALUE: a list of one": lambda m, y: [y.relu()],
}


@pytest.mark.parametrize("name", CUT)
def test_what_deals_with_no_sizes_is_captured_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, calls = folded(Net(Part(CUT[name])), monkeypatch)
    assert any("generated in place of Part" in note for note in result.notes)
    assert calls == 1


@pytest.mark.parametrize("name", CAPTURED)
def test_everything_else_is_captured_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result, calls = folded(Net(Part(CAPTURED[name])), monkeypatch)
    assert any("generated in place of Part" in note for note in result.notes)
    assert calls == 2


def test_a_number_that_is_a_size_holds_at_every_size() -> None:
    """torch.export cannot leave this size free, so that the class stays."""
    net = trained(Net(Part(lambda m, y: F.avg_pool2d(y, y.shape[2:]))))
    result = bnfold.fold(net, "1x3x16x12")
    assert result.plan.batchnorms.kept == 1
    assert_same_at_every_size(net, result.model)


def test_layers_and_activations_of_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    assert folded(Net(PARTS["activation"]()), monkeypatch)[1] == 1
    assert folded(Net(PARTS["branches"]()), monkeypatch)[1] == 1
