"""Matrix products of captured programs: layers, attention, and when a product is a mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bnfold.algebra.graph import Graph, Linear, MatMul, Node, Op, Opaque, WeightedMean
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.formats.pytorch.program_reader import ProgramReader
from bnfold.formats.torchscript.model import TorchScriptModel
from tests.formats.networks import Function, noise, trained
from tests.formats.test_aten import read

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

X = noise(2, 3, 5, 5)


def captured(module: torch.nn.Module, x: Any) -> Graph:
    return ProgramReader(ModuleModel(module).capture({"x": x}).functional).graph()


def traced(module: torch.nn.Module, x: Any) -> Graph:
    script = torch.jit.trace(module, torch.from_numpy(x), check_trace=False)
    return TorchScriptModel.from_module(script).read({"x": x})


both = pytest.mark.parametrize("form", [captured, traced])
Form = Callable[[torch.nn.Module, Any], Graph]


def last(form: Form, run: Callable[..., Any], x: Any = X) -> Node:
    return form(trained(Function(run)), x).nodes[-1]


def meaning(op: Op) -> tuple[type, int | None, int | None]:
    mean = op if isinstance(op, WeightedMean) else None
    return type(op), mean and mean.port, mean and mean.axis


LEFT, RIGHT, PLAIN = (WeightedMean, 1, -2), (WeightedMean, 0, -1), (MatMul, None, None)


@both
@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda m, x: x.softmax(-1) @ x, LEFT),
        (lambda m, x: x.softmax(3) @ x, LEFT),
        (lambda m, x: torch.bmm(x[0].softmax(-1), x[0]), LEFT),
        (lambda m, x: F.dropout(x.softmax(-1), 0.5, training=False) @ x, LEFT),
        (lambda m, x: x.softmax(-1).view(6, 5, 5) @ x.view(6, 5, 5), LEFT),
        (lambda m, x: x.softmax(-1)[:, :1].expand(-1, 3, -1, -1) @ x, LEFT),
        (lambda m, x: x.softmax(-1)[:, :, 1:] @ x, LEFT),
        (lambda m, x: x.softmax(2).transpose(2, 3) @ x, LEFT),
        (lambda m, x: x.softmax(2).permute(0, 1, 3, 2).contiguous() @ x, LEFT),
        (lambda m, x: x.masked_fill(x > 0, -torch.inf).softmax(-1) @ x, LEFT),
        (lambda m, x: x @ x.softmax(-1).transpose(-2, -1), RIGHT),
        (lambda m, x: x @ x.softmax(-2), RIGHT),
        (lambda m, x: x.softmax(-1)[:, 0] @ x[:, 0], LEFT),
        (lambda m, x: x[0] @ x.softmax(1)[0], PLAIN),
        (lambda m, x: x @ x, PLAIN),
        (lambda m, x: x @ x.softmax(-1), PLAIN),
        (lambda m, x: x.softmax(-2) @ x, PLAIN),
        (lambda m, x: x.softmax(1) @ x, PLAIN),
        (lambda m, x: x.log_softmax(-1) @ x, PLAIN),
        (lambda m, x: x.softmax(-1).transpose(-2, -1) @ x, PLAIN),
        (lambda m, x: (x.softmax(-1) + x) @ x, PLAIN),
        (lambda m, x: (x.softmax(-1) * 2) @ x, PLAIN),
        (lambda m, x: x.softmax(-1).relu() @ x, PLAIN),
        (lambda m, x: x.softmax(-1)[..., 1:] @ x[..., 1:, :], PLAIN),
        (lambda m, x: x[:, :1, :, :1].softmax(-1).expand(-1, 3, -1, 5) @ x, PLAIN),
        (
            lambda m, x: x[:, :, None, :, :2] @ x[..., :4].softmax(-1).unflatten(-1, (2, 2)),
            PLAIN,
        ),
        (lambda m, x: x.softmax(-1).reshape(2, 3, 25, 1) @ x[:, :, :1], PLAIN),
        (lambda m, x: x[..., :1].softmax(-1).expand(-1, -1, -1, 5) @ x, PLAIN),
    ],
)
def test_when_a_product_is_a_mean(
    form: Form, run: Callable[..., Any], expected: tuple[type, int | None, int | None]
) -> None:
    assert meaning(last(form, run).op) == expected


def test_weights_that_are_overwritten_are_no_longer_those_of_a_mean() -> None:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        weights = x.softmax(-1)
        view = weights.view(2, 3, 5, 5)
        weights.mul_(2)
        return view @ x

    assert not isinstance(last(traced, run).op, WeightedMean)
    assert not isinstance(last(captured, run).op, WeightedMean)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: x[0, 0, 0] @ x,
        lambda m, x: x @ x[0, 0, 0],
    ],
)
def test_products_that_are_none_of_the_three(run: Callable[..., Any]) -> None:
    assert isinstance(last(captured, run).op, Opaque)


def sdpa(**options: Any) -> Callable[..., Any]:
    return lambda m, x: F.scaled_dot_product_attention(x, x.relu(), x.abs(), **options)


row = torch.ones(5, 5, dtype=torch.bool).tril()
empty = row.clone()
empty[2] = False
added = torch.zeros(5, 5).masked_fill(~row, -torch.inf)


@both
@pytest.mark.parametrize(
    ("run", "mean"),
    [
        (sdpa(), True),
        (sdpa(is_causal=True), True),
        (sdpa(scale=0.3), True),
        (sdpa(attn_mask=row), True),
        (sdpa(attn_mask=added), True),
        (sdpa(attn_mask=empty), False),
        (sdpa(attn_mask=torch.zeros(5, 5).masked_fill(~empty, -torch.inf)), False),
        (sdpa(dropout_p=0.5), False),
        (sdpa(enable_gqa=True), False),
        (lambda m, x: F.scaled_dot_product_attention(x, x, x.abs(), attn_mask=x > 0), False),
    ],
)
def test_attention_as_one_operator(form: Form, run: Callable[..., Any], mean: bool) -> None:
    node = last(form, run)
    assert isinstance(node.op, WeightedMean if mean else Opaque)
    if isinstance(node.op, WeightedMean):
        graph = form(trained(Function(run)), X)
        (magnitude,) = (n for n in graph.nodes if n.kind == "abs")
        assert node.inputs[node.op.port] == magnitude.outputs[0]


@both
def test_a_query_that_is_a_constant(form: Form) -> None:
    node = last(
        form, lambda m, x: F.scaled_dot_product_attention(torch.ones(2, 3, 4, 5), x, x.abs())
    )
    assert isinstance(node.op, WeightedMean)
    assert node.op.port == 2
    assert len(node.inputs) == 3


def test_layers_written_as_products() -> None:
    weight, bias = torch.randn(5, 4), torch.randn(4)
    for run in (
        lambda m, x: x @ weight,
        lambda m, x: torch.addmm(bias, x.view(30, 5), weight),
        lambda m, x: torch.mm(x.view(30, 5), weight),
        lambda m, x: torch.addmm(bias, x.view(30, 5), weight, alpha=2),
        lambda m, x: torch.addmm(bias, x.view(30, 5), weight, beta=0),
    ):
        assert isinstance(read(run, X)[-1].op, Linear)
    for run in (
        lambda m, x: torch.addmm(torch.ones(30, 4), x.view(30, 5), weight),
        lambda m, x: torch.addmm(x[0, 0, 0, :4], x.view(30, 5), weight),
        lambda m, x: x @ torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)),
    ):
        assert not isinstance(read(run, X)[-1].op, Linear)
