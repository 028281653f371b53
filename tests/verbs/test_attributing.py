"""Where a candidate went wrong is found: the stage, and the layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import bnfold
from bnfold import Protocol
from bnfold.errors import UsageError
from bnfold.formats.conversion import convert
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.opening import open_model
from bnfold.verbs import exporting, recording
from bnfold.verbs.attributing import prepare, save_failing
from tests.formats.networks import trained

ON_CPU = Protocol(providers=("cpu",))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Block(4), Block(4))
    return trained(nn.Sequential(*net, nn.Flatten(), nn.Linear(4 * 7 * 5, 3)))


SHAPE = "2x3x9x7"


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    from bnfold.verbs.input_resolution import resolve_inputs
    from bnfold.verbs.inputs import example

    model = open_model(network())
    inputs = resolve_inputs(model, SHAPE)
    made = convert(model, OnnxModel.format, inputs, example(inputs), 20)
    proto: onnx.ModelProto = made.native
    return proto


def damaged(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for tensor in made.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            array.flat[0] += 0.01
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return made


def convolutions(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == "Conv"]


@pytest.mark.parametrize("position", range(5))
def test_a_damaged_convolution_of_a_folded_onnx_is_named(
    exported: onnx.ModelProto, position: int
) -> None:
    folded = bnfold.fold(exported, protocol=ON_CPU).model
    node = convolutions(folded)[position]
    verification = bnfold.verify(exported, damaged(folded, node.input[1]), protocol=ON_CPU)
    assert not verification.passed
    assert verification.attribution is not None
    assert (verification.attribution.stage, verification.attribution.provider) == (
        "candidate",
        "cpu unoptimised",
    )
    layer = verification.attribution.layer
    assert layer is not None
    assert layer.value in node.output
    assert layer.name.startswith(node.name)
    assert layer.after == () or layer.after[-1] in node.input
    assert verification.to_json()["attribution"]["layer"]["name"] == layer.name
    assert any(layer.name in aside for aside in verification.asides)


@pytest.mark.parametrize("name", ["0", "2.conv1", "2.conv2", "3.conv2", "5"])
def test_a_damaged_layer_of_a_folded_module_is_named(name: str) -> None:
    net = network()
    folded = copy.deepcopy(bnfold.fold(net, SHAPE).model)
    with torch.no_grad():
        folded.get_submodule(name).bias[1] += 0.01
    attribution = bnfold.verify(net, folded, SHAPE).attribution
    assert attribution is not None
    assert attribution.layer is not None
    assert attribution.layer.name == name


def test_a_pass_is_not_attributed(exported: onnx.ModelProto) -> None:
    verification = bnfold.verify(exported, exported, protocol=ON_CPU)
    assert verification.passed
    assert verification.to_json()["attribution"] is None


def test_values_of_two_formats_do_not_match_and_that_is_said(exported: onnx.ModelProto) -> None:
    wrong = damaged(exported, convolutions(exported)[0].input[1])
    attribution = bnfold.verify(network(), wrong, SHAPE, protocol=ON_CPU).attribution
    assert attribution is not None
    assert attribution.layer is None
    assert "values inside of a module and of a onnx do not match" in str(attribution)


def test_a_wrong_conversion_fails_although_its_fold_is_right(monkeypatch: Any) -> None:
    """Its own error is the floor of the artefact: only the original's floor shows it."""
    right = exporting.converted

    def wrong(*args: Any) -> Any:
        proto = right(*args).native
        return OnnxModel.from_proto(damaged(proto, convolutions(proto)[1].input[1]))

    assert bnfold.export(network(), SHAPE, protocol=ON_CPU).passed
    monkeypatch.setattr(exporting, "converted", wrong)
    result = bnfold.export(network(), SHAPE, protocol=ON_CPU)
    assert not result.passed
    verification = result["onnx"].verification
    assert verification.attribution is not None
    assert verification.attribution.stage == "exported"
    assert {row.place.provider for row in verification.rows if not row.passed} == {
        "cpu unoptimised, exported",
        "cpu, exported",
        "float64, exported",
    }


