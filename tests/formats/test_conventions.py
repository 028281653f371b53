"""After a fold, what a library does with a model of its own still runs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from bnfold import Opening
from bnfold.errors import UntrustedError
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch.conventions import fused_form_of
from tests.formats.networks import trained
from tests.hostile.pickles import CONTAINERS, call, named, text

X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """As detection libraries build them: their loaders fuse every one that has a `bn`."""

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))  # type: ignore[no-any-return]

    def forward_fuse(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x))  # type: ignore[no-any-return]


class Detector(nn.Module):
    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.a, self.b = Block(3, 6), Block(6, 5, 1)
        if not norm:
            self.b.bn = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]

    def fuse(self) -> Detector:
        for block in self.modules():
            if isinstance(block, Block) and hasattr(block, "bn"):
                block.conv = nn.utils.fuse_conv_bn_eval(block.conv, block.bn)  # type: ignore[type-var]
                del block.bn
                block.forward = block.forward_fuse  # type: ignore[method-assign]
        return self


def near(after: torch.Tensor, before: torch.Tensor) -> None:
    """To float32's rounding of two layers."""
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5


@pytest.fixture
def detector() -> Any:
    return trained(Detector()).eval()


ALLOW = Opening(allow=(__name__,))


@torch.no_grad()
def test_a_folded_detector_is_in_the_fused_form(detector: Any, tmp_path: Path) -> None:
    torch.save({"model": detector, "ema": None}, tmp_path / "m.pt")
    result = bnfold.fold(tmp_path / "m.pt", "2x3x9x7", opening=ALLOW)
    assert result.passed
    assert result.plan.batchnorms.folded == 2
    result.save(tmp_path / "f.pt")
    found = torch.load(tmp_path / "f.pt", weights_only=False)["model"]
    assert type(found) is Detector
    assert not hasattr(found.a, "bn")
    assert not any(isinstance(part, nn.Identity) for part in found.modules())
    before = detector(X)
    near(found(X), before)
    near(found.fuse()(X), before)
    near(copy.deepcopy(found)(X), before)
    near(torch.jit.trace(found, X)(X), before)
    assert bnfold.fold(tmp_path / "f.pt", "2x3x9x7", opening=ALLOW).passed
    assert "bn" in detector.a._modules


@torch.no_grad()
def test_what_the_library_has_fused_opens_and_folds(detector: Any, tmp_path: Path) -> None:
    torch.save(copy.deepcopy(detector).fuse(), tmp_path / "m.pt")
    model = open_model(tmp_path / "m.pt", ALLOW)
    near(model.native(X), detector(X))
    assert bnfold.fold(model, "2x3x9x7").passed


def test_a_block_that_had_no_batchnorm_stays() -> None:
    result = bnfold.fold(trained(Detector(norm=False)), "2x3x9x7")
    assert isinstance(result.model.b.bn, nn.Identity)
    assert "forward" not in vars(result.model.b)


def test_a_batchnorm_that_is_kept_stays(detector: Any) -> None:
    detector.b.bn = nn.BatchNorm2d(5, track_running_stats=False)
    result = bnfold.fold(detector, "2x3x9x7", verify=False)
    assert not hasattr(result.model.a, "bn")
    assert isinstance(result.model.b.bn, nn.BatchNorm2d)
    assert "forward" not in vars(result.model.b)


class Loud(nn.Module):
    @property
    def forward_fuse(self) -> Any:
        raise AssertionError("it ran")


@pytest.mark.parametrize(
    ("block", "name"),
    [
        *((Detector(), name) for name in ("forward_fuse", "__class__", "forward", "fuse")),
        *((Block(3, 4), name) for name in ("forward", "__init__", "__subclasses__", "conv")),
        *((entry, "forward_fuse") for entry in (Block, Loud(), "text", nn)),
    ],
)
def test_getattr_of_a_pickle_gives_nothing_else(block: Any, name: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match="getattr of anything but a fused block"):
        fused_form_of(block, name)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["system", "forward_fuse", "__globals__"])
def test_nor_in_a_file(container: str, name: str, tmp_path: Path) -> None:
    harm = call("builtins.getattr", named(f"{__name__}.Block"), text(name))
    path = CONTAINERS[container](harm, tmp_path / "m.pt")
    with pytest.raises(UntrustedError):
        open_model(path, ALLOW)


@torch.no_grad()
def test_ultralytics_predicts_with_what_is_written(tmp_path: Path) -> None:
    ultralytics: Any = pytest.importorskip("ultralytics", reason="pip install 'bnfold[zoo]'")
    before = trained(ultralytics.YOLO("yolov8n.yaml").model).eval()
    torch.save({"model": before, "ema": None, "train_args": {"task": "detect"}}, tmp_path / "m.pt")
    opening = Opening(allow=("ultralytics",))
    result = bnfold.fold(tmp_path / "m.pt", "1x3x64x96", opening=opening)
    assert result.passed
    assert result.plan.batchnorms.kept == 0
    result.save(tmp_path / "f.pt")
    after = ultralytics.YOLO(tmp_path / "f.pt")
    x = torch.rand(1, 3, 64, 96)
    near(after.model.eval()(x)[0], before(x)[0])
    assert len(after.predict(x, imgsz=(64, 96), verbose=False)) == 1
    assert Path(after.export(format="torchscript", imgsz=64)).exists()
