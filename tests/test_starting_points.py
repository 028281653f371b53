"""The tables of docs/starting_points.md and docs/coming_from.md: each row of the first is folded by
its own command and loaded by its own library; each command of either is one that bnfold takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from bnfold.cli import commands
from tests.conftest import ROOT, Ended
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net as Onnx

Run = Callable[..., Ended]
DOCS = ROOT / "docs"

NET = """
from torch import nn
class Net(BASE):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
    def forward(self, x):
        return self.bn(self.conv(x)).relu()
"""
X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def rows(page: str) -> list[list[str]]:
    """The cells of the first table of a page, without its heading."""
    text = (DOCS / page).read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


COMMAND = {cells[0]: cells[2].strip("`") for cells in rows("starting_points.md")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def fold(folder: Path, bnfold: Run) -> Callable[[str], None]:
    def run(row: str) -> None:
        ended = bnfold(*shlex.split(COMMAND[row])[1:])
        assert ended.code == 0, ended

    return run


def library(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not here: pip install 'bnfold[zoo]'")


def own_class(folder: Path, monkeypatch: pytest.MonkeyPatch, base: str = "nn.Module") -> Any:
    (folder / "net.py").write_text(f"{NET.replace('BASE', base)}", "utf-8")
    monkeypatch.delitem(__import__("sys").modules, "net", raising=False)
    return __import__("net").Net


@torch.no_grad()
def assert_alike(before: Any, after: Any, x: torch.Tensor) -> None:
    """To what float32 has of digits, past a network of many layers."""
    one, other = before(x), after(x)
    for name in ("logits", "pooler_output"):
        one, other = getattr(one, name, one), getattr(other, name, other)
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_torchvision(folder: Path, fold: Callable[[str], None]) -> None:
    models = library("torchvision").models
    net = trained(models.resnet18())
    torch.save(net.state_dict(), "w.pth")
    fold("torchvision")
    other = models.resnet18().eval()
    other.load_state_dict(torch.load("w.folded.pth"))
    assert_alike(net, other, IMAGE)


def test_timm(folder: Path, fold: Callable[[str], None]) -> None:
    timm = library("timm")
    net = trained(timm.create_model("resnet10t", num_classes=4))
    timm.models.save_for_hf(net, "net", model_config={"num_classes": 4})
    fold("timm")
    other = timm.create_model("local-dir:net.folded", pretrained=True).eval()
    assert_alike(net, other, IMAGE)


def test_ultralytics(folder: Path, fold: Callable[[str], None]) -> None:
    ultralytics = library("ultralytics")
    net = trained(ultralytics.YOLO("yolov8n.yaml").model)
    torch.save({"model": net, "ema": None, "train_args": {"task": "detect"}}, "best.pt")
    fold("ultralytics")
    other = ultralytics.YOLO("best.folded.pt").model.eval()
    assert_alike(lambda x: net.eval()(x)[0], lambda x: other(x)[0], IMAGE)


def test_segmentation_models(folder: Path, fold: Callable[[str], None]) -> None:
    smp = library("segmentation_models_pytorch")
    net = trained(smp.Unet("resnet18", encoder_weights=None, classes=2))
    net.save_pretrained("unet")
    fold("segmentation-models")
    assert_alike(net, smp.from_pretrained("unet.folded").eval(), IMAGE)


def test_transformers(folder: Path, fold: Callable[[str], None]) -> None:
    transformers = library("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    net: Any = trained(transformers.ResNetForImageClassification(config))
    net.save_pretrained("resnet")
    fold("transformers")
    other = transformers.ResNetForImageClassification.from_pretrained("resnet.folded").eval()
    assert_alike(net, other, IMAGE)


def test_lightning(
    folder: Path, fold: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lightning = library("pytorch_lightning")
    kind = own_class(folder, monkeypatch, "__import__('pytorch_lightning').LightningModule")
    net = trained(kind())
    versions = {"pytorch-lightning_version": lightning.__version__, "epoch": 3}
    torch.save({"state_dict": net.state_dict(), "hyper_parameters": {}, **versions}, "last.ckpt")
    fold("Lightning")
    assert_alike(net, kind.load_from_checkpoint("last.folded.ckpt").eval(), X)


def test_your_own_class(
    folder: Path, fold: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = own_class(folder, monkeypatch)
    net = trained(kind())
    torch.save({f"module.{name}": t for name, t in net.state_dict().items()}, "w.pt")
    fold("your own class")
    state = torch.load("w.folded.pt")
    other = kind().eval()
    other.load_state_dict({name.removeprefix("module."): t for name, t in state.items()})
    assert_alike(net, other, X)


@pytest.mark.parametrize(
    ("row", "file", "folded", "left"),
    [
        ("an average beside it", "both", "ema", "model"),
        ("one set of several", "two", "student", "teacher"),
    ],
)
def test_several_sets(
    folder: Path,
    fold: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    row: str,
    file: str,
    folded: str,
    left: str,
) -> None:
    kind = own_class(folder, monkeypatch)
    net, beside = trained(kind()), trained(kind(), seed=1)
    torch.save({left: beside.state_dict(), folded: net.state_dict()}, f"{file}.pt")
    fold(row)
    found = torch.load(f"{file}.folded.pt")
    other = kind().eval()
    other.load_state_dict(found[folded])
    assert_alike(net, other, X)
    assert not torch.equal(found[folded]["conv.weight"], net.state_dict()["conv.weight"])
    assert all(torch.equal(t, found[left][name]) for name, t in beside.state_dict().items())


def test_your_own_module(
    folder: Path, fold: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = trained(own_class(folder, monkeypatch)())
    torch.save(net, "m.pt")
    fold("your own module")
    other: Any = torch.load("m.folded.pt", weights_only=False)
    assert isinstance(other.bn, nn.Identity)
    assert_alike(net, other, X)


def run_both(name: str, **feeds: Any) -> None:
    """The original and what was made of it, in plain ONNX Runtime."""
    one, other = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for path in (f"{name}.onnx", f"{name}.folded.onnx")
    )
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(np.abs(one).max()))
    kinds = {node.op_type for node in onnx.load(f"{name}.folded.onnx").graph.node}
    assert "BatchNormalization" not in kinds


def test_paddleocr(folder: Path, fold: Callable[[str], None]) -> None:
    """As paddle2onnx writes: opset 11, free sizes, a hard swish of its parts."""
    made = Onnx(opset=11, ir=7)
    x = made.bn(made.conv(made.input("x", "N", 3, "H", "W"), 3, 6, bias=False), 6)
    gate = made.node(
        "Clip", made.node("Add", x, made.weight(3.0)), made.weight(0.0), made.weight(6.0)
    )
    x = made.node("Div", made.node("Mul", x, gate), made.weight(6.0))
    made.output(made.node("GlobalAveragePool", x))
    onnx.save(made.proto(), "ocr.onnx")
    fold("PaddleOCR")
    run_both("ocr", x=np.random.default_rng(0).standard_normal((2, 3, 48, 200)).astype(np.float32))


def test_keras(folder: Path, fold: Callable[[str], None]) -> None:
    """As tf2onnx writes: images with the channels last, turned around the layers."""
    made = Onnx(opset=15)
    x = made.node("Transpose", made.input("input_1", 2, 9, 7, 3), perm=[0, 3, 1, 2])
    x = made.node("Relu", made.bn(made.conv(x, 3, 6, bias=False), 6))
    made.output(made.node("Transpose", x, perm=[0, 2, 3, 1]))
    onnx.save(made.proto(), "keras.onnx")
    fold("Keras")
    images = np.random.default_rng(0).standard_normal((2, 9, 7, 3)).astype(np.float32)
    run_both("keras", input_1=images)


def test_every_row_has_a_test() -> None:
    tested = {"an average beside it", "one set of several"}
    tested |= {name.removeprefix("test_").replace("_", " ") for name in globals()}
    missing = [
        row for row in COMMAND if row not in tested and row.lower().replace("-", " ") not in tested
    ]
    assert len(COMMAND) >= 12
    assert missing == []


@pytest.mark.parametrize("page", ["starting_points.md", "coming_from.md"])
def test_every_command_is_one_that_bnfold_takes(page: str) -> None:
    found = re.findall(r"`bnfold ([^`]+)`", "\n".join(" | ".join(cells) for cells in rows(page)))
    assert len(found) >= 10
    for line in found:
        name, *arguments = shlex.split(line)
        command = commands.get_command(click.Context(commands), name)
        assert command is not None, line
        command.make_context(name, arguments, resilient_parsing=True)  # raises for what it has not
