"""One ONNX node with what is known of its inputs: where the arguments of its operator are found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from bnfold.algebra.graph import Pads
from bnfold.algebra.refusal import Reason
from bnfold.errors import ModelError
from bnfold.formats.meaning.operands import (
    Constant,
    NotCoveredError,
    Operand,
    Tensor,
    computed,
    constant,
    not_linear,
)
from bnfold.formats.onnx.constants import Native, attribute
from bnfold.formats.onnx.values import Values

ON_THE_WAY = ("QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Cast", "Identity")
"""What stands between a quantised constant and the layer whose weight it is."""


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """A native node with what is known of its inputs; `name` is its neutral name."""

    node: ir.Node
    name: str
    opset: int
    values: Values
    given: dict[Operand, ir.Value] = field(default_factory=dict)
    """What was asked for of its inputs, and the values that these are."""

    def attr(self, name: str, default: Any = None) -> Any:
        return attribute(self.node, name, default)

    def has(self, index: int) -> bool:
        return self.value(index) is not None

    def value(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def maker(self, index: int, op_type: str) -> Call | None:
        """The ONNX operator of that type that makes an input."""
        value = self.value(index)
        node = None if value is None else value.producer()
        if node is None or node.op_type != op_type or not self.values.is_standard(node):
            return None
        return replace(self, node=node)

    def operand(self, index: int) -> Operand:
        """An input that the operator must have; a constant is not loaded yet."""
        value = self.value(index)
        if value is None:
            raise not_linear(f"it has no input {index}")
        return self._noted(self.values.operand(value), value)

    def _noted(self, operand: Operand, value: ir.Value) -> Operand:
        self.given[operand] = value
        return operand

    def optional(self, index: int) -> Operand | None:
        return self.operand(index) if self.has(index) else None

    @property
    def operands(self) -> list[Operand]:
        return [self.operand(index) for index in range(len(self.node.inputs))]

    @property
    def x(self) -> Tensor:
        """The first input, which is computed, or a constant that is read like one."""
        found = self.operand(0)
        if isinstance(found, Tensor):
            return found
        data = Tensor(found.name, found.shape, found.dtype)
        self.given[data] = self.given[found]
        return data

    def alike(self) -> tuple[list[Operand], Tensor]:
        """The operands and the result of an operator of one type, which any of them tells."""
        operands, made = self.operands, self.made
        dtype = next((each.dtype for each in (made, *operands) if each.dtype), "")
        typed = [
            o if o.dtype else self._noted(replace(o, dtype=dtype), self.given[o]) for o in operands
        ]
        return typed, replace(made, dtype=dtype)

    @property
    def made(self) -> Tensor:
        return self.values.tensor(self.node.outputs[0])

    def array(self, index: int) -> Native | None:
        value = self.value(index)
        return None if value is None else self.values.array(value)

    def integers(self, index: int) -> list[int] | None:
        """A constant input of whole numbers; None if there is no such input."""
        operand = self.optional(index)
        return None if operand is None else constant(operand, "input").integers()

    def number(self, index: int, default: float) -> float:
        operand = self.optional(index)
        if operand is None:
            return default
        return float(constant(operand, "input").numbers().reshape(-1)[0])

    def parameter(self, index: int, role: str) -> Constant:
        """The weight or bias of a layer, which can change unless it is computed or quantised."""
        operand = self.operand(index)
        if is_quantised(self, index):
            why = f"its {role} {operand.name} is quantised, and would have to be quantised anew"
            raise NotCoveredError(Reason.PRECISION, why)
        if not isinstance(operand, Constant):
            raise computed(f"its {role} {operand.name}")
        return operand

    def added(self, index: int) -> Constant | None:
        """The bias of a layer, if it has one."""
        return self.parameter(index, "bias") if self.has(index) else None

    def uses(self, output: int) -> bool:
        """Whether anything reads the output of that index, or it leaves its graph."""
        if output >= len(self.node.outputs):
            return False
        value = self.node.outputs[output]
        return bool(value.uses()) or value.is_graph_output()


def is_quantised(call: Call, index: int) -> bool:
    """Whether an input is a constant but for being quantised: stored so, or on the way."""
    value = call.value(index)
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            return is_fixed(call, node.inputs[0])
        if node.op_type not in ON_THE_WAY:
            return False
        value = node.inputs[0]
    return False


def is_fixed(call: Call, value: ir.Value | None) -> bool:
    """Whether a value is a constant, or quantised from one."""
    while value is not None and not call.values.is_constant(value):
        node = value.producer()
        if node is None or node.op_type not in ON_THE_WAY:
            return False
        value = node.inputs[0]
    return value is not None


def explicit_pads(call: Call, rank: int) -> Pads:
    flat = call.attr("pads", (0,) * (2 * rank))
    if call.attr("auto_pad", "NOTSET") == "VALID":
        flat = (0,) * (2 * rank)
    if len(flat) != 2 * rank:
        why = f"{call.name} ({call.node.op_type}) has {len(flat)} pads for {rank} axes"
        raise ModelError(f"the model contradicts itself: {why}", "export it again")
    return tuple(zip(flat[:rank], flat[rank:], strict=True))
