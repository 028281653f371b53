"""A model that preprocesses its own input computes what the network does behind numpy's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import bnfold
from bnfold import Preprocessing
from bnfold.errors import UsageError
from bnfold.inputs import Inputs
from bnfold.runtimes import TensorSpec
from tests.conftest import Ended
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = Preprocessing(scale=1 / 255, mean=MEAN, std=STD, bgr=True, uint8=True, nhwc=True)

ROUNDINGS = 2e-6
"""Of the largest output: sums of a few hundred products in float32, 16 units in the last place."""


class Small(nn.Module):
    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(torch.relu(self.bn(self.conv(x))))
        return x.view(x.shape[0], -1)  # of what has its channels first in memory


class WithMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Small()

    def forward(self, mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.net(x) * mask.flatten(1)
        return found


def pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def by_hand(raw: NDArray[Any], how: Preprocessing) -> NDArray[np.float64]:
    """What comes out of `raw`, [N, H, W, C] or [N, C, H, W], as a training pipeline does it."""
    x = raw.astype(np.float64)
    if how.nhwc:
        x = np.moveaxis(x, -1, 1)
    if how.bgr:
        x = x[:, ::-1]
    mean, std = (np.array(each).reshape(-1, 1, 1) for each in (how.mean or (0,), how.std or (1,)))
    return (x * how.scale - mean) / std


def expected(net: nn.Module, x: NDArray[np.float64]) -> NDArray[np.float64]:
    with torch.no_grad():
        wide = net.double()(torch.from_numpy(np.ascontiguousarray(x)))
    net.float()
    found: NDArray[np.float64] = wide.numpy()
    return found


def output(result: Any, raw: NDArray[Any]) -> NDArray[Any]:
    runner = result.folded.runners()[0]
    (found,) = runner({"x": raw}).values()
    return found  # type: ignore[no-any-return]


def written_by_hand(small: Small, *sizes: int | str) -> onnx.ModelProto:
    """A Small in ONNX."""
    held = {name: tensor.numpy() for name, tensor in small.state_dict().items()}
    pads, net = [*small.conv.padding, *small.conv.padding], Net()
    x = net.input("x", *(sizes or (2, 3, 9, 7)))
    x = net.node("Conv", x, net.weight(held["conv.weight"]), pads=pads)
    norm = [net.weight(held[f"bn.{n}"]) for n in ("weight", "bias", "running_mean", "running_var")]
    x = net.node("Relu", net.node("BatchNormalization", x, *norm))
    x = net.node("Conv", x, *(net.weight(held[f"head.{n}"]) for n in ("weight", "bias")))
    net.output(net.node("Flatten", x), rank=2)
    return net.proto()


def source(kind: str, net: Small) -> tuple[Any, str | None, dict[str, Any]]:
    """A model of each format, an input for it, and how it is to be folded."""
    match kind:
        case "torchscript":
            return torch.jit.script(net), "2x3x9x7", {}
        case "pt2":
            return torch.export.export(net, (torch.zeros(2, 3, 9, 7),)), None, {}
        case "onnx":
            return written_by_hand(net), None, {}
        case "module":
            return net, "2x3x9x7", {}
        case "graph":
            return net, "2x3x9x7", {"form": "graph"}
    return net, "2x3x9x7", {"to": kind.removeprefix("to ")}


SOURCES = ["module", "graph", "torchscript", "pt2", "onnx", "to onnx", "to pt2", "to torchscript"]


@pytest.mark.parametrize(
    ("kind", "padding"), [*((kind, 1) for kind in SOURCES), ("graph", 0), ("torchscript", 0)]
)
def test_every_format_takes_pixels(kind: str, padding: int) -> None:
    net = trained(Small(padding)).eval()
    model, given, how = source(kind, net)
    result = bnfold.fold(model, given, preprocessing=PIXELS, **how)
    assert result.verdict == "pass"
    raw, exact = pixels(2, 9, 7, 3), expected(net, by_hand(pixels(2, 9, 7, 3), PIXELS))
    assert np.abs(output(result, raw) - exact).max() < ROUNDINGS * np.abs(exact).max()
    left = [name for name, (_, after) in result.plan.ops.kinds.items() if after]
    assert "BatchNorm" not in left


STEPS = {
    "scale": Preprocessing(scale=1 / 255),
    "mean": Preprocessing(mean=(3.0,)),
    "std": Preprocessing(std=STD),
    "bgr": Preprocessing(bgr=True),
    "bytes": Preprocessing(uint8=True),
    "channels last": Preprocessing(nhwc=True),
    "scale and mean": Preprocessing(scale=1 / 127.5, mean=(1.0,)),
    "mean and std": Preprocessing(mean=MEAN, std=STD),
    "all": PIXELS,
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_every_step(kind: str, name: str) -> None:
    how, net = STEPS[name], trained(Small(1)).eval()
    model, given, options = source(kind, net)
    result = bnfold.fold(model, given, preprocessing=how, **options)
    raw = pixels(2, 9, 7, 3) if how.nhwc else pixels(2, 3, 9, 7)
    x = raw if how.uint8 else raw.astype(np.float32)
    exact = expected(net, by_hand(raw, how))
    assert np.abs(output(result, x) - exact).max() < ROUNDINGS * np.abs(exact).max()


@pytest.mark.parametrize(
    ("padding", "left"), [(0, {"Conv": 2, "Activation": 1}), (1, {"Conv": 2, "Affine": 1})]
)
def test_what_is_left_of_scale_mean_and_std(padding: int, left: dict[str, int]) -> None:
    """Nothing without padding; where zeros are padded, one addition."""
    result = bnfold.fold(
        written_by_hand(trained(Small(padding))),
        preprocessing=Preprocessing(scale=1 / 255, mean=MEAN, std=STD),
    )
    after = {name: count for name, (_, count) in result.plan.ops.kinds.items() if count}
    assert {name: after.get(name, 0) for name in left} == left
    assert after.get("Affine", 0) == left.get("Affine", 0)


def test_sizes_stay_free() -> None:
    net = trained(Small(1)).eval()
    result = bnfold.fold(written_by_hand(net, "N", 3, "H", "W"), preprocessing=PIXELS)
    (spec,) = result.folded.inputs
    assert str(spec) == "x=NxHxWx3:uint8"
    raw = pixels(1, 11, 6, 3)
    exact = expected(net, by_hand(raw, PIXELS))
    assert np.abs(output(result, raw) - exact).max() < ROUNDINGS * np.abs(exact).max()


def test_a_network_whose_channels_are_last_is_left_so() -> None:
    net = Net()
    x = net.node("Transpose", net.input("x", 2, 9, 7, 3), perm=[0, 3, 1, 2])
    net.output(net.bn(net.conv(x, 3, 4), 4))
    result = bnfold.fold(net.proto(), preprocessing=PIXELS)
    (spec,) = result.folded.inputs
    assert (result.verdict, str(spec)) == ("pass", "x=2x9x7x3:uint8")
    original = bnfold.fold(net.proto(), verify=False).original.truth()
    raw = pixels(2, 9, 7, 3)
    (exact,) = original({"x": np.moveaxis(by_hand(raw, PIXELS), 1, -1)}).values()
    assert np.abs(output(result, raw) - exact).max() < ROUNDINGS * np.abs(exact).max()


def test_a_file_in_which_weights_are_inputs() -> None:
    """Before version 4 every one is; what preprocessing adds is no exception."""
    net = Net(opset=9, ir=3)
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4, pads=[1] * 4), 4))
    proto = net.proto()
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(each.name, each.data_type, list(each.dims))
        for each in proto.graph.initializer
    )
    result = bnfold.fold(proto, preprocessing=PIXELS)
    assert result.verdict == "pass"
    onnx.checker.check_model(result.model, full_check=True)


def test_an_input_that_branches_read() -> None:
    """They see what is preprocessed, as all others do."""
    net = Net()
    x = net.input("x", 2, 3, 9, 7)
    branches = {
        f"{name}_branch": onnx.helper.make_graph(
            [onnx.helper.make_node(kind, [x], [name])],
            name,
            [],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3, 9, 7])],
        )
        for name, kind in (("then", "Relu"), ("else", "Neg"))
    }
    whole = net.node("ReduceSum", x, keepdims=0)
    chosen = net.node("If", net.node("Greater", whole, net.weight(0.0)), **branches)
    net.output(net.bn(net.conv(chosen, 3, 4), 4))
    result = bnfold.fold(net.proto(), preprocessing=PIXELS)
    raw = pixels(2, 9, 7, 3)
    original = bnfold.fold(net.proto(), verify=False).original.truth()
    (exact,) = original({"x": by_hand(raw, PIXELS)}).values()
    assert np.abs(output(result, raw) - exact).max() < ROUNDINGS * np.abs(exact).max()


def test_features_in_a_table() -> None:
    net = trained(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)))
    mean, std = (1.0, -2.0, 0.5, 30.0), (2.0, 0.5, 3.0, 10.0)
    result = bnfold.fold(
        net.eval(), "Nx4", form="graph", preprocessing=Preprocessing(mean=mean, std=std)
    )
    assert result.plan.ops.kinds["Affine"][1] == 0
    x = np.random.default_rng(0).normal(size=(3, 4)) * std + mean
    exact = expected(net, (x - mean) / std)
    runner = result.folded.runners()[0]
    (found,) = runner({runner.input_names[0]: x.astype(np.float32)}).values()
    assert np.abs(found - exact).max() < ROUNDINGS * np.abs(exact).max()


@pytest.mark.parametrize("kind", ["onnx", "pt2", "torchscript"])
def test_the_image_among_several_inputs(kind: str) -> None:
    net, shapes = trained(WithMask()).eval(), ["mask=2x4x7x5", "x=2x3x9x7"]
    with pytest.raises(UsageError, match="the model takes 2 inputs: mask"):
        bnfold.fold(net, shapes, to=kind, preprocessing=PIXELS)
    how = Preprocessing(scale=1 / 255, uint8=True, nhwc=True, input="x")
    result = bnfold.fold(net, shapes, to=kind, preprocessing=how)
    assert result.verdict == "pass"
    raw, mask = pixels(2, 9, 7, 3), np.random.default_rng(1).random((2, 4, 7, 5), np.float32)
    exact = expected(net.net, by_hand(raw, how)) * mask.reshape(2, -1)
    runner = result.folded.runners()[0]
    (found,) = runner(dict(zip(runner.input_names, (mask, raw), strict=True))).values()
    assert np.abs(found - exact).max() < ROUNDINGS * np.abs(exact).max()


def test_an_export_in_half_precision_takes_bytes() -> None:
    result = bnfold.export(
        trained(Small(1)).eval(),
        "2x3x9x7",
        how=bnfold.Conversion(dtype="float16"),
        preprocessing=PIXELS,
    )
    assert result.passed
    (spec,) = result["onnx"].artefact.inputs
    assert str(spec) == "x=2x9x7x3:uint8"


def test_an_example_of_the_network_becomes_one_of_the_model() -> None:
    """The way back of every step, so that the user's own data stand where they stood."""
    spec = TensorSpec("x", "float32", (2, 3, 9, 7))
    raw = pixels(2, 9, 7, 3)
    x = by_hand(raw, PIXELS).astype(np.float32)
    found = PIXELS.of((spec,)).inputs(Inputs((spec,), {"x": x}, given=True, data=True))
    np.testing.assert_array_equal(found.sample["x"], raw)


