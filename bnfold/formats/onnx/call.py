"""One ONNX node with what is known of its inputs: what the meaning of operators is told from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import Op, Opaque, Pads, Param, Shape
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rounding import EPSILON
from bnfold.errors import ModelError
from bnfold.formats.onnx.constants import Native, attribute
from bnfold.formats.onnx.values import Values

Meaning = tuple[Op, tuple[int, ...]]
"""A neutral op and the indices of the native inputs that it reads."""


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """A native node with what is known of its inputs; `name` is its neutral name."""

    node: ir.Node
    name: str
    opset: int
    values: Values

    def attr(self, name: str, default: Any = None) -> Any:
        return attribute(self.node, name, default)

    def value(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def producer(self, index: int, op_type: str) -> ir.Node | None:
        """The ONNX operator of that type that makes an input."""
        value = self.value(index)
        node = None if value is None else value.producer()
        fits = node is not None and node.op_type == op_type and self.values.is_standard(node)
        return node if fits else None

    def shape(self, index: int = 0) -> Shape | None:
        value = self.value(index)
        return None if value is None else self.values.shape(value)

    @property
    def out_shape(self) -> Shape | None:
        return self.values.shape(self.node.outputs[0])

    def is_constant(self, index: int) -> bool:
        value = self.value(index)
        return value is not None and self.values.is_constant(value)

    def constant_shape(self, index: int) -> tuple[int, ...] | None:
        """The shape of a constant input; None if it is none."""
        value = self.value(index)
        kind = None if value is None else self.values.constant_kind(value)
        return None if kind is None else kind[0]

    def array(self, index: int) -> Native | None:
        value = self.value(index)
        return None if value is None else self.values.array(value)

    def numbers(self, index: int) -> Array | None:
        """A constant of a floating type, as float64."""
        found = self.array(index)
        if found is None or found.dtype.name not in EPSILON:
            return None
        return found.astype(np.float64)

    def param(
        self,
        index: int,
        change: Callable[[Array], Array] = lambda a: a,
        shape: tuple[int, ...] | None = None,
    ) -> Param | None:
        """A constant input of a floating type as a parameter, not loaded yet.

        `change` brings it into its layout, in which it has `shape`.
        """
        value = self.value(index)
        kind = None if value is None else self.values.constant_kind(value)
        if value is None or kind is None or kind[1] not in EPSILON:
            return None
        values = self.values

        def load() -> Array:
            native = values.array(value)
            assert native is not None
            return change(native.astype(np.float64))

        return Param(value.name or self.name, shape or kind[0], kind[1], load)

    def uses(self, output: int) -> bool:
        """Whether anything reads the output of that index, or it leaves its graph."""
        if output >= len(self.node.outputs):
            return False
        value = self.node.outputs[output]
        return bool(value.uses()) or value.is_graph_output()


ON_THE_WAY = ("QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Cast", "Identity")
"""What stands between a quantised constant and the layer whose weight it is."""


def refused(call: Call, reason: Reason, why: str, *, batchnorm: bool = True) -> Meaning:
    refusal = Refusal(reason, f"{call.name} ({call.node.op_type}): {why}", call.name)
    return Opaque(refusal, batchnorm), tuple(range(len(call.node.inputs)))


def barred(call: Call, reason: Reason, why: str) -> Meaning:
    """Opaque, with the reason why no affine may come in or pass."""
    barrier = Refusal(reason, f"{call.name} ({call.node.op_type}): {why}", call.name)
    return Opaque(barrier=barrier), tuple(range(len(call.node.inputs)))


def barred_by_parameters(call: Call) -> Meaning | None:
    """What a layer is whose weight or bias cannot change: computed at run time, or quantised."""
    for index, role in ((1, "weight"), (2, "bias")):
        value = call.value(index)
        if value is None or call.is_constant(index):
            continue
        if is_quantised(call, index):
            why = f"its {role} {value.name} is quantised, and would have to be quantised anew"
            return barred(call, Reason.PRECISION, why)
        return barred(call, Reason.NOT_CONSTANT, f"its {role} {value.name} is not a constant")
    return None


def is_quantised(call: Call, index: int) -> bool:
    """Whether an input is a constant but for being quantised: stored so, or on the way."""
    value, dequantised = call.value(index), False
    while value is not None and not call.values.is_constant(value):
        node = value.producer()
        if node is None or node.op_type not in ON_THE_WAY:
            return False
        dequantised |= node.op_type == "DequantizeLinear"
        value = node.inputs[0]
    return dequantised


def explicit_pads(call: Call, rank: int) -> Pads:
    flat = call.attr("pads", (0,) * (2 * rank))
    if call.attr("auto_pad", "NOTSET") == "VALID":
        flat = (0,) * (2 * rank)
    if len(flat) != 2 * rank:
        why = f"{call.name} ({call.node.op_type}) has {len(flat)} pads for {rank} axes"
        raise ModelError(f"the model contradicts itself: {why}", "export it again")
    return tuple(zip(flat[:rank], flat[rank:], strict=True))


def window_pads(
    call: Call, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Pads:
    """The pads; those that depend on an unknown size are given as (1, 1), which no shift passes."""
    mode = call.attr("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return explicit_pads(call, len(kernel))
    shape = call.shape()
    sizes = (None,) * len(kernel) if shape is None else shape[-len(kernel) :]
    pads: list[tuple[int, int]] = []
    for size, k, step, d in zip(sizes, kernel, stride, dilation, strict=True):
        reach = d * (k - 1) + 1
        if step == 1 or reach == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max((-(-size // step) - 1) * step + reach - size, 0)
        else:
            pads.append((1, 1))
            continue
        less, more = total // 2, total - total // 2
        pads.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return tuple(pads)
