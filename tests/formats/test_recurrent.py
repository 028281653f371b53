"""A BatchNorm before a recurrent layer, in every form that torch and ONNX have of one."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnfold
from bnfold.algebra.plan import Outcome
from bnfold.algebra.refusal import Reason
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net, check_fold
from tests.formats.test_parity import script

X = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))


class Speech(nn.Module):
    """ReLU, BatchNorm and a recurrent layer; [N, C, L] as a convolution gives it."""

    def __init__(self, kind: Any, **how: Any) -> None:
        super().__init__()
        self.norm, self.rnn = nn.BatchNorm1d(4), kind(4, 5, **how)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.rnn(self.norm(x.relu()).permute(2, 0, 1))[0]
        return made


KINDS = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {"nonlinearity": "relu"}),
    "two layers, both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "GRU, both ways": (nn.GRU, {"bidirectional": True}),
    "projected": (nn.LSTM, {"num_layers": 2, "proj_size": 3, "bidirectional": True}),
}


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("name", KINDS)
def test_the_input_weights_take_it(name: str, form: Any) -> None:
    kind, how = KINDS[name]
    result = bnfold.fold(net := trained(Speech(kind, **how)), X, form=form)
    assert result.verification is not None
    assert result.verification.passed
    assert [(s.outcome, s.into) for s in result.plan.sites] == [(Outcome.FOLDED, ("rnn",))]
    if form == "module":
        assert isinstance(result.model.norm, nn.Identity)
        changed = {
            k
            for k, v in result.model.rnn.state_dict().items()
            if not torch.equal(v, net.rnn.state_dict()[k])
        }
        assert {key.removesuffix("_reverse") for key in changed} == {"weight_ih_l0", "bias_ih_l0"}
        assert torch.equal(result.model(X), result.model(X))


@pytest.mark.parametrize("name", KINDS)
def test_a_trace_folds_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.algebra.rounding import make_rounded_plan
    from tests.formats import test_parity
    from tests.formats.networks import excess, first

    kind, how = KINDS[name]
    sample = {"x": X.numpy()}
    monkeypatch.setattr(test_parity, "SAMPLE", sample)
    model = script(trained(Speech(kind, **how)))
    plan, weights = make_rounded_plan(model.read(sample), model.locked(), model.veto)
    assert plan.batchnorms.kept == 0
    made = model.write(plan, weights)
    assert excess(model, first(model, sample), first(made, sample), sample) < 8


def test_without_biases_a_shift_stays() -> None:
    result = bnfold.fold(trained(Speech(nn.LSTM, bias=False)), X, form="graph")
    (site,) = result.plan.sites
    assert {each.reason for each in site.obstacles} == {Reason.SHIFT, Reason.FORM}


class Tied(Speech):
    """What it reads of the sequence and of its state are one matrix."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM)
        self.rnn = nn.LSTM(4, 4)
        self.rnn.weight_hh_l0 = self.rnn.weight_ih_l0


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_matrix_that_reads_the_state_as_well_is_not_changed_with_it(form: Any) -> None:
    result = bnfold.fold(trained(Tied()), X, form=form)
    assert result.verification is not None
    assert result.verification.passed


def recurrent(
    kind: str, gates: int, *, biased: bool, directions: int = 1, layout: int = 0
) -> onnx.ModelProto:
    """ReLU, BatchNorm, then the operator, which reads a state that is computed as well."""
    net = Net(opset=17)
    x = net.bn(net.node("Relu", net.input("x", 3, 4, 7)), 4)
    turned = net.node("Transpose", x, perm=(0, 2, 1) if layout else (2, 0, 1))
    weights = [net.normal(directions, gates * 5, size) for size in (4, 5)]
    bias = net.normal(directions, 2 * gates * 5) if biased else ""
    state = net.input("h", directions, 3, 5)
    how = {"direction": "bidirectional"} if directions == 2 else {"direction": "reverse"}
    made = net.node(
        kind,
        turned,
        *weights,
        bias,
        "",
        state,
        made=["y", "last"],
        hidden_size=5,
        layout=layout,
        **how,
    )
    net.output(made)
    net.output("last", 3)
    return net.proto()


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
def test_an_operator_of_onnx_takes_it(kind: str, gates: int, biased: bool, directions: int) -> None:
    model, plan = check_fold(recurrent(kind, gates, biased=biased, directions=directions))
    assert [s.outcome for s in plan.sites] == [Outcome.FOLDED]
    sizes = {tuple(value.dims) for value in model.native.graph.initializer}
    assert (directions, 2 * gates * 5) in sizes


def test_one_bias_of_two_layers_that_differ_in_the_other_half_stays_two() -> None:
    """What is equal is the half that changes, not the tensor."""
    net = Net(opset=17)
    x = net.bn(net.node("Relu", net.input("x", 3, 4, 7)), 4)
    turned = net.node("Transpose", x, perm=(2, 0, 1))
    weights = [net.normal(1, 5, size) for size in (4, 5)]
    for i in range(2):
        bias = np.concatenate((np.ones((1, 5)), np.full((1, 5), i)), 1)
        net.output(net.node("RNN", turned, *weights, net.weight(bias), made=f"y{i}", hidden_size=5))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0


def test_a_module_is_exported_after_it() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        result = bnfold.export(trained(Speech(nn.LSTM)), X, to=["onnx"])["onnx"]
    assert result.verification.passed
    assert result.plan.batchnorms.kept == 0