def test_images_are_compared_on(tmp_path: Path, bnfold: Callable[..., Ended]) -> None:
    from PIL import Image

    Image.fromarray(pixels(9, 7, 3)).save(tmp_path / "photo.png")
    net = trained(Small(1)).eval()
    torch.jit.script(net).save(tmp_path / "net.pt")
    ended = bnfold(
        *("fold", tmp_path / "net.pt", "--input", "1x3x9x7", "--input-scale", "1/255"),
        *("--input-mean", "0.485,0.456,0.406", "--input-std", "0.229,0.224,0.225"),
        *("--bgr", "--uint8", "--nhwc", "--inputs", tmp_path / "photo.png", "--format", "json"),
    )
    assert ended.code == 0, ended.err
    cases = {row["case"] for row in ended.json["verification"]["cases"]}
    assert "photo.png" in cases


def test_a_pipeline_has_it_too(tmp_path: Path, bnfold: Callable[..., Ended]) -> None:
    net = Net()
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    (tmp_path / "bnfold.toml").write_text(
        '[models.net]\nsource = "net.onnx"\n'
        "preprocessing = { scale = 0.5, mean = [1.0], uint8 = true, nhwc = true }\n"
    )
    ended = bnfold("build", "-f", tmp_path / "bnfold.toml", "--jobs", "1")
    assert ended.code == 0, ended.err
    (given,) = onnx.load(tmp_path / "build" / "net.onnx").graph.input
    assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [2, 9, 7, 3]
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8


