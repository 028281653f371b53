"""A layer that is called several times: one weight where every call takes the same, else copies."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnfold
from bnfold.algebra.refusal import Reason
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net, check_fold
from tests.forms import FORMS

X = torch.randn(2, 3, 8, 7, generator=torch.Generator().manual_seed(3))


class Calls(nn.Module):
    """A layer twice, each time followed by a BatchNorm, the same or another."""

    def __init__(self, *, bias: bool = True, norms: int = 1, layers: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 4, 3, bias=bias) for _ in range(layers))
        for layer in self.layers[1:]:
            layer.load_state_dict(self.layers[0].state_dict())
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(norms))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = enumerate((x, F.avg_pool2d(x, 2)))
        layers, norms = self.layers, self.norms
        return tuple(norms[i % len(norms)](layers[i % len(layers)](p)).relu() for i, p in parts)


class Head(nn.Module):
    """The head of a detector, on two scales: three layers, two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.head = nn.Sequential(
            *(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Conv2d(4, 5, 1),
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = self.stem(x).relu()
        return [self.head(y), self.head(F.avg_pool2d(y, 2))]


class Ghosts(nn.Module):
    """A BatchNorm on every part of the batch, behind one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.conv(x).chunk(2)
        return torch.cat((self.norm(one), self.norm(two))).relu()


class Siamese(nn.Module):
    """A linear layer on both halves of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(28, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = x.flatten(1)[:, :28], x.flatten(1)[:, 28:56]
        both = [self.norm(self.linear(part)).relu() for part in (one, two)]
        return both[0] - both[1]


def folded(net: nn.Module, form: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        if form in ("module", "graph"):
            result: Any = bnfold.fold(trained(net), X, form=form)
        else:
            result = bnfold.export(trained(net), X, to=[form])[form]
    assert result.verification.passed, result.verification.summary
    return result


def weights(result: Any, form: str) -> list[tuple[int, ...]]:
    """The shapes of the weights and biases that are stored, those that are one tensor once."""
    if form == "onnx":
        return sorted(tuple(t.dims) for t in result.model.graph.initializer if t.data_type == 1)
    if form == "torchscript":
        nodes = result.model.graph.findAllNodes("prim::Constant")
        tensors = [
            n.t("value") for n in nodes if n.hasAttribute("value") and n.kindOf("value") == "t"
        ]
    else:
        state = result.model.state_dict
        tensors = list((state() if callable(state) else state).values())
    floating = {t.data_ptr(): tuple(t.shape) for t in tensors if t.is_floating_point()}
    return sorted(floating.values())


CONV = [(4,), (4, 3, 3, 3)]
ONE_WEIGHT: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "one BatchNorm": (Calls, CONV),
    "a new bias": (lambda: Calls(bias=False), CONV),
    "equal layers": (lambda: Calls(layers=2), CONV),
    "ghost batches": (Ghosts, CONV),
    "siamese": (Siamese, [(4,), (4, 28)]),
    "head": (Head, [*[(4,)] * 3, (5,), (4, 3, 1, 1), *[(4, 4, 3, 3)] * 2, (5, 4, 1, 1)]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ONE_WEIGHT)
def test_what_every_call_takes_alike_stays_one_weight(name: str, form: str) -> None:
    make, shapes = ONE_WEIGHT[name]
    result = folded(make(), form)
    assert result.plan.batchnorms.kept == 0
    if not (form == "module" and name == "equal layers"):  # modules hold a weight each
        assert weights(result, form) == sorted(shapes)
    assert not any("copies" in note for note in result.notes)


@pytest.mark.parametrize("form", FORMS[1:])
def test_different_batchnorms_make_copies_and_their_cost_is_told(form: str) -> None:
    result = folded(Calls(norms=2), form)
    assert result.plan.batchnorms.kept == 0
    assert weights(result, form) == sorted(2 * CONV)
    (note,) = [note for note in result.notes if "copies" in note]
    assert note.startswith("what follows the calls of one layer differs: 2 copies, 0.4 kB more")
    assert "layers.0.weight" in note
    more = result.to_json()["cost"] if form == "graph" else None
    assert more is None or more["after"]["parameters"] == 2 * (4 + 108)


def test_a_module_keeps_a_layer_whose_calls_differ() -> None:
    net = Calls(norms=2)
    result = bnfold.fold(trained(net), X, keep_classes=True, verify=False)
    assert {site.reason for site in result.plan.sites} == {Reason.SHARED_MODULE}


class ReadElsewhere(Calls):
    """The weight is read by something besides, which would see the change."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*super().forward(x), self.layers[0].weight.sum())


def test_a_module_keeps_a_weight_that_something_else_reads() -> None:
    result = bnfold.fold(trained(ReadElsewhere()), X, keep_classes=True, verify=False)
    assert {site.reason for site in result.plan.sites} == {Reason.SHARED_MODULE}


class OnePlain(Calls):
    """A call that no BatchNorm follows."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*super().forward(x), self.layers[0](x[:, :, 1:]).sigmoid())


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_call_without_a_batchnorm_keeps_the_old_weight(form: str) -> None:
    result = folded(OnePlain(), form)
    assert result.plan.batchnorms.kept == 0
    assert weights(result, form) == sorted(2 * CONV)
    kept = bnfold.fold(trained(OnePlain()), X, keep_classes=True, verify=False)
    assert {site.reason for site in kept.plan.sites} == {Reason.SHARED_MODULE}


def shared(net: Net, *, flip: bool) -> onnx.ModelProto:
    """One matrix for a MatMul and a Gemm, which may want it transposed."""
    x, matrix = net.input("x", 3, 5), net.normal(5, 4, name="matrix")
    parameters = net.statistics(4)
    turned = net.node("Transpose", matrix, perm=(1, 0)) if flip else matrix
    made = [net.node("MatMul", x, matrix), net.node("Gemm", x, turned, transB=int(flip))]
    for i, each in enumerate(made):
        net.output(net.node("BatchNormalization", each, *parameters, made=f"y{i}"), 2)
    return net.proto()


def test_one_matrix_of_several_operators_keeps_its_name() -> None:
    model, plan = check_fold(shared(Net(), flip=False))
    assert plan.batchnorms.kept == 0
    sizes = {value.name: tuple(value.dims) for value in model.native.graph.initializer}
    assert sizes["matrix"] == (5, 4)
    assert sorted(sizes.values()) == [(4,), (5, 4)]


def test_a_matrix_that_is_stored_both_ways_is_not_mixed_up() -> None:
    _, plan = check_fold(shared(Net(), flip=True))
    assert plan.batchnorms.kept == 0


def test_equal_numbers_of_two_types_are_two_weights() -> None:
    net = Net(opset=17)
    x = net.input("x", 1, 3, 5, 5)
    numbers, ones = np.eye(3).reshape(3, 3, 1, 1), [np.ones(3), np.ones(3), np.zeros(3), np.ones(3)]
    for i, dtype in enumerate((np.float32, np.float16)):
        cast = net.node("Cast", x, to=1 if dtype is np.float32 else 10)
        made = net.node("Conv", cast, net.weight(numbers, dtype))
        parameters = [net.weight(each, dtype) for each in ones]
        bn = net.node("BatchNormalization", made, *parameters, made=f"y{i}", epsilon=0.0)
        net.output(bn, elem=1 if dtype is np.float32 else 10)
    model, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0
    types = [t.data_type for t in model.native.graph.initializer if len(t.dims) == 4]
    assert sorted(types) == [1, 10]


def test_the_bytes_are_the_same_every_time(tmp_path: Any) -> None:
    program = torch.export.export(trained(Head()), (X,))
    for source in (program, shared(Net(), flip=True)):
        for name in "ab":
            bnfold.fold(source, verify=False).folded.save(tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
