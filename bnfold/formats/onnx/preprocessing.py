"""An ONNX model whose input is preprocessed by nodes of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.naming import claim
from bnfold.preprocessing import Contract


def preprocessed(model: ir.Model, contract: Contract) -> ir.Model:
    """A copy that takes what `contract.given` says, under the old input's name."""
    copy = model.clone()
    _Writer(copy, contract).write()
    return copy


LISTED_BEFORE = 4
"""The first version of the file in which weights need not be inputs."""


class _Writer:
    def __init__(self, model: ir.Model, contract: Contract) -> None:
        self._graph, self._contract = model.graph, contract
        self._listed = model.ir_version < LISTED_BEFORE
        graph = model.graph
        self._taken = {value.name for node in graph.all_nodes() for value in node.outputs}
        self._taken |= {value.name for value in graph.inputs} | set(graph.initializers)
        self._nodes: list[ir.Node] = []

    def write(self) -> None:
        contract = self._contract
        position = [value.name for value in self._graph.inputs].index(contract.spec.name)
        old = self._graph.inputs[position]
        given = contract.given
        x = new = ir.Value(
            name=old.name,
            type=ir.TensorType(ir.DataType.UINT8) if contract.uint8 else old.type,
            shape=ir.Shape(given.shape or ()),
        )
        if contract.uint8:
            assert old.dtype is not None
            x = self._node("Cast", x, to=int(old.dtype))
        if contract.move:
            x = self._node("Transpose", x, perm=list(contract.moved))
        if contract.shift is not None:
            x = self._node("Add", x, self._constant("mean", contract.constant(contract.shift)))
        if contract.reverse and contract.axis == 1:
            x = self._node("Conv", x, self._constant("colours", contract.permutation()))
        else:
            if contract.factor is not None:
                scale = self._constant("scale", contract.constant(contract.factor))
                x = self._node("Mul", x, scale)
            if contract.reverse:
                order = self._constant("colours", np.array([2, 1, 0]))
                x = self._node("Gather", x, order, axis=contract.axis)
        old.name = claim(f"{old.name}.preprocessed", self._taken, "_")
        readers = [(usage.node, usage.idx) for usage in old.uses()]
        for node, index in readers:
            node.replace_input_with(index, x)
        self._graph.inputs[position] = new
        self._graph.outputs[:] = [x if value is old else value for value in self._graph.outputs]
        first = next(iter(self._graph), None)
        if first is None:
            self._graph.extend(self._nodes)
        else:
            self._graph.insert_before(first, self._nodes)

    def _node(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        name = self._contract.spec.name
        node = ir.node(kind, list(inputs), attributes, name=f"{name}.{kind.lower()}")
        node.outputs[0].name = claim(f"{name}.{kind.lower()}", self._taken, "_")
        self._nodes.append(node)
        return node.outputs[0]

    def _constant(self, what: str, array: NDArray[Any]) -> ir.Value:
        name = claim(f"{self._contract.spec.name}.{what}", self._taken, "_")
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        if self._listed:
            self._graph.inputs.append(value)
        return value
