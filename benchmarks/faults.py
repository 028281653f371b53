"""Mistakes that folding can make, made on purpose in ONNX models.

Each takes a model with BatchNormalization nodes and gives one that computes what a tool with that
mistake would write, or None where the model gives it no occasion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.formats.onnx.model import OnnxModel

Array = NDArray[Any]
Random = np.random.Generator

DEFAULT_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Norm:
    """A BatchNormalization whose numbers are constants."""

    node: ir.Node

    @property
    def epsilon(self) -> float:
        found = self.node.attributes.get("epsilon")
        return DEFAULT_EPSILON if found is None else found.as_float()

    def numbers(self, index: int) -> Array:
        constant = ir.convenience.get_const_tensor(self.node.inputs[index])
        assert constant is not None
        return constant.numpy().copy()

    def store(self, index: int, values: Array) -> None:
        put(self.node, index, values)


def put(node: ir.Node, index: int, values: Array) -> None:
    """Give the node a constant of its own."""
    assert node.graph is not None
    new = ir.Value(name=f"{node.name}.{index}.changed", const_value=ir.tensor(values))
    new.dtype, new.shape = new.const_value.dtype, ir.Shape(values.shape)
    node.graph.register_initializer(new)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, new)


def norms(model: ir.Model) -> list[Norm]:
    return [
        Norm(node)
        for node in model.graph.all_nodes()
        if node.op_type == "BatchNormalization"
        and all(ir.convenience.get_const_tensor(value) is not None for value in node.inputs[1:5])
    ]


def epsilon(norm: Norm, random: Random) -> None:
    """1e-3 for 1e-5."""
    norm.node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 100 * norm.epsilon)


def lost_bias(norm: Norm, random: Random) -> None:
    """One channel without its beta."""
    beta = norm.numbers(2)
    beta[random.integers(len(beta))] = 0
    norm.store(2, beta)


def slight_bias(norm: Norm, random: Random) -> None:
    """One channel's beta off by a thousandth."""
    beta = norm.numbers(2)
    beta[random.integers(len(beta))] += 1e-3
    norm.store(2, beta)


def swapped(norm: Norm, random: Random) -> None:
    """Two channels with each other's gamma."""
    gamma = norm.numbers(1)
    first = int(random.integers(len(gamma) - 1))
    gamma[[first, first + 1]] = gamma[[first + 1, first]]
    norm.store(1, gamma)


def dropped_gamma(norm: Norm, random: Random) -> None:
    """Folded as if there were no gamma."""
    norm.store(1, np.ones_like(norm.numbers(1)))


IN_A_NORM: dict[str, Callable[[Norm, Random], None]] = {
    "epsilon": epsilon,
    "beta lost in a channel": lost_bias,
    "beta off by 0.001 in a channel": slight_bias,
    "two channels swapped": swapped,
    "gamma dropped": dropped_gamma,
}


def damaged(model: OnnxModel, kind: str, random: Random) -> OnnxModel | None:
    """`model` with one BatchNorm wrong, as if it had been folded so."""
    copy = model.ir.clone()
    found = norms(copy)
    if not found:
        return None
    IN_A_NORM[kind](found[int(random.integers(len(found)))], random)
    return OnnxModel(copy)


def in_float32(model: OnnxModel) -> OnnxModel | None:
    """Every BatchNorm after a convolution, folded with float32 arithmetic instead of float64."""
    copy = model.ir.clone()
    pairs = [(conv, norm) for norm in norms(copy) if (conv := _sole_conv(norm))]
    for conv, norm in pairs:
        gamma, beta, mean, var = (norm.numbers(i) for i in range(1, 5))
        scale = gamma / np.sqrt(var + np.float32(norm.epsilon))
        weight = ir.convenience.get_const_tensor(conv.inputs[1])
        assert weight is not None
        bias = ir.convenience.get_const_tensor(conv.inputs[2]) if len(conv.inputs) > 2 else None
        before = np.zeros_like(mean) if bias is None else bias.numpy()
        put(conv, 1, weight.numpy() * scale.reshape(-1, *[1] * (weight.numpy().ndim - 1)))
        put(conv, 2, (before - mean) * scale + beta)
        norm.node.outputs[0].replace_all_uses_with(conv.outputs[0], replace_graph_outputs=True)
        assert norm.node.graph is not None
        norm.node.graph.remove(norm.node, safe=True)
    return OnnxModel(copy) if pairs else None


def _sole_conv(norm: Norm) -> ir.Node | None:
    """The convolution before the BatchNorm, if nothing else reads it."""
    value = norm.node.inputs[0]
    made = None if value is None else value.producer()
    if made is None or made.op_type != "Conv" or len(made.outputs[0].uses()) != 1:
        return None
    constants = (ir.convenience.get_const_tensor(v) for v in made.inputs[1:])
    return made if all(constant is not None for constant in constants) else None


def padded(model: OnnxModel, random: Random) -> tuple[OnnxModel, OnnxModel] | None:
    """The model with its input normalised before its first, padded convolution; and the same with
    the shift folded into the bias as if there were no padding."""
    original, wrong = model.ir.clone(), model.ir.clone()
    channels = scale = shift = None
    for copy in (original, wrong):
        conv = next(_padded_convs(copy), None)
        if conv is None:
            return None
        weight = ir.convenience.get_const_tensor(conv.inputs[1])
        assert weight is not None
        if channels is None:
            channels = weight.numpy().shape[1]
            scale = random.uniform(0.5, 1.5, channels).astype(np.float32)
            shift = random.normal(0, 0.5, channels).astype(np.float32)
        assert scale is not None
        assert shift is not None
        if copy is original:
            _normalise(conv, scale, shift)
        else:
            _fold_anyway(conv, weight.numpy(), scale, shift)
    return OnnxModel(original), OnnxModel(wrong)


def _padded_convs(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph:
        pads = node.attributes.get("pads")
        groups = node.attributes.get("group")
        plain = groups is None or groups.as_int() == 1
        first = node.inputs[0] if node.inputs else None
        reads = first is not None and first.is_graph_input()
        if node.op_type != "Conv" or not (reads and plain and pads and any(pads.as_ints())):
            continue
        if ir.convenience.get_const_tensor(node.inputs[1]) is not None:
            yield node


def _normalise(conv: ir.Node, scale: Array, shift: Array) -> None:
    """x -> scale * x + shift before the convolution."""
    assert conv.graph is not None
    value = conv.inputs[0]
    for op_type, numbers in (("Mul", scale), ("Add", shift)):
        node = ir.Node("", op_type, [value, None], name=f"normalise.{op_type}")
        conv.graph.insert_before(conv, node)
        put(node, 1, numbers.reshape(1, -1, *[1] * (_rank(conv) - 2)))
        value = node.outputs[0]
        value.name = f"normalised.{op_type}"
    conv.replace_input_with(0, value)


def _fold_anyway(conv: ir.Node, weight: Array, scale: Array, shift: Array) -> None:
    bias = ir.convenience.get_const_tensor(conv.inputs[2]) if len(conv.inputs) > 2 else None
    spatial = tuple(range(2, weight.ndim))
    extra = np.einsum("oi,i->o", weight.sum(axis=spatial, dtype=np.float64), shift)
    before = 0 if bias is None else bias.numpy()
    put(conv, 1, weight * scale.reshape(1, -1, *[1] * (weight.ndim - 2)))
    put(conv, 2, (before + extra).astype(np.float32))


def _rank(conv: ir.Node) -> int:
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    return len(weight.shape)
