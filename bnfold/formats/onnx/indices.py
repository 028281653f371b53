"""What an ONNX model does with its inputs of integers: rows that they pick, and comparisons."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from bnfold.formats.onnx.values import sizes
from bnfold.runtimes import Integers

_PASSING = frozenset({"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose"})
_PASSING |= {"Unsqueeze"}
"""What an index goes through as it is, as the first input."""

_COMPARING = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min"})
_COMPARING |= {"Clip", "Mod"}


def integers_taken(model: ir.Model) -> dict[str, Integers]:
    """Input -> the rows of the smallest table that a Gather takes by its values, and the constants
    that it is compared with."""
    taken: dict[str, Integers] = {}
    for value in model.graph.inputs:
        if not value.name or value.dtype is None or not value.dtype.is_integer():
            continue
        rows, marks = list(_rows(value)), sorted(set(_marks(value)))
        if rows or marks:
            taken[value.name] = Integers(min(rows, default=None), tuple(marks))
    return taken


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """What reads a value, as it is but for its type and its shape."""
    waiting, seen = [value], {value}
    while waiting:
        for node, position in waiting.pop().uses():
            if node.op_type in _PASSING and position == 0:
                if node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    waiting.append(node.outputs[0])
            else:
                yield node, position


def _rows(value: ir.Value) -> Iterator[int]:
    for node, position in _uses(value):
        if node.op_type == "Gather" and position == 1 and node.inputs[0] is not None:
            axis = node.attributes.get_int("axis", 0)
            shape = sizes(node.inputs[0].shape) or ()
            if -len(shape) <= axis < len(shape) and isinstance(size := shape[axis], int):
                yield size


def _marks(value: ir.Value) -> Iterator[int]:
    for node, position in _uses(value):
        if node.op_type in _COMPARING:
            for other in (*node.inputs[:position], *node.inputs[position + 1 :]):
                tensor = None if other is None else ir.convenience.get_const_tensor(other)
                if tensor is not None and tensor.size == 1:
                    yield int(tensor.numpy().reshape(-1)[0])