BAD = {
    ("--input-scale", "0"): "an input scale of 0 is none",
    ("--input-scale", "1/0"): "--input-scale: '1/0' is no number",
    ("--input-mean", "a,b"): "--input-mean: 'a' is no number",
    ("--input-std", "0.1,0,0.2"): "an input std of 0 is none",
    ("--input-std", "0.1,nan,0.2"): "an input std of nan is none",
    ("--input-mean", "1,2", "--input-std", "1,2,3"): "2 means and 3 standard deviations",
    ("--input-mean", "1,2"): "has no axis of 2 channels",
    ("--input-mean", "1,2,3,4", "--bgr"): "only three channels can be in the order bgr",
    ("--uint8", "--preprocess", "y"): "the model has no input 'y'",
    ("--preprocess", "x"): "nothing is to be done to x",
}


@pytest.mark.parametrize("options", BAD, ids=" ".join)
def test_bad_wishes(options: tuple[str, ...], tmp_path: Path, bnfold: Callable[..., Ended]) -> None:
    net = Net()
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4))
    onnx.save(net.proto(), tmp_path / "net.onnx")
    ended = bnfold("fold", tmp_path / "net.onnx", *options)
    assert ended.code == 2, ended
    assert BAD[options] in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_weights_alone_hold_no_preprocessing(tmp_path: Path, bnfold: Callable[..., Ended]) -> None:
    torch.save(trained(Small()).state_dict(), tmp_path / "net.pt")
    ended = bnfold(
        *("fold", tmp_path / "net.pt", "--model", "tests.verbs.test_preprocessing:Small"),
        *("--input", "1x3x9x7", "--uint8"),
    )
    assert ended.code == 2
    assert "holds weights alone, no preprocessing" in ended.err
    assert "--to onnx" in ended.err


def test_integers_are_no_image() -> None:
    net = Net()
    ids = net.input("ids", 1, 5, elem=onnx.TensorProto.INT64)
    net.output(net.node("Gather", net.normal(7, 3), ids), rank=3)
    with pytest.raises(UsageError, match="holds no floating-point numbers"):
        bnfold.fold(net.proto(), preprocessing=Preprocessing(scale=2.0))
