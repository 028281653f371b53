"""What single operators mean: the neutral op that a captured program has for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Conv,
    Identity,
    Linear,
    Mean,
    Multiply,
    Node,
    Op,
    Opaque,
    Pad,
    PixelShuffle,
    Pool,
    Reshape,
    Take,
    Transpose,
)
from bnfold.algebra.reference import evaluate
from bnfold.formats.pytorch.aten import Call, Facts, translate
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.formats.pytorch.program_reader import ProgramReader
from tests.formats.networks import Function, noise, trained

X = noise(2, 4, 4, 6)
constant = {name: torch.linspace(0.5, 2, n) for name, n in (("four", 4), ("six", 6), ("two", 2))}


def read(run: Callable[..., Any], x: Any = X, **parts: Any) -> tuple[Node, ...]:
    """The nodes of a model, after holding their values against what torch computes."""
    model = ModuleModel(trained(Function(run, **parts)))
    graph = ProgramReader(model.capture({"x": x}).functional).graph()
    if not any(isinstance(node.op, Opaque) for node in graph.nodes):
        values = evaluate(graph, {"x": x.astype(np.float64)})
        truth = model.truth()({"x": x})
        for name, exact in zip(graph.outputs, truth.values(), strict=True):
            np.testing.assert_allclose(values[name], exact, rtol=1e-6, atol=1e-6)
    return graph.nodes


def meaning(call: Call) -> Op:
    (node,) = translate(call)
    return node.op


def ops(nodes: tuple[Node, ...]) -> list[type]:
    return [type(node.op) for node in nodes]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda m, x: x.relu(), [Activation]),
        (lambda m, x: F.leaky_relu(x, 0.2), [Activation]),
        (lambda m, x: x.sigmoid(), [Opaque]),
        (lambda m, x: F.max_pool2d(x, 2, 1, 1), [Opaque, Identity]),
        (lambda m, x: F.avg_pool2d(x, 3, 2, 1), [Pool]),
        (lambda m, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), [Pool]),
        (lambda m, x: F.adaptive_avg_pool2d(x, (2, 3)), [AdaptivePool]),
        (lambda m, x: x.mean((2, 3), keepdim=True), [Mean]),
        (lambda m, x: x.mean(-1), [Mean]),
        (lambda m, x: x.flatten(1), [Reshape]),
        (lambda m, x: x.roll((1, -2), (2, 3)), [Take, Take]),
        (lambda m, x: x.flip((2, -1)), [Take, Take]),
        (lambda m, x: torch.stack([x, x.relu()], 1), [Activation, Reshape, Reshape, Concat]),
        (lambda m, x: torch.stack([x, x], -1), [Reshape, Reshape, Concat]),
        (lambda m, x: x.permute(0, 2, 3, 1), [Transpose]),
        (lambda m, x: x.transpose(-1, 1), [Transpose]),
        (lambda m, x: torch.cat([x, x.relu()], -3), [Activation, Concat]),
        (lambda m, x: x + x.relu(), [Activation, Add]),
        (lambda m, x: F.dropout(x, training=False) * 1.0, [Identity, Affine]),
        (lambda m, x: x - x.relu(), [Activation, Add]),
        (lambda m, x: x.relu().sub_(x), [Activation, Add]),
        (lambda m, x: torch.rsub(x, x.relu()), [Activation, Add]),
        (lambda m, x: torch.add(x, x.relu(), alpha=-1), [Activation, Add]),
        (lambda m, x: torch.sub(x, x.relu(), alpha=-1), [Activation, Add]),
        (lambda m, x: torch.add(x, x.relu(), alpha=2), [Activation, Add]),
        (lambda m, x: torch.add(x, x.relu(), alpha=0), [Activation, Opaque]),
        (lambda m, x: x * x.relu(), [Activation, Multiply]),
        (lambda m, x: x.relu().mul_(x.mean((2, 3), keepdim=True)), [Activation, Mean, Multiply]),
        (lambda m, x: -x, [Affine]),
        (lambda m, x: x.double() * 2, [Opaque, Affine]),
        (lambda m, x: (x > 0) * 2.0, [Opaque, Opaque]),
        (lambda m, x: x.clamp(min=0), [Activation]),
        (lambda m, x: x.clamp_min(0), [Activation]),
        (lambda m, x: F.hardtanh(x, 0, torch.inf), [Activation]),
        (lambda m, x: F.threshold(x, 0, 0), [Activation]),
        (lambda m, x: x.abs(), [Activation]),
        (lambda m, x: x.clamp(0, 6), [Opaque]),
        (lambda m, x: x.clamp(min=1), [Opaque]),
        (lambda m, x: F.hardtanh(x, 0, 6), [Opaque]),
        (lambda m, x: F.hardtanh(x, -1, torch.inf), [Opaque]),
        (lambda m, x: F.threshold(x, 0, 1), [Opaque]),
        (lambda m, x: x.movedim(1, -1), [Transpose]),
        (lambda m, x: x.mT, [Transpose]),
        (lambda m, x: x[:, 0], [Take, Reshape]),
        (lambda m, x: x[..., -1], [Take, Reshape]),
        (lambda m, x: torch.cat(x.unbind(1)[::-1], 1), [Take, *[Reshape] * 4, Concat]),
        (lambda m, x: x.unbind(-1)[2], [Take, Reshape]),
        (lambda m, x: F.pixel_shuffle(x, 2), [PixelShuffle]),
        (lambda m, x: F.pixel_unshuffle(x, 2), [PixelShuffle]),
        (lambda m, x: F.channel_shuffle(torch.cat([x, -x, x], 1), 3), [Affine, Concat, Take]),
        (lambda m, x: torch.cat(x.chunk(3, 1)[::-1], 1), [Take, Concat]),
        (lambda m, x: torch.cat(x.split([3, 1], 1)[::-1], 1), [Take, Concat]),
        (lambda m, x: x[:, 1:-1], [Take]),
        (lambda m, x: x[:, [2, 0, -1]], [Take]),
        (lambda m, x: x[:, torch.tensor([True, False, True, True])], [Opaque]),
        (lambda m, x: x[[1, 0], [2, 0]], [Opaque]),
        (lambda m, x: x.index_select(1, torch.tensor([3, 0])), [Take]),
        (lambda m, x: x.flip(1), [Take]),
        (lambda m, x: x.roll(3, 1), [Take]),
        (lambda m, x: x.roll(-1), [Opaque]),
        (lambda m, x: x.repeat(1, 3, 1, 1), [Take]),
        (lambda m, x: x.repeat(1, 2, 1, 2), [Take, Take]),
        (lambda m, x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1), [Mean, Take]),
        (lambda m, x: x.mean((2, 3), keepdim=True).expand_as(x), [Mean, Take, Take]),
        (lambda m, x: x.mean((0, 2), keepdim=True).expand_as(x), [Mean, Take, Take]),
        (lambda m, x: x.expand(3, -1, -1, -1, -1), [Reshape, Take]),
        (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], [Pool, Identity]),
    ],
)
def test_ops(run: Callable[..., Any], expected: list[type]) -> None:
    found = ops(read(run))
    if expected == [Opaque, Identity]:  # max_pool2d stays one operator or gives its indices too
        assert found in (expected, [Pool])
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("run", "axis", "scale", "shift"),
    [
        (lambda m, x: x * constant["four"].view(4, 1, 1), 1, constant["four"], 0),
        (lambda m, x: constant["four"].view(1, 4, 1, 1) * x, 1, constant["four"], 0),
        (lambda m, x: x * constant["four"].view(4, 1), 2, constant["four"], 0),
        (lambda m, x: x * constant["six"], 3, constant["six"], 0),
        (lambda m, x: x / constant["six"], 3, 1 / constant["six"], 0),
        (lambda m, x: x - constant["four"].view(4, 1, 1), 1, 1, -constant["four"]),
        (lambda m, x: torch.add(x, constant["six"], alpha=3), 3, 1, 3 * constant["six"]),
        (lambda m, x: torch.sub(x, constant["six"], alpha=3), 3, 1, -3 * constant["six"]),
        (lambda m, x: x * 3, None, 3, 0),
        (lambda m, x: 3 + x, None, 1, 3),
        (lambda m, x: x * torch.tensor([[2.5]]), None, 2.5, 0),
        (lambda m, x: x - torch.tensor(2.5), None, 1, -2.5),
        (lambda m, x: 1 - x, None, -1, 1),
        (lambda m, x: constant["six"] - x, 3, -1, constant["six"]),
        (lambda m, x: torch.rsub(x, constant["six"], alpha=3), 3, -3, constant["six"]),
        (lambda m, x: torch.add(constant["six"], x, alpha=2), 3, 2, constant["six"]),
        (lambda m, x: torch.sub(constant["six"], x, alpha=2), 3, -2, constant["six"]),
        (lambda m, x: x + torch.tensor(3), None, 1, 3),
        (lambda m, x: x.neg(), None, -1, 0),
    ],
)
def test_constants_are_aligned_from_the_right(
    run: Callable[..., Any], axis: int | None, scale: Any, shift: Any
) -> None:
    (node,) = read(run)
    assert isinstance(node.op, Affine)
    assert node.op.affine.axis == axis
    ones = np.ones(node.op.affine.size)
    np.testing.assert_allclose(node.op.affine.scale, ones * np.asarray(scale), rtol=1e-6)
    np.testing.assert_allclose(node.op.affine.shift, ones * np.asarray(shift), rtol=1e-6)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: torch.add(constant["six"], x, alpha=0),
        lambda m, x: x + torch.tensor(True),
        lambda m, x: x / 0.0,
        lambda m, x: torch.div(x, 2, rounding_mode="floor"),
        lambda m, x: x * torch.linspace(1, 2, 24).view(4, 6),
        lambda m, x: x * torch.ones(3, 1, 1, 1, 1),
        lambda m, x: x[:, :1] * constant["four"].view(4, 1, 1),
        lambda m, x: x * constant["six"].double(),
        lambda m, x: x * torch.tensor(1j),
        lambda m, x: torch.add(torch.ones(4, 6), x[0, 0], alpha=2),
    ],
)
def test_what_only_looks_like_an_affine(run: Callable[..., Any]) -> None:
    assert Affine not in ops(read(run))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), dilation=(1, 2), groups=2),
        nn.Conv2d(4, 6, (2, 3), padding="same"),
        nn.Conv2d(4, 6, 3, padding="valid", bias=False),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    ],
)
def test_convolutions(layer: nn.Module) -> None:
    nodes = read(lambda m, x: m.c(x), c=layer)
    assert Conv in ops(nodes)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_is_an_operator_of_its_own(mode: str) -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode)
    (conv,) = (n.op for n in read(lambda m, x: m.c(x), c=layer) if isinstance(n.op, Conv))
    assert conv.pads == ((0, 0), (0, 0))


def test_a_linear_layer_on_any_rank() -> None:
    assert ops(read(lambda m, x: m.l(x), l=nn.Linear(6, 3)))[-1] is Linear


def test_types_that_nothing_can_be_folded_into() -> None:
    module = Function(lambda m, x: F.conv2d(x.to(torch.complex64), m.w).abs())
    module.w = nn.Parameter(torch.randn(6, 4, 3, 3, dtype=torch.complex64))
    graph = ProgramReader(ModuleModel(module).capture({"x": X}).functional).graph()
    assert Conv not in ops(graph.nodes)


@pytest.mark.parametrize("slopes", [1, 4])
def test_prelu(slopes: int) -> None:
    layer = nn.PReLU(slopes)
    nn.init.uniform_(layer.weight)
    assert ops(read(lambda m, x: m.p(x), p=layer)) == [Activation]


def test_unbatched_images() -> None:
    nodes = read(lambda m, x: m.c(x), noise(4, 5, 6), c=nn.Conv2d(4, 6, 3))
    assert Conv in ops(nodes)


def test_pads_are_given_from_the_last_axis_on() -> None:
    facts = Facts({"x": (2, 3, 7, 8), "y": (2, 3, 12, 11)}, {})
    arguments = {"self": facts.tensor("x"), "pad": [1, 2, 0, 5], "mode": "reflect", "value": None}
    op = meaning(Call("pad", "pad", arguments, ("y",), facts))
    assert isinstance(op, Pad)
    assert (op.pads, op.mode) == (((0, 0), (0, 0), (0, 5), (1, 2)), "reflect")


def test_a_split_gives_every_part_its_own_indices() -> None:
    facts = Facts({"x": (2, 5, 7)}, {})
    arguments = {"self": facts.tensor("x"), "split_sizes": [2, 3], "dim": 1}
    op = meaning(Call("split", "split_with_sizes", arguments, ("a", "b"), facts))
    assert isinstance(op, Take)
    assert (op.axis, op.parts) == (1, ((0, 1), (2, 3, 4)))


def test_tensor_split_makes_the_first_parts_longer() -> None:
    facts = Facts({"x": (2, 7)}, {})
    arguments = {"self": facts.tensor("x"), "sections": 3, "dim": 1}
    op = meaning(Call("split", "tensor_split", arguments, ("a", "b", "c"), facts))
    assert isinstance(op, Take)
    assert op.parts == ((0, 1, 2), (3, 4), (5, 6))
    arguments = {"self": facts.tensor("x"), "indices": [2, -1], "dim": 1}
    op = meaning(Call("split", "tensor_split", arguments, ("a", "b", "c"), facts))
    assert isinstance(op, Take)
    assert op.parts == ((0, 1), (2, 3, 4, 5), (6,))


@pytest.mark.parametrize("op", ["add", "sub", "mul", "matmul"])
@pytest.mark.parametrize(
    "types", [("float16", "float32"), ("int64", "int64"), ("int64", "float32")]
)
def test_types_that_differ_or_are_no_floats(op: str, types: tuple[str, str]) -> None:
    shapes = {"x": (2, 3), "y": (3, 3), "z": (2, 3)}
    facts = Facts(shapes, {"x": types[0], "y": types[1], "z": "float32"})
    arguments = {"self": facts.tensor("x"), "other": facts.tensor("y")}
    assert isinstance(meaning(Call("z", op, arguments, ("z",), facts)), Opaque)


def test_what_is_taken_out_of_a_node_is_named_after_it() -> None:
    nodes = read(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1))
    assert [node.inputs for node in nodes] == [("x",), ("chunk[1]", "chunk[0]")]
    nodes = read(lambda m, x: F.max_pool2d(x, 2, return_indices=True))
    assert nodes[-1].name == "max_pool2d_with_indices[1]"
