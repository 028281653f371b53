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


class Pair(nn.Sequential):
    """A convolution and its BatchNorm; `fuse` gives a layer for both, from the statistics."""

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(inputs, outputs, size, bias=False))
        self.add_module("bn", nn.BatchNorm2d(outputs))

    def fuse(self) -> nn.Module:
        conv, bn = self._modules.values()
        return nn.utils.fuse_conv_bn_eval(conv, bn)  # type: ignore[type-var]


class Deployable(nn.Module):
    """A layer whose BatchNorm its own method folds."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.one, self.deployed = nn.Conv2d(5, 5, 1), False
        self.bn = nn.BatchNorm2d(5) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        return torch.tanh(y if self.deployed else self.bn(y))

    def _deploy(self) -> None:
        weight = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        self.one.bias.data += self.bn.bias - self.bn.running_mean * weight
        self.deployed = True


class Reparameterized(Deployable):
    def reparameterize(self) -> None:
        self._deploy()


class Switched(Deployable):
    def switch_to_deploy(self) -> None:
        self._deploy()


class Quantizable(Deployable):
    def fuse_model(self, is_qat: bool | None = None) -> None:
        self._deploy()


METHODS = ("fuse", "reparameterize", "switch_to_deploy", "fuse_model")


def fuse_all(model: nn.Module) -> nn.Module:
    """As libraries do, block by block."""
    for name, block in list(model.named_children()):
        for method in METHODS:
            if hasattr(block, method):
                made = getattr(block, method)()
                setattr(model, name, made if method == "fuse" else block)
        fuse_all(getattr(model, name))
    return model


def blocks() -> nn.Sequential:
    kinds = (Reparameterized, Switched, Quantizable)
    return trained(nn.Sequential(Pair(3, 5), *(kind() for kind in kinds))).eval()


@torch.no_grad()
def test_blocks_have_nothing_left_to_fuse(tmp_path: Path) -> None:
    net = blocks()
    result = bnfold.fold(net, "2x3x9x7")
    assert result.plan.batchnorms.folded == 4
    result.save(tmp_path / "f.pt")
    found = torch.load(tmp_path / "f.pt", weights_only=False)
    assert [type(block) for block in found] == [type(block) for block in net]
    before = net(X)
    for folded in (result.model, found, copy.deepcopy(found)):
        near(folded(X), before)
        near(fuse_all(copy.deepcopy(folded))(X), before)
    near(open_model(tmp_path / "f.pt", ALLOW).native(X), before)
    near(torch.jit.script(found[0])(X), found[0](X))
    assert "fuse" not in vars(net[0])


@torch.no_grad()
def test_a_whole_model_that_fuses_what_is_in_it_has_nothing_left_to_fuse() -> None:
    class Whole(nn.Sequential):
        def fuse_model(self) -> None:
            for pair in self:
                for part in pair:
                    if part is not pair[0]:
                        part.running_mean.zero_()

    net = trained(Whole(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))).eval()
    folded = bnfold.fold(net, "2x3x9x7").model
    folded.fuse_model()
    near(folded(X), net(X))


@torch.no_grad()
def test_what_was_not_folded_is_fused_as_before() -> None:
    net = blocks()
    net[0].bn = nn.BatchNorm2d(5, track_running_stats=False)
    net[1] = trained(Reparameterized(norm=False))
    folded = bnfold.fold(net, "2x3x9x7", verify=False).model
    assert "fuse" not in vars(folded[0])
    assert "reparameterize" not in vars(folded[1])
    assert "switch_to_deploy" in vars(folded[2])


def test_a_method_with_more_to_say_is_the_librarys_own(detector: Any) -> None:
    class Told(nn.Sequential):
        def fuse(self, verbose: bool) -> None:
            raise AssertionError

    class Training(nn.Sequential):
        def fuse(self) -> None:
            raise AssertionError

        def train(self, mode: bool = True) -> Any:
            return super().train(mode)

    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    for kind in (Told, Training):
        folded = bnfold.fold(trained(kind(*layers)), "2x3x9x7").model
        assert isinstance(folded[1], nn.Identity)
        assert "fuse" not in vars(folded)
    assert "fuse" not in vars(bnfold.fold(detector, "2x3x9x7").model)


def own(kind: type[nn.Module], name: str) -> nn.Module:
    """A module of a class that has a method of its own in the place of torch's."""
    made: Any = type("Own", (kind,), {name: lambda *_: None})
    return made(3, 4)


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
        *((entry, "eval") for entry in (Block, Loud, "text", nn)),
        *((Pair(3, 4), name) for name in ("fuse", "train", "__class__")),
        *((own(Pair, name), "eval") for name in ("eval", "train")),
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
