"""What the user says about inputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from bnfold.errors import ModelError, UsageError
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.pytorch.exported_program import ExportedProgramModel
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.inputs import FREE_BATCH
from bnfold.inputs.text import parse
from bnfold.protocol import Protocol
from bnfold.runtimes import TensorSpec
from bnfold.verbs.input_resolution import FREE_SIDE, resolve_inputs
from bnfold.verbs.inputs import known_inputs
from bnfold.verification.cases import probes


@pytest.mark.parametrize(
    ("text", "name", "shape", "dtype"),
    [
        ("1x3x224x224", "", (1, 3, 224, 224), ""),
        ("1,3,224", "", (1, 3, 224), ""),
        ("Nx3xHxW", "", ("N", 3, "H", "W"), ""),
        ("batchx3", "", ("batch", 3), ""),
        ("tokens=2x16:int64", "tokens", (2, 16), "int64"),
        ("a.b/c=5", "a.b/c", (5,), ""),
        (" 7:bfloat16 ", "", (7,), "bfloat16"),
        ("x=1x2", "x", (1, 2), ""),
        ("rate=:int64", "rate", (), "int64"),
        (":float32", "", (), "float32"),
    ],
)
def test_texts(text: str, name: str, shape: tuple[Any, ...], dtype: str) -> None:
    assert parse(text) == TensorSpec(name, dtype, shape)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "1x", "x1", "1xx3", "0x3", "-1x3", "1.5x3", "1X3X224", "1×3", "max=", "²x3"),
        *("r=:", "r=:int", "r=:int64=", "r=:int64=1.5", "r=:uint8=-1", "r=:bool=1", "r=:float32=x"),
        *("1 x 3", "01x3", "a=b=c=1", "1x3:", "1x3:float", "1x3:f4", "1x3:object", "1x3:float128"),
    ],
)
def test_texts_that_say_nothing(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("r=:int64=16000", 16000),
        ("r=:int8=-3", -3),
        ("r=:float32=0.5", 0.5),
        ("r=:bool=true", True),
        ("r=:bool=False", False),
    ],
)
def test_a_value(text: str, value: Any) -> None:
    assert parse(text) == TensorSpec("r", text.split(":")[1].split("=")[0], (), value=value)
    assert str(parse(text)) == text.replace("true", "True")


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor, mask: Any = None) -> torch.Tensor:
        return x + y if mask is None else (x + y) * mask


def module() -> ModuleModel:
    return ModuleModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


def program() -> ExportedProgramModel:
    return ModuleModel(Two()).capture(
        {"x": np.zeros((2, 3), np.float32), "y": np.zeros((2, 3), np.float32)},
        {"x": {0: "N"}, "y": {0: "N"}},
    )


def shapes(model: Any, given: Any) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in resolve_inputs(model, given).sample.items()}


class TestResolving:
    @pytest.mark.parametrize(
        "given",
        [
            *("2x3x8x8", ["2x3x8x8"], (2, 3, 8, 8), [2, 3, 8, 8], torch.Size((2, 3, 8, 8))),
            *({"input": "2x3x8x8"}, {"input": (2, 3, 8, 8)}, "input=2x3x8x8"),
            *(torch.zeros(2, 3, 8, 8), np.zeros((2, 3, 8, 8)), [torch.zeros(2, 3, 8, 8)]),
        ],
    )
    def test_every_way_of_saying_it(self, given: Any) -> None:
        assert shapes(module(), given) == {"input": (2, 3, 8, 8)}

    def test_the_type_is_the_models_unless_it_is_said(self) -> None:
        half = ModuleModel(nn.Linear(3, 4).half())
        assert resolve_inputs(half, "2x3").specs[0].dtype == "float16"
        assert resolve_inputs(half, "2x3:float32").specs[0].dtype == "float32"

    def test_data_is_marked_as_the_users(self) -> None:
        assert resolve_inputs(module(), torch.zeros(2, 3, 8, 8)).given
        assert not resolve_inputs(module(), "2x3x8x8").given

    def test_free_sizes_are_named_and_filled(self) -> None:
        found = resolve_inputs(module(), "Nx3xHxW")
        assert found.dynamic == {"input": {0: "N", 2: "H", 3: "W"}}
        assert found.sample["input"].shape == (FREE_BATCH, 3, 224, 224)
        two = resolve_inputs(ModuleModel(Two()), ["NxC", "NxC"])
        assert two.sample["x"].shape == (FREE_BATCH, FREE_SIDE)

    def test_the_order_is_the_models(self) -> None:
        for given in ({"y": "2x5", "x": "2x4"}, ["y=2x5", "2x4"]):
            found = resolve_inputs(ModuleModel(Two()), given)
            assert [spec.name for spec in found.specs] == ["x", "y"]
            assert [a.shape for a in found.sample.values()] == [(2, 4), (2, 5)]
        arrays = {"mask": np.ones(3), "y": np.ones(1), "x": np.ones(2)}
        found = resolve_inputs(ModuleModel(Two()), arrays)
        assert [spec.name for spec in found.specs] == ["x", "y", "mask"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                "2x3",
                "the input 'y' was not given, only x; the model takes 2: x=?:float32, y=?:float32",
            ),
            ("wrong=2x3", "the input 'x' was not given, only wrong"),
            (["2x3"] * 3, "3 inputs were given; the model takes 2"),
            (["x=2x3", "x=2x3"], "'x' was given twice"),
            ({"x": "2x3"}, "the input 'y' was not given, only x"),
            ([torch.zeros(2), "2x3"], "an input is a str"),
            ([None, None], "an input is a NoneType"),
        ],
    )
    def test_what_is_not_enough(self, given: Any, message: str) -> None:
        with pytest.raises(UsageError, match=re.escape(message)):
            resolve_inputs(ModuleModel(Two()), given)

    def test_an_unknown_name_of_a_model_that_lists_all(self) -> None:
        with pytest.raises(UsageError, match="'z' is no input"):
            resolve_inputs(program(), {"x": "2x3", "y": "2x3", "z": "2x3"})

    def test_nothing_given_where_the_model_says_it(self) -> None:
        assert shapes(program(), None) == {"x": (FREE_BATCH, 3), "y": (FREE_BATCH, 3)}

    def test_nothing_given_where_it_does_not(self) -> None:
        with pytest.raises(UsageError, match="what shape its input 'input' has") as caught:
            resolve_inputs(module())
        assert caught.value.hint == "add --input 1x3x224x224 (it runs with that)"


def with_rate(*sizes: int | str) -> OnnxModel:
    """y = conv(x) * rate, with an input that has no axes."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Cast", ["rate"], ["r"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "r"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes or ["N", 3, "H", "W"]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", inputs, [output], [weight])
    opsets = [helper.make_opsetid("", 17)]
    return OnnxModel.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


class TestInputsWithoutAxes:
    @pytest.mark.parametrize("said", ["rate=16000", "rate=:int64=16000"])
    def test_the_value_is_kept_by_every_probe(self, said: str) -> None:
        found = resolve_inputs(with_rate(), ["x=1x3x9x8", said])
        assert found.sample["rate"] == np.array(16000)
        cases = [*probes(found.specs, found.sample)]
        assert {int(case.sample["rate"]) for case in cases} == {16000}
        assert len({case.sample["x"].tobytes() for case in cases}) > 3

    def test_without_a_value_it_varies(self) -> None:
        found = resolve_inputs(with_rate(), ["x=1x3x9x8", "rate=:int64"])
        cases = [*probes(found.specs, found.sample)]
        assert len({int(case.sample["rate"]) for case in cases}) > 1

    @pytest.mark.parametrize("said", ["rate=0.5", "rate=fast", "rate=:int64=x"])
    def test_a_value_of_another_type(self, said: str) -> None:
        with pytest.raises(UsageError, match="is no int64") as caught:
            resolve_inputs(with_rate(), ["x=1x3x9x8", said])
        assert caught.value.hint == "write it like rate=:int64=1"

    def test_what_the_error_prints_is_accepted(self) -> None:
        with pytest.raises(UsageError) as caught:
            resolve_inputs(with_rate(), ["x=1x3x9x8"])
        assert "rate=:int64" in str(caught.value)
        assert resolve_inputs(with_rate(), ["x=1x3x9x8", "rate=:int64"]).specs[1].shape == ()

    def test_free_sizes_vary_and_it_stays(self) -> None:
        found = resolve_inputs(with_rate(), ["x=Nx3xHxW", "rate=8"])
        assert {int(array) for array in (s["rate"] for s in (found.sized({"N": 2}),))} == {8}
        assert {int(case.sample["rate"]) for case in probes(found.specs, found.sample)} == {8}

    def test_what_was_recorded_is_kept(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.ones((1, 3, 9, 8), np.float32), rate=np.array(16000))
        protocol = Protocol(recorded=(tmp_path / "a.npz",))
        found = known_inputs(with_rate(), None, protocol)
        assert found.specs[1].value == 16000
        assert found.data
        assert not found.given
        assert {int(case.sample["rate"]) for case in probes(found.specs, found.sample)} == {16000}


class TestSizesThatNobodyNames:
    def test_a_model_that_declares_its_ranks_is_run_with_some(self) -> None:
        model = with_rate()
        found = resolve_inputs(model)
        assert found.sample["x"].shape == (FREE_BATCH, 3, 224, 224)
        assert "x=3x3x224x224" in model.notes[-1]

    def test_a_size_that_only_one_value_fits_is_found(self) -> None:
        model = with_rate()
        nodes = model.native.graph.node
        nodes.append(helper.make_node("Add", ["y", "grid"], ["z"]))
        model.native.graph.output[0].name = "z"
        grid = np.ones((1, 1, 30, 30), np.float32)
        proto = model.native
        proto.graph.initializer.append(numpy_helper.from_array(grid, "grid"))
        found = resolve_inputs(OnnxModel.from_proto(proto))
        assert found.sample["x"].shape == (FREE_BATCH, 3, 32, 32)

    def test_where_nothing_runs_the_proposal_has_the_models_names_and_ranks(self) -> None:
        model = with_rate("N", 7, "H", "W")
        with pytest.raises(UsageError, match="what shape its input 'x' has") as caught:
            resolve_inputs(model)
        hint = "add --input x=1x7x224x224 --input rate=:int64 with the sizes that it was trained on"
        assert caught.value.hint == hint


def test_an_input_that_no_memory_holds() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 10**6, 10**6])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    model = OnnxModel.from_proto(helper.make_model(graph, ir_version=8))
    with pytest.raises(ModelError, match="'x' of 1x3x1000000x1000000 takes 12,000 GB"):
        resolve_inputs(model)
