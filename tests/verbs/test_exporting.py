"""Every wish for an export is met by what is written, or named in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import bnfold
from bnfold.errors import BnfoldError, EnvironmentLacksError, ExportError, ModelError, UsageError
from bnfold.files import sha256
from bnfold.formats.onnx import simplification
from bnfold.verbs.targets import Conversion
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Block(nn.Module):
    """Two outputs and a submodule whose name is worth keeping."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU())
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.stem(image)
        return self.head(features), features.mean((2, 3))


def to_onnx(inputs: Any = "2x3x9x7", model: nn.Module | None = None, **how: Any) -> Any:
    made = bnfold.export(model or trained(Block()), inputs, how=Conversion(**how))
    assert made.passed
    return made["onnx"]


def shapes(values: Any) -> dict[str, list[Any]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_one_target_that_fails(tmp_path: Path) -> None:
    """The other passes: together they have failed, and only that one is written."""
    result = bnfold.export(trained(Block()), "2x3x9x7", to=("onnx", "pt2"))
    another = trained(nn.Conv2d(3, 5, 3)), trained(nn.Conv2d(3, 5, 3))
    result["pt2"].verification = bnfold.verify(*another, "2x3x9x7")
    assert not result.passed
    result["onnx"].save(tmp_path / "m.onnx")
    with pytest.raises(BnfoldError, match="the pt2 artefact differs from its original"):
        result["pt2"].save(tmp_path / "m.pt2")
    with pytest.raises(BnfoldError, match="differs"):
        _ = result["pt2"].model
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        (("N",), ["N", 3, 9, 7]),
        (("N", "H", "W"), ["N", 3, "H", "W"]),
        (("image:0=batch", "image:3"), ["batch", 3, 9, "image_3"]),
    ],
    ids=["batch", "sides", "by name"],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_axes_that_stay_free(dynamic: tuple[str, ...], expected: list[Any], batch: int) -> None:
    made = to_onnx(f"{batch}x3x9x7", dynamic=dynamic)
    assert shapes(made.model.graph.input) == {"image": expected}
    sizes = [batch + 3, 3, 9 + 4 * ("H" in dynamic), 7 + 4 * (len(dynamic) > 1)]
    session = onnxruntime.InferenceSession(
        made.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    first, second = session.run(None, {"image": np.ones(sizes, np.float32)})
    assert first.shape[0] == second.shape[0] == batch + 3


@pytest.mark.parametrize(
    ("axis", "why"),
    [
        ("B", "no input has an axis of that name"),
        ("picture:0", "no input 'picture'"),
        ("image:4", "image has 4 axes"),
        ("L", "no input has an axis of that name"),
    ],
)
def test_axes_that_do_not_exist(axis: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        to_onnx(dynamic=(axis,))
    assert "image=2x3x9x7" in str(caught.value.hint)


def test_names_of_inputs_and_outputs() -> None:
    """Also such as something else in the model has."""
    made = to_onnx(input_names=("head.weight",), output_names=("scores", "pooled")).model
    assert [value.name for value in made.graph.input] == ["head.weight"]
    assert [value.name for value in made.graph.output] == ["scores", "pooled"]
    onnx.checker.check_model(made, full_check=True)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ({"input_names": ("a", "b")}, "2 input names were given, the model has 1: image"),
        ({"output_names": ("a",)}, "1 output names were given, the model has 2"),
        ({"output_names": ("a", "a")}, "the same name"),
        ({"input_names": ("a",), "output_names": ("a", "b")}, "the same name"),
        ({"output_names": ("image", "b")}, "'image' is the name of an input"),
    ],
)
def test_names_that_do_not_fit(names: dict[str, tuple[str, ...]], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        to_onnx(**names)


def test_the_version_of_the_file() -> None:
    assert to_onnx(ir_version=9).model.ir_version == 9


def test_a_version_that_no_runtime_loads_is_not_written() -> None:
    with pytest.raises(ModelError, match="does not load the model"):
        bnfold.export(trained(Block()), "2x3x9x7", how=Conversion(ir_version=99))


@pytest.mark.parametrize("target", ["onnx", "torchscript", "pt2"])
def test_half(target: str) -> None:
    """Its error is that of half precision, which a float32 floor would not allow."""
    how = Conversion(dtype="float16")
    made = bnfold.export(trained(Block()), "2x3x9x7", to=[target], how=how)
    assert made.passed
    assert made[target].plan.batchnorms.kept == 0
    worst = max(row.floor for row in made[target].verification.rows)
    assert worst > 1e-4  # of values around 1, with 11 bits
    if target == "onnx":
        kinds = {tensor.data_type for tensor in made[target].model.graph.initializer}
        assert onnx.TensorProto.FLOAT not in kinds


def test_bfloat16_where_the_runtime_has_it() -> None:
    how = Conversion(dtype="bfloat16")
    assert bnfold.export(trained(Block()), "2x3x9x7", to=["pt2"], how=how).passed


def test_bfloat16_where_the_runtime_lacks_it() -> None:
    how = Conversion(dtype="bfloat16")
    with pytest.raises(EnvironmentLacksError, match="lacks an operator in the type of the model"):
        bnfold.export(trained(Block()), "2x3x9x7", to=["onnx"], how=how)


def test_half_of_what_is_no_module() -> None:
    net = Net()
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4))
    with pytest.raises(UsageError, match="cannot be made float16"):
        bnfold.export(net.proto(), how=Conversion(dtype="float16"))