def test_a_wrong_conversion_that_runs_where_the_original_does(monkeypatch: Any) -> None:
    """Both are called "cpu"; what each computes is told apart."""
    right = exporting.converted

    def wrong(*args: Any) -> Any:
        model = right(*args)
        with torch.no_grad():
            next(model.native.parameters()).flatten()[0] += 0.01
        return model

    how: dict[str, Any] = {"to": ["torchscript"], "protocol": ON_CPU}
    assert bnfold.export(network(), SHAPE, **how).passed
    monkeypatch.setattr(exporting, "converted", wrong)
    verification = bnfold.export(network(), SHAPE, **how)["torchscript"].verification
    assert not verification.passed
    assert verification.attribution is not None
    assert verification.attribution.stage == "exported"


class Averaged(nn.Module):
    """ONNX Runtime adds the numbers of a mean one by one, PyTorch in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize("error", [0.0, 1e-4])
def test_a_runtime_that_rounds_more_is_told_from_a_wrong_conversion(
    error: float, monkeypatch: Any
) -> None:
    """Half the digits of float32 are more than 1e-4 of them: float64 alone shows such a mistake."""
    right = exporting.converted

    def converted(*args: Any) -> Any:
        proto = right(*args).native
        for tensor in proto.graph.initializer:
            if tensor.name == "conv.weight":
                values = numpy_helper.to_array(tensor) * np.float32(1 + error)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return OnnxModel.from_proto(proto)

    monkeypatch.setattr(exporting, "converted", converted)
    torch.manual_seed(0)
    net = trained(Averaged())
    made = bnfold.export(net, "1x3x224x224", protocol=ON_CPU)["onnx"]
    told = {row.place.provider for row in made.verification.rows}
    assert "float64, exported" in told
    assert made.verification.passed is (error == 0)
    verdict = bnfold.verify(net, made.artefact, "1x3x224x224", protocol=ON_CPU)
    assert "float64" in {row.place.provider for row in verdict.rows}
    assert verdict.passed is (error == 0)


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_a_golden_bundle_has_the_floor_of_the_runtime_that_it_is_for(error: float) -> None:
    torch.manual_seed(0)
    net = trained(Averaged())
    recorded = bnfold.golden(net, "1x3x224x224", protocol=ON_CPU)
    assert list(recorded.runs) == ["torch cpu", "cpu unoptimised", "cpu"]
    proto = bnfold.export(net, "1x3x224x224", protocol=ON_CPU)["onnx"].model
    weight = next(each for each in proto.graph.initializer if len(each.dims) == 4)
    values = numpy_helper.to_array(weight) * np.float32(1 + error)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    assert bnfold.verify(recorded, proto, protocol=ON_CPU).passed is (error == 0)


def test_a_wrong_conversion_gives_a_golden_bundle_no_floor(monkeypatch: Any) -> None:
    right = recording.converted

    def wrong(*args: Any) -> Any:
        proto = right(*args).native
        return OnnxModel.from_proto(damaged(proto, convolutions(proto)[1].input[1]))

    monkeypatch.setattr(recording, "converted", wrong)
    assert list(bnfold.golden(network(), SHAPE, protocol=ON_CPU).runs) == ["torch cpu"]


def test_a_wrong_simplification_is_told_from_a_wrong_fold(monkeypatch: Any) -> None:
    right = exporting._simplified

    def wrong(model: Any) -> Any:
        proto = right(model).native
        return OnnxModel.from_proto(damaged(proto, convolutions(proto)[1].input[1]))

    monkeypatch.setattr(exporting, "_simplified", wrong)
    verification = bnfold.export(network(), SHAPE, protocol=ON_CPU)["onnx"].verification
    assert verification.attribution is not None
    assert verification.attribution.stage == "simplified"
    assert verification.attribution.layer is not None
    assert "(Conv)" in verification.attribution.layer.name


def test_a_candidate_that_does_not_run_is_attributed_as_a_whole(exported: onnx.ModelProto) -> None:
    wrong = onnx.ModelProto()
    wrong.CopyFrom(exported)
    wrong.graph.output[0].name = wrong.graph.node[0].output[0]
    attribution = bnfold.verify(exported, wrong, protocol=ON_CPU).attribution
    assert attribution is not None
    assert attribution.layer is None
    assert "its shape is" in str(attribution)


def test_showing_its_values_changes_no_module() -> None:

    net = network()
    inside = open_model(net).intermediates("torch cpu")
    assert inside is not None
    sample = {"input": np.ones((2, 3, 9, 7), np.float32)}
    names = set(inside.runner(sample))
    assert {"0", "2.bn1", "3.conv2", "5", "output"} <= names
    assert not any(part._forward_hooks for part in net.modules())
    assert set(inside.sources) == names


def test_the_smallest_failing_part_is_kept_with_its_inputs(
    exported: onnx.ModelProto, tmp_path: Path
) -> None:
    folded = bnfold.fold(exported, protocol=ON_CPU).model
    node = convolutions(folded)[2]
    wrong = damaged(folded, node.input[1])
    attribution = bnfold.verify(exported, wrong, protocol=ON_CPU).attribution
    assert attribution is not None
    saved = save_failing(OnnxModel.from_proto(wrong), attribution, tmp_path / "new")
    assert saved == (tmp_path / "new" / "failing.onnx", tmp_path / "new" / "failing.npz")
    part = onnx.load(saved[0])
    onnx.checker.check_model(part, full_check=True)
    assert [kept.op_type for kept in part.graph.node] == ["Conv"]
    assert sorted(entry.name for entry in saved[0].parent.iterdir()) == [
        "failing.npz",
        "failing.onnx",
    ]
    with np.load(saved[1], allow_pickle=False) as arrays:
        sample = dict(arrays)
    assert list(sample) == [entry.name for entry in part.graph.input]
    (made,) = onnxruntime.InferenceSession(saved[0]).run(None, sample)
    assert attribution.layer is not None
    given = attribution.layer.given[node.output[0]]
    # the same convolution alone may sum its 36 products in another order
    np.testing.assert_allclose(made, given, rtol=0, atol=36 * 2.0**-23 * np.abs(given).max())


def test_constants_and_what_is_made_of_them_are_never_named() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2, 3] x) => (float[2, 3] y) <float[3] w = {1, 2, 3}> {
        c = Constant <value_floats = [FIRST]> ()
        v = Mul (w, c)
        u = Mul (v, c)
        y = Mul (x, u)
    }
    """
    one, other = (onnx.parser.parse_model(text.replace("FIRST", n)) for n in ("2.0", "2.1"))
    attribution = bnfold.verify(one, other, protocol=ON_CPU).attribution
    assert attribution is not None
    assert attribution.layer is not None
    assert attribution.layer.name == "y (Mul)"


