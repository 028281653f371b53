"""A file in which nothing folds stays byte for byte what it is, and nothing is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnfold
from tests.conftest import Ended
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net


class Plain(nn.Module):
    """A convolution with nothing behind it to fold, until `bn` is asked for."""

    def __init__(self, bn: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4) if bn else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


def onnx_net(*, random: bool = False, bn: bool = False) -> onnx.ModelProto:
    net = Net()
    y = net.conv(net.input("x", "N", 3, "H", "W"), 3, 4)
    y = net.bn(y, 4) if bn else y
    y = net.node("Relu", y)
    if random:
        y = net.node("Add", y, net.node("RandomNormalLike", y))
    net.output(y)
    return net.proto()


@pytest.fixture(params=["onnx", "torchscript", "pt2", "module"])
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of each format in which nothing folds."""
    path = tmp_path / "plain"
    net = trained(Plain()).eval()
    match request.param:
        case "onnx":
            onnx.save(onnx_net(), path)
        case "torchscript":
            torch.jit.script(net).save(path)
        case "pt2":
            path = tmp_path / "plain.pt2"
            torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 7, 5),)), path)
        case "module":
            torch.save(nn.Sequential(net.conv, nn.ReLU()).eval(), path)
    return path


def test_the_result_is_the_file_as_it_was(plain: Path, tmp_path: Path) -> None:
    result = bnfold.fold(plain, None if plain.suffix == ".pt2" else "1x3x7x5")
    written = tmp_path / "result"
    result.save(written)
    assert (result.verdict, result.verification) == ("unchanged", None)
    assert written.read_bytes() == plain.read_bytes()


def test_it_is_verified_on_demand(plain: Path) -> None:
    given = None if plain.suffix == ".pt2" else "1x3x7x5"
    result = bnfold.fold(plain, given, verify_anyway=True)
    assert result.verdict == "pass"


def test_no_input_is_asked_for_and_nothing_is_run(
    tmp_path: Path, bnfold: Callable[..., Ended]
) -> None:
    """Free sizes and random numbers stand in the way of running a model, not of leaving it."""
    onnx.save(onnx_net(random=True), tmp_path / "net.onnx")
    ended = bnfold("fold", tmp_path / "net.onnx", "--format", "json")
    assert (ended.code, ended.json["verdict"]) == (0, "unchanged")
    assert "verify" not in {stage["name"] for stage in ended.json["stages"]}
    assert any("nothing folds" in note for note in ended.json["notes"])


def test_a_model_that_folds_is_verified() -> None:
    assert bnfold.fold(onnx_net(bn=True), "1x3x7x5").verdict == "pass"


def test_a_result_with_no_verification_is_told_from_one_that_changed_nothing(
    tmp_path: Path,
) -> None:
    onnx.save(onnx_net(bn=True), tmp_path / "net.onnx")
    assert bnfold.fold(tmp_path / "net.onnx", verify=False).verdict == "unverified"


def test_a_model_that_was_in_train_mode_changes(tmp_path: Path) -> None:
    """Its file is not the model that is to be deployed."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.ReLU()).train()
    torch.save(net, tmp_path / "net.pt")
    result = bnfold.fold(tmp_path / "net.pt", "1x3x7x5")
    result.save(tmp_path / "folded.pt")
    assert result.verdict == "pass"
    assert not torch.load(tmp_path / "folded.pt", weights_only=False).training


def test_weights_in_a_file_of_their_own_are_written_with_the_model(tmp_path: Path) -> None:
    """A copy of the model's file alone would be half a model."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = tmp_path / "net.onnx"
    onnx.save(onnx_net(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    bnfold.fold(path, "1x3x7x5").save(folder / "net.onnx")
    loaded = [onnx.load(each) for each in (path, folder / "net.onnx")]
    one, other = ([onnx.numpy_helper.to_array(t) for t in m.graph.initializer] for m in loaded)
    assert one
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batchnorm_that_has_to_fold_and_does_not_still_fails(
    tmp_path: Path, bnfold: Callable[..., Ended]
) -> None:
    net = Net()
    net.output(net.node("Relu", net.bn(net.node("Relu", net.input("x", 1, 3, 5, 7)), 3)))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    ended = bnfold("fold", tmp_path / "net.onnx", "--require-folded")
    assert ended.code == 1
    assert not (tmp_path / "net.folded.onnx").exists()


def test_options_that_contradict_each_other(tmp_path: Path, bnfold: Callable[..., Ended]) -> None:
    onnx.save(onnx_net(), tmp_path / "net.onnx")
    ended = bnfold("fold", tmp_path / "net.onnx", "--no-verify", "--verify-anyway")
    assert ended.code == 2
    assert "--no-verify and --verify-anyway exclude each other" in ended.err