def test_a_file_says_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))), path)
    first, second = (bnfold.export(path, "2x3x9x7")["onnx"] for _ in range(2))
    said = {entry.key: entry.value for entry in first.model.metadata_props}
    assert said["bnfold.source.sha256"] == sha256(path)
    assert len(said["bnfold.plan.sha256"]) == 64
    assert f"torch {torch.__version__}" in said["bnfold.packages"]
    first.save(tmp_path / "a.onnx")
    second.save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("simplify", [True, False])
def test_nodes_name_their_module_and_no_line_of_source(simplify: bool) -> None:
    made = to_onnx(simplify=simplify).model
    modules = {
        node.op_type: {entry.key: entry.value for entry in node.metadata_props}
        for node in made.graph.node
    }
    assert modules["Conv"] == {"bnfold.module": "head"}
    assert modules["Relu"] == {"bnfold.module": "stem.2"}
    assert __file__.encode() not in made.SerializeToString()


def test_external_data_if_asked(tmp_path: Path) -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 40, 5, bias=False), nn.BatchNorm2d(40)))
    to_onnx(model=model, external_data=True).save(tmp_path / "net.onnx")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_simplifier_that_fails(keep_going: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any) -> Any:
        raise ExportError("onnxsim cannot simplify the model: oh")

    monkeypatch.setattr(simplification, "simplified", fail)
    if keep_going:
        made = to_onnx(keep_going=True)
        assert made.notes == ("not simplified: onnxsim cannot simplify the model: oh",)
        assert made.plan.batchnorms.kept == 0
    else:
        with pytest.raises(ExportError, match="oh"):
            to_onnx()


def test_a_convolution_without_a_bias_in_three_dimensions() -> None:
    """torch's exporter gives it a bias of a shape that ONNX Runtime refuses."""
    model = trained(nn.Sequential(nn.Conv3d(3, 5, 3, bias=False), nn.BatchNorm3d(5), nn.ReLU()))
    made = to_onnx("2x3x5x6x7", model)
    assert [node.op_type for node in made.model.graph.node] == ["Conv", "Relu"]


@pytest.mark.parametrize("target", ["onnx", "torchscript", "pt2"])
def test_an_active_dropout_is_named(target: str) -> None:
    class Active(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, 0.5, training=True)

    with pytest.raises(ModelError, match="gives other numbers each time") as caught:
        bnfold.export(Active(), "2x3x9x7", to=[target])
    assert "dropout" in str(caught.value).lower()


@pytest.mark.parametrize("opset", [15, 18])
def test_onnx_in_another_opset(opset: int) -> None:
    net = Net(opset=15)
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4))
    made = bnfold.export(net.proto(), how=Conversion(opset=opset))
    assert made.passed
    assert made["onnx"].model.opset_import[0].version == opset


def test_an_opset_that_cannot_be_reached() -> None:
    net = Net(opset=15)
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4))
    with pytest.raises(ExportError, match="from opset 15 to 99"):
        bnfold.export(net.proto(), how=Conversion(opset=99))


@pytest.mark.parametrize("target", ["onnx", "torchscript", "pt2"])
def test_fold_in_another_format(target: str, tmp_path: Path) -> None:
    model = trained(Block())
    result = bnfold.fold(model, "2x3x9x7", to=target)
    assert result.passed
    assert result.plan.batchnorms.kept == 0
    result.save(tmp_path / "out")
    image = torch.randn(2, 3, 9, 7)
    with torch.no_grad():
        expected = model.eval()(image)[0].numpy()
    if target == "onnx":
        session = onnxruntime.InferenceSession(
            str(tmp_path / "out"), providers=["CPUExecutionProvider"]
        )
        found = session.run(None, {"image": image.numpy()})[0]
    elif target == "torchscript":
        found = torch.jit.load(str(tmp_path / "out"))(image)[0].detach().numpy()
    else:
        found = torch.export.load(str(tmp_path / "out")).module()(image)[0].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # float32, 27 + 5 terms


def test_fold_to_what_there_is_no_way_to() -> None:
    net = Net()
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4))
    with pytest.raises(UsageError, match="cannot be converted to torchscript"):
        bnfold.fold(net.proto(), to="torchscript")
    with pytest.raises(UsageError, match="'tflite' is no target"):
        bnfold.fold(net.proto(), to="tflite")
    with pytest.raises(BnfoldError, match="folded as a graph"):
        bnfold.fold(trained(Block()), "2x3x9x7", to="pt2", form="module")
