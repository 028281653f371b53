"""Every wish for an export is met by what is written, or named in a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim
import pytest
import torch
from torch import nn

import bnfold
from bnfold.errors import BnfoldError, EnvironmentLacksError, ExportError, ModelError, UsageError
from bnfold.files import sha256
from bnfold.formats.conversion import OLDEST_OF_PROGRAMS
from bnfold.formats.onnx import simplification
from bnfold.formats.onnx.model import OnnxModel
from bnfold.verbs.results import VerificationError
from bnfold.verbs.targets import Conversion
from tests.conftest import Ended
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


@pytest.mark.parametrize("opset", [9, 11, 13, 15, 18])
def test_onnx_in_another_opset(opset: int) -> None:
    net = Net(opset=15)
    net.output(net.node("Relu", net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4)))
    made = bnfold.export(net.proto(), how=Conversion(opset=opset))
    assert made.passed
    assert made["onnx"].model.opset_import[0].version == opset


@pytest.mark.parametrize("opset", [9, 13])
def test_a_batchnorm_that_stays_is_the_same_in_an_older_opset(opset: int) -> None:
    net = Net(opset=20)
    net.output(net.bn(net.node("Relu", net.input("x", 2, 4, 9, 7)), 4, epsilon=0.25))
    made = bnfold.export(net.proto(), how=Conversion(opset=opset))
    assert made.passed
    assert made["onnx"].plan.batchnorms.kept == 1
    onnx.checker.check_model(made["onnx"].model)


def test_a_batchnorm_that_trains_is_not_taken_below_opset_14() -> None:
    net = Net(opset=15)
    made = ("y", "mean", "var")
    net.output(net.bn(net.input("x", 2, 4, 9, 7), 4, made=made, training_mode=1))
    with pytest.raises(BnfoldError):
        bnfold.export(net.proto(), how=Conversion(opset=9))


def test_an_opset_that_cannot_be_reached() -> None:
    net = Net(opset=15)
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4))
    with pytest.raises(ExportError, match="from opset 15 to 99") as caught:
        bnfold.export(net.proto(), how=Conversion(opset=99))
    assert caught.value.hint == f"use --opset {onnx.defs.onnx_opset_version()}"


def test_the_nearest_opset_below_is_told() -> None:
    """HardSwish is there from opset 14 on."""
    net = Net(opset=20)
    net.output(net.node("HardSwish", net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4)))
    with pytest.raises(ExportError, match="HardSwish") as caught:
        bnfold.export(net.proto(), how=Conversion(opset=11))
    assert caught.value.hint == "use --opset 14"


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
@pytest.mark.parametrize("form", ["module", "program", "script"])
def test_every_form_reaches_old_opsets_and_new_ones(opset: int, form: str) -> None:
    image, model = torch.randn(2, 3, 9, 7), trained(Block()).eval()
    given: Any = model
    if form == "program":
        free = {"image": {0: torch.export.Dim("N")}}
        given = torch.export.export(model, (image,), dynamic_shapes=free)
    elif form == "script":
        given = torch.jit.script(model)
    made = bnfold.export(given, "Nx3x9x7", how=Conversion(opset=opset))
    assert made.passed
    export = made["onnx"]
    assert export.plan.batchnorms.kept == 0
    assert export.model.opset_import[0].version == opset
    assert shapes(export.model.graph.input)["image"] == ["N", 3, 9, 7]
    older = any("older exporter" in note for note in export.notes)
    assert older == (opset < OLDEST_OF_PROGRAMS and form != "script")


def test_the_next_opset_that_has_an_operator_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    class Sampled(Block):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            grid = torch.zeros(2, 5, 4, 2)
            return nn.functional.grid_sample(self.stem(image), grid, align_corners=False)

    with pytest.raises(ExportError, match="grid_sampler in opset 11") as caught:
        bnfold.export(trained(Sampled()), "2x3x9x7", how=Conversion(opset=11))
    assert caught.value.hint == "use --opset 16"
    assert capfd.readouterr().out == ""


def test_what_depends_on_values_is_not_traced_into_an_old_opset() -> None:
    class Branching(Block):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.stem(image) if image.sum() > 0 else image

    with pytest.raises(ExportError, match="cannot be exported to onnx"):
        bnfold.export(trained(Branching()), "2x3x9x7", how=Conversion(opset=11))


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


def failing(result: Any, target: str) -> Any:
    """The result with a verification of `target` that compared nothing, which is no pass."""
    export = result.exports[target]
    nothing = replace(export.verification, rows=())
    return replace(
        result, exports={**result.exports, target: replace(export, verification=nothing)}
    )


@pytest.mark.parametrize("target", ["onnx", "torchscript"])
def test_one_target_that_fails_fails_the_export_and_is_not_saved(
    target: str, tmp_path: Path
) -> None:
    made = bnfold.export(trained(Block()), "2x3x9x7", to=["onnx", "torchscript"])
    assert made.passed
    wrong = failing(made, target)
    assert not wrong.passed
    assert wrong.to_json()["verdict"] == "fail"
    with pytest.raises(VerificationError, match=f"the {target} artefact differs"):
        wrong[target].save(tmp_path / "m")
    with pytest.raises(VerificationError):
        _ = wrong[target].model
    assert list(tmp_path.iterdir()) == []


def test_a_module_is_captured_once_for_all_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[object] = []
    capture = torch.export.export

    def noted(*args: Any, **options: Any) -> Any:
        captured.append(args)
        return capture(*args, **options)

    monkeypatch.setattr(torch.export, "export", noted)
    net = trained(Block())
    assert bnfold.export(net, "2x3x9x7", to=["onnx", "pt2", "torchscript"]).passed
    assert len(captured) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_of_any_float_are_halved(dtype: str) -> None:
    made = to_onnx(f"2x3x9x7:{dtype}", dtype="float16")
    assert [spec.dtype for spec in made.artefact.inputs] == ["float16"]


def test_what_a_simplifier_prints_is_dropped(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a model that it stumbles over, onnxsim prints whole tracebacks from compiled code."""
    before = onnxsim.simplify

    def loud(*arguments: Any, **how: Any) -> Any:
        os.write(1, b"on stdout")
        os.write(2, b"on stderr")
        return before(*arguments, **how)

    monkeypatch.setattr(onnxsim, "simplify", loud)
    net = Net()
    net.output(net.conv(net.input("x", 2, 3, 9, 7), 3, 4))
    capfd.readouterr()
    assert simplification.simplified(OnnxModel.from_proto(net.proto())).native.graph.node
    assert capfd.readouterr() == ("", "")


