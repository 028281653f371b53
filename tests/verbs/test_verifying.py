"""The cases of a verification as the user asks for them, on real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import parser
from torch import nn

import bnfold
from bnfold import Protocol
from bnfold.errors import UsageError
from bnfold.formats.opening import open_model
from bnfold.verbs.inputs import cases, known_inputs
from tests.formats.networks import trained

FREE = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 2, H, 4] x) => (float[N, 2, H, 4] y)
<float[2, 2, 1, 1] w = {0.5, -0.25, 1.5, 0.75}> { y = Conv (x, w) }
"""
TABLES = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64[N, 3] ids, int64[N, 3] kinds, int64[N, 3] mask) => (float[N, 3, 2] y)
<float[5, 2] words = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, float[3, 2] types = {1, 2, 3, 4, 5, 6},
 int64[1] last = {2}> {
    narrow = Cast <to = 6> (kinds)
    a = Gather (words, ids)
    b = Gather (types, narrow)
    m = Unsqueeze (mask, last)
    weight = Cast <to = 1> (m)
    sum = Add (a, b)
    y = Mul (sum, weight)
}
"""


def model_of(text: str) -> onnx.ModelProto:
    return parser.parse_model(text)


def test_every_combination_of_the_sizes_asked_for_is_a_case() -> None:
    model = open_model(model_of(FREE))
    protocol = Protocol(shapes={"N": (1, 2, 7), "H": (5, 6)})
    inputs = known_inputs(model, "Nx2xHx4", protocol)
    found = {case.name: (case.sample["x"].shape, case.given) for case in cases(inputs, protocol)}
    for n in (1, 2, 7):
        for h in (5, 6):
            assert found[f"N={n}, H={h}"] == ((n, 2, h, 4), True)
    assert found["noise"][0] == (1, 2, 5, 4)
    assert not {"batch 1", "odd sizes"} & set(found)


def test_each_seed_adds_a_set_of_probes() -> None:
    model = open_model(model_of(FREE))
    protocol = Protocol(seeds=(0, 5))
    found = list(cases(known_inputs(model, "Nx2x5x4", protocol), protocol))
    names = [case.name for case in found]
    assert {"noise, seed 0", "noise, seed 5"} <= set(names)
    first, second = (found[names.index(f"noise, seed {s}")].sample["x"] for s in (0, 5))
    assert not np.array_equal(first, second)


def test_a_size_that_is_not_free_is_refused() -> None:
    with pytest.raises(UsageError, match="'W' is no free size of the model: its free sizes are N"):
        bnfold.verify(
            model_of(FREE), model_of(FREE), "Nx2x5x4", protocol=Protocol(shapes={"W": (3,)})
        )


def test_a_size_asked_for_on_which_the_original_does_not_run_is_no_pass() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(Exception, match="shapes cannot be multiplied"):
        bnfold.verify(net, net, "Nx2xH", protocol=Protocol(shapes={"H": (4, 5)}))


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        (FREE.replace("float[N, 2, H, 4] x", "float[3, 2, H, 4] x"), "axis 0 froze to 3"),
        (FREE.replace("float[N, 2, H, 4] x", "float[N, 2, 32, 4] x"), "axis 2 froze to 32"),
    ],
)
def test_a_free_size_that_froze_fails_and_is_named(frozen: str, said: str) -> None:
    verification = bnfold.verify(model_of(FREE), model_of(frozen), "Nx2xHx4")
    assert not verification.passed
    assert any(
        said in str(row.why) and "in the original it is free" in str(row.why)
        for row in verification.rows
    )
    assert bnfold.verify(model_of(FREE), model_of(FREE), "Nx2xHx4").passed


def test_an_output_that_froze_fails_and_its_axis_is_named() -> None:
    frozen = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 2, H, 4] x) => (float[A, B, C, D] y)
    <float[2, 2, 1, 1] w = {0.5, -0.25, 1.5, 0.75}, int64[1] n = {3}, int64[1] zero = {0}> {
        first = Slice (x, zero, n, zero)
        c = Conv (first, w)
        y = Identity (c)
    }
    """
    protocol = Protocol(shapes={"N": (2, 7), "H": (5,)})
    verification = bnfold.verify(model_of(FREE), model_of(frozen), protocol=protocol)
    assert not verification.passed
    assert "its shape is [3, 2, 5, 4], the original's is [7, 2, 5, 4] (axis 0)" in str(
        verification.worst and verification.worst.why
    )


