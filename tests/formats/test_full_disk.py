"""A disk that is full is an error of its own, in every format, and never the end of the process."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import bnfold
from bnfold.formats.model import Model
from bnfold.formats.opening import Opening, open_model
from tests.formats.networks import trained

FULL = Path("/dev/full")

pytestmark = [
    pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def network() -> nn.Module:
    return trained(nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()))


def converted(target: str) -> Model:
    return bnfold.fold(network(), "2x3x9x7", to=target, verify=False).folded


def weights(path: Path) -> Model:
    factory = f"{__name__}:network"
    return open_model(path, Opening(factory=factory))


def state_dict(folder: Path) -> Model:
    torch.save(network().state_dict(), folder / "w.pt")
    return weights(folder / "w.pt")


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda folder: converted("onnx"), id="onnx"),
        pytest.param(lambda folder: converted("torchscript"), id="torchscript"),
        pytest.param(lambda folder: converted("pt2"), id="pt2"),
        pytest.param(lambda folder: open_model(network()), id="module"),
        state_dict,
    ],
)
def test_a_full_disk_is_said(made: object, tmp_path: Path) -> None:
    assert callable(made)
    model = made(tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        model.save(FULL)
    assert caught.value.errno == errno.ENOSPC


def test_safetensors_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their writer replaces its target, and says so in an error of its own kind."""
    safetensors.torch.save_file(network().state_dict(), tmp_path / "w.safetensors")
    model = weights(tmp_path / "w.safetensors")

    def full(*arguments: object, **named: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        model.save(tmp_path / "out.safetensors")
    assert caught.value.errno == errno.ENOSPC
