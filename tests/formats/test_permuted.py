"""Channels that change places before a layer, or are repeated for it, in every form."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from tests.formats.networks import trained
from tests.forms import FORMS

Run = Callable[[torch.Tensor], torch.Tensor]


class Image(nn.Module):
    """A BatchNorm and a convolution of three channels, which read what `run` makes of an image."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.norm, self.conv = run, nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.conv(self.norm(self.run(x))).relu()
        return made


class Within(nn.Module):
    """The same in a submodule, which can be generated where its class stands in the way."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.image, self.last = Image(run), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.last(self.image(x))
        return made


RUNS: dict[str, tuple[Run, int]] = {
    "index list": (lambda x: x[:, [2, 0, 1]], 3),
    "index select": (lambda x: x.index_select(1, torch.tensor([1, 2, 0])), 3),
    "flip": (lambda x: x.flip(1), 3),
    "slices": (lambda x: torch.cat((x[:, 2:], x[:, :1], x[:, 1:2]), 1), 3),
    "channels last": (lambda x: x.permute(0, 2, 3, 1)[..., [2, 1, 0]].permute(0, 3, 1, 2), 3),
    "expand": (lambda x: x.expand(-1, 3, -1, -1), 1),
    "repeat": (lambda x: x.repeat(1, 3, 1, 1), 1),
}
SELECTING = {"Gather", "GatherND", "Slice", "Concat", "Expand", "Tile", "Transpose"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", RUNS)
def test_the_weights_take_the_order(name: str, form: str) -> None:
    run, channels = RUNS[name]
    net, x = trained(Within(run)), torch.randn(2, channels, 9, 7)
    result: Any
    with contextlib.redirect_stdout(io.StringIO()):
        if form in ("module", "graph"):
            result = bnfold.fold(net, x, form=form)  # type: ignore[arg-type]
        else:
            result = bnfold.export(net, x, to=[form])[form]
    assert result.verification.passed, result.verification.summary
    assert result.plan.batchnorms.kept == 0
    if form == "graph":
        calls = [n.target for n in result.model.graph.nodes if n.op == "call_function"]
        assert len(calls) == 3
        (weight,) = (t for n, t in result.model.state_dict.items() if n == "image.conv.weight")
        assert weight.shape == (4, channels, 3, 3)
    if form == "onnx" and name != "repeat":  # the exporter writes an Expand to the same size, too
        assert not SELECTING & {node.op_type for node in result.model.graph.node}
