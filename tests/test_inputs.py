"""What the user says about inputs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnfold.errors import UsageError
from bnfold.formats.pytorch.exported_program import ExportedProgramModel
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.inputs import FREE_BATCH, FREE_SIDE, parse, resolve_inputs
from bnfold.run import TensorSpec


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
    ],
)
def test_texts(text: str, name: str, shape: tuple[Any, ...], dtype: str) -> None:
    assert parse(text) == TensorSpec(name, dtype, shape)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "1x", "x1", "1xx3", "0x3", "-1x3", "1.5x3", "1X3X224", "1×3", "max=", "²x3"),
        *("1 x 3", "01x3", "a=b=c=1", "1x3:", "1x3:float", "1x3:f4", "1x3:object", "1x3:float128"),
    ],
)
def test_texts_that_say_nothing(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.hint


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