def test_onnx_inputs_that_pick_rows_take_all_of_them() -> None:
    model = open_model(model_of(TABLES))
    inputs = known_inputs(model, None, Protocol())
    assert [spec.integers.limit for spec in inputs.specs] == [5, 3, None]
    seen: dict[str, set[int]] = {"ids": set(), "kinds": set(), "mask": set()}
    for case in cases(inputs):
        for name, array in case.sample.items():
            seen[name] |= set(array.flat)
    assert set(range(5)) < seen["ids"] <= set(range(-5, 5))
    assert {0, 1, 2} < seen["kinds"] <= set(range(-3, 3))
    assert {0, 1} < seen["mask"]
    assert bnfold.verify(model_of(TABLES), model_of(TABLES)).passed


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.small = nn.Embedding(11, 4), nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows = self.words(ids.long()) + self.small(ids.view(-1).long()).view(*ids.shape, 4)
        return self.norm((rows * mask.unsqueeze(-1)).transpose(1, 2))


@pytest.mark.parametrize("form", ["module", "torchscript", "program"])
def test_torch_inputs_that_pick_rows_take_all_of_the_smallest_table(form: str) -> None:
    net: Any = trained(Words())
    example = (torch.zeros(3, 5, dtype=torch.int32), torch.ones(3, 5, dtype=torch.bool))
    if form == "torchscript":
        net = torch.jit.trace(net, example)
    elif form == "program":
        net = torch.export.export(net, example)
    given = {"ids": "3x5:int32", "mask": "3x5:bool"}
    inputs = known_inputs(open_model(net), given, Protocol())
    assert {spec.name: spec.integers.limit for spec in inputs.specs} == {"ids": 7, "mask": None}


def test_an_array_or_a_tensor_is_an_input_as_it_is() -> None:
    net = trained(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)))
    for given in (torch.ones(2, 2, 5, 5), np.ones((2, 2, 5, 5), np.float32)):
        assert bnfold.verify(net, net, given).passed
        assert bnfold.fold(net, given).passed


def test_a_wrong_row_of_a_table_is_seen() -> None:
    wrong = TABLES.replace("6, 7, 8, 9}", "6, 7, 8, 9.5}")
    assert not bnfold.verify(model_of(TABLES), model_of(wrong)).passed


def test_recorded_inputs_say_the_shape_where_nothing_else_does(tmp_path: Path) -> None:
    net = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((2, 3, 9, 7), np.float32))
    result = bnfold.fold(net, protocol=Protocol(recorded=(tmp_path / "x.npy",)))
    assert result.verification is not None
    assert {row.place.case for row in result.verification.rows} >= {"x.npy", "noise"}


def test_a_recorded_input_shows_what_no_probe_does(tmp_path: Path) -> None:
    """Two models that part at one number only: what no probe reached is named."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 2] x) => (float[N, 2] y) <float one = {1234.5}, float then = {THEN}> {
        alike = Equal (x, one)
        y = Where (alike, then, x)
    }
    """
    one, other = (model_of(text.replace("THEN", then)) for then in ("2000", "3000"))
    np.savez(tmp_path / "high.npz", x=np.full((1, 2), 1234.5, np.float32))
    passed = bnfold.verify(one, other)
    assert passed.passed
    assert any("no case reached 2 of 4 sides" in said for said in passed.asides)
    assert passed.to_json()["sides"]["unseen"] == [
        {"operator": "alike (Equal)", "side": "true"},
        {"operator": "y (Where)", "side": "true"},
    ]
    found = bnfold.verify(one, other, protocol=Protocol(recorded=(tmp_path,)))
    assert not found.passed
    assert found.worst is not None
    assert found.worst.place.case == "high.npz"