class TestMetadata:
    """What consumers look for in an ONNX file, beside where it is from."""

    def test_it_is_written(self, tmp_path: Path, bnfold: Callable[..., Ended]) -> None:
        onnx.save(small().proto(), tmp_path / "net.onnx")
        ended = bnfold(
            *("export", tmp_path / "net.onnx", "-o", tmp_path / "made.onnx"),
            *("--meta", "stride=32", "--meta", "names={0: 'a=b'}"),
        )
        assert ended.code == 0, ended.err
        written = onnx.load(tmp_path / "made.onnx").metadata_props
        found = {entry.key: entry.value for entry in written}
        assert (found["stride"], found["names"]) == ("32", "{0: 'a=b'}")
        assert "bnfold.version" in found

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--meta", "stride"], "--meta stride has no value"),
            (["--meta", "=32"], "'' is no key"),
            (["--meta", "bnfold.version=9"], "'bnfold.version' is no key"),
            (["--meta", "a=b", "--to", "pt2"], "only ONNX has metadata"),
        ],
    )
    def test_bad_wishes(
        self, options: list[str], said: str, tmp_path: Path, bnfold: Callable[..., Ended]
    ) -> None:
        onnx.save(small().proto(), tmp_path / "net.onnx")
        ended = bnfold("export", tmp_path / "net.onnx", *options)
        assert ended.code == 2
        assert said in ended.err


def small() -> Net:
    net = Net()
    net.output(net.bn(net.conv(net.input("x", 1, 3, 9, 7), 3, 4), 4))
    return net
