"""Verifiers that could not fail: this one does, with an exit code, for each of these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnfold as package
from tests.conftest import Ended
from tests.formats.onnx_nets import Net

Run = Callable[..., Ended]


def original() -> Net:
    net = Net()
    inner = net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4, made="y")
    net.output(inner)
    net.output(net.node("Sigmoid", inner, made="z"))
    return net


def all_nan(net: Net) -> None:
    net.nodes[-1].input[0] = "unknown"
    net.node("Mul", "y", net.weight(np.nan), made="unknown")
    net.nodes.reverse()
    net.nodes[:] = [*net.nodes[:1:-1], *net.nodes[:2]]


def changed_epsilon(net: Net) -> None:
    net.nodes[1].attribute.append(onnx.helper.make_attribute("epsilon", 2e-5))


def missing_output(net: Net) -> None:
    del net.outputs[1]


def that_fails_while_running(net: Net) -> None:
    target = net.weight([5, 5, 5], np.int64)
    net.nodes[-1].output[0] = "unshaped"
    net.node("Reshape", "unshaped", target, made="z")


def that_does_not_load(net: Net) -> None:
    net.nodes[-1].op_type = "Sigmund"


WRONG: dict[Callable[[Net], None], int] = {
    all_nan: 1,
    changed_epsilon: 1,
    missing_output: 1,
    that_fails_while_running: 1,
    that_does_not_load: 3,
}


@pytest.mark.parametrize("damage", WRONG, ids=lambda f: f.__name__.replace("_", " "))
def test_a_wrong_candidate_ends_with_its_exit_code(
    damage: Callable[[Net], None], bnfold: Run, tmp_path: Path
) -> None:
    onnx.save(original().proto(), tmp_path / "original.onnx")
    net = original()
    damage(net)
    onnx.save(net.proto(), tmp_path / "candidate.onnx")
    ended = bnfold("verify", tmp_path / "original.onnx", tmp_path / "candidate.onnx")
    assert ended.code == WRONG[damage], ended
    assert "pass:" not in ended.out


def test_the_original_itself_passes(bnfold: Run, tmp_path: Path) -> None:
    onnx.save(original().proto(), tmp_path / "original.onnx")
    ended = bnfold("verify", tmp_path / "original.onnx", tmp_path / "original.onnx")
    assert ended.code == 0, ended


def test_default_statistics_hide_what_others_show() -> None:
    """A fold that forgets mean and beta: invisible with the statistics of a new BatchNorm."""

    def forgetful(net: nn.Sequential) -> nn.Sequential:
        conv, norm = net
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        folded = nn.Conv2d(3, 4, 3, bias=False)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        folded.weight.data = conv.weight.data * scale.data.view(-1, 1, 1, 1)
        return nn.Sequential(folded, nn.Identity()).eval()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    assert package.verify(net, forgetful(net), "2x3x9x7").passed
    nn.init.normal_(net[1].bias)
    assert not package.verify(net, forgetful(net), "2x3x9x7").passed


def test_both_optimisation_levels_of_the_runtime_are_compared() -> None:
    """Else the runtime's own fusions, alike on both sides, could hide what was folded wrongly."""
    result: Any = package.fold(original().proto())
    assert {row.place.provider for row in result.verification.rows} >= {"cpu", "cpu unoptimised"}