def test_a_difference_below_the_runtimes_own_blames_the_gate(exported: onnx.ModelProto) -> None:
    """With a k far below 1 the original itself fails: nothing in it can be at fault."""
    protocol = Protocol(providers=("cpu",), k=1e-6)
    found = bnfold.verify(exported, bnfold.fold(exported, protocol=ON_CPU).model, protocol=protocol)
    assert not found.passed
    assert found.attribution is not None
    assert found.attribution.layer is None
    assert "the gate's floor may be at fault" in str(found.attribution)


def test_of_a_module_the_whole_is_kept(tmp_path: Path) -> None:
    net = network()
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        wrong.get_submodule("5").bias[1] += 0.01
    attribution = bnfold.verify(net, wrong, SHAPE).attribution
    assert attribution is not None
    saved = save_failing(open_model(wrong), attribution, tmp_path)
    assert saved is not None
    assert saved[0].name == "failing.pt"
    with np.load(saved[1], allow_pickle=False) as arrays:
        assert [array.shape for array in arrays.values()] == [(2, 3, 9, 7)]


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be a folder"):
        prepare(tmp_path / "file" / "below")


def test_an_exported_program_names_the_module_that_differs() -> None:
    torch.manual_seed(0)
    net = trained(
        nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Flatten()),
        )
    )
    program = torch.export.export(net, (torch.randn(2, 3, 9, 7),))
    folded = bnfold.fold(program).model
    assert bnfold.verify(program, folded).passed
    with torch.no_grad():
        folded.state_dict["3.weight"][0, 0, 0, 0] += 0.1
    found = bnfold.verify(program, folded).attribution
    assert found is not None
    assert found.layer is not None, found.why
    assert found.layer.name.startswith("3 (conv2d")
    assert [name.rstrip("_") for name in found.layer.after] == ["relu"]
    assert found.layer.compared == found.layer.values
