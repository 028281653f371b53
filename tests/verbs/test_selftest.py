"""The self-test: what it damages is seen, and a gate that does not look fails it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import parser
from torch import nn

import bnfold
from bnfold import Protocol
from bnfold.formats.opening import open_model
from bnfold.verbs.selftest import SHOWS, self_test
from tests.conftest import CHECKPOINTS
from tests.formats.networks import trained

ON_CPU = Protocol(providers=("cpu",))
SHAPE = "2x3x9x7"


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.LayerNorm([4, 7, 5]))
    return trained(nn.Sequential(*layers, nn.Flatten(), nn.Linear(140, 3)))


def test_a_module_is_damaged_in_each_way_and_all_of_it_is_seen() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    folded = bnfold.fold(net, SHAPE).model
    found = self_test(net, folded, SHAPE)
    assert found.passed
    assert [trial.kind for trial in found.trials] == ["weight", "bias", "epsilon"]
    assert all(trial.where and trial.change > SHOWS for trial in found.trials)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_an_exported_program_too() -> None:
    program = torch.export.export(network(), (torch.ones(2, 3, 9, 7),))
    found = self_test(program, bnfold.fold(program).model)
    assert found.passed
    assert [trial.where is None for trial in found.trials] == [False, False, True]


def test_torchscript_too_whose_weights_are_constants_once_it_is_folded() -> None:
    traced = torch.jit.trace(network(), torch.ones(2, 3, 9, 7))  # type: ignore[no-untyped-call]
    folded = bnfold.fold(traced, SHAPE).model
    x = torch.ones(2, 3, 9, 7)
    before = traced(x), folded(x)
    for candidate in (traced, folded):
        found = self_test(traced, candidate, SHAPE)
        assert found.passed
        assert all(trial.where and trial.change > SHOWS for trial in found.trials), found
    assert torch.equal(before[0], traced(x))
    assert torch.equal(before[1], folded(x))


def test_a_folded_onnx_file_has_no_epsilon_left() -> None:
    original = CHECKPOINTS / "placement.onnx"
    folded = bnfold.fold(original, protocol=ON_CPU).model
    content = folded.SerializeToString()
    found = self_test(original, folded, protocol=ON_CPU)
    assert found.passed
    assert [trial.where is None for trial in found.trials] == [False, False, True]
    assert "there is no epsilon whose damage would change an output" in str(found.trials[2])
    assert folded.SerializeToString() == content


def test_an_onnx_file_that_was_not_folded_has_epsilons() -> None:
    original = CHECKPOINTS / "placement.onnx"
    found = self_test(original, original, protocol=ON_CPU)
    assert found.passed
    assert "(BatchNormalization)" in str(found.trials[2].where)


def test_a_gate_that_does_not_look_fails_it() -> None:
    net = network()
    found = self_test(net, net, SHAPE, protocol=Protocol(policy="fixed", atol={"": 1e6}))
    assert not found.passed
    assert [trial.seen for trial in found.trials] == [False, False, False]
    assert "the gate does not see that the weight" in str(found.trials[0])
    assert found.to_json()["verdict"] == "fail"


DEAD = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float zero = {0}> {
    dead = MatMul (x, w)
    none = Mul (dead, zero)
    y = Add (x, none)
}
"""


def test_weights_that_cannot_matter_are_no_proof() -> None:
    model = parser.parse_model(DEAD)
    found = self_test(model, model, protocol=ON_CPU)
    assert not found.passed
    assert found.checks == [
        ("damage", "nothing of the candidate could be damaged: that shows nothing")
    ]


@pytest.mark.parametrize("make", [network, lambda: CHECKPOINTS / "placement.onnx"])
def test_each_damage_changes_one_model_and_not_the_other(make: Any) -> None:
    model = open_model(make())
    kinds = {damage.kind for damage in model.damages()}
    assert kinds == {"weight", "bias", "epsilon"}
    (spec,) = model.inputs
    sample = {spec.name: np.ones((2, 3, 9, 7), "float32")}
    if isinstance(model.native, onnx.ModelProto):
        sample = {spec.name: np.ones((1, 3, 32, 32), "float32")}
    before = {name: array.copy() for name, array in model.truth()(sample).items()}
    changing = set()
    for damage in model.damages():
        damaged = damage.apply(10.0).truth()(sample)
        if any((damaged[name] != before[name]).any() for name in before):
            changing.add(damage.kind)
    assert changing == kinds
    after = model.truth()(sample)
    assert all((after[name] == before[name]).all() for name in before)
