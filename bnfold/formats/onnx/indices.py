"""Which inputs of an ONNX model pick rows of a table, and how many rows it has."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.formats.onnx.values import sizes

_PASSING = frozenset({"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose"})
_PASSING |= {"Unsqueeze"}
"""What an index goes through as it is, as the first input."""


def index_limits(model: ir.Model) -> dict[str, int]:
    """Input -> the rows of the smallest table that a Gather takes by its values."""
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        found = _rows(value)
        if value.name and value.dtype is not None and value.dtype.is_integer() and found:
            limits[value.name] = min(found)
    return limits


def _rows(value: ir.Value) -> list[int]:
    rows: list[int] = []
    waiting, seen = [value], {value}
    while waiting:
        for node, position in waiting.pop().uses():
            if node.op_type in _PASSING and position == 0 and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                waiting.append(node.outputs[0])
            elif node.op_type == "Gather" and position == 1 and node.inputs[0] is not None:
                axis = node.attributes.get_int("axis", 0)
                shape = sizes(node.inputs[0].shape) or ()
                if -len(shape) <= axis < len(shape) and isinstance(size := shape[axis], int):
                    rows.append(size)
    return rows
