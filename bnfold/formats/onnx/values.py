"""What is known of the values of an ONNX model before it runs: shapes, types, and constants.

A value is constant if it is an initializer that nobody can override (from IR version 4 on, one
that is also a graph input can be overridden), or computed from constants alone by an operator of
the table in `constants`. Exporters write weights that way: the zero bias of a bias-free convolution
as Shape > Expand > CastLike, a linear layer's weight as a Transpose. Constants are evaluated only
when asked for, in their own types.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from bnfold.algebra.graph import Shape
from bnfold.formats.onnx.constants import FUNCTIONS, SINCE, Native, attribute, cast, constant_of
from bnfold.formats.onnx.shapes import Known, inferred, is_vague

SAME_FORM = {
    *("Sigmoid", "Relu", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Identity"),
    *("HardSigmoid", "HardSwish", "Softplus", "Elu", "Selu", "LeakyRelu", "Gelu", "Mish"),
}
"""Operators whose one result has the shape and type of their first input."""


class Values:
    """Shapes, types and constants by value, filled in node by node in topological order."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._inferred: Mapping[ir.Value, Known] | None = None
        self._constant: set[ir.Value] = set()
        self._arrays: dict[ir.Value, Native | None] = {}
        self._evidence: dict[ir.Value, Known | None] = {}
        self.opset = model.opset_imports.get("", 1)
        self.sums_to_one: dict[ir.Value, int] = {}
        """Axes along which values sum to one: what a softmax made, and what carries it."""
        for graph in model.graphs():
            fixed = graph is model.graph and model.ir_version < 4
            given = set() if fixed else set(graph.inputs)
            self._constant.update(v for v in graph.initializers.values() if v not in given)

    def shape(self, value: ir.Value) -> Shape | None:
        """The sizes: numbers, names of symbols, or None; None if the rank is not known."""
        shape = sizes(self._known(value).shape)
        if shape is None and value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        return shape

    def dtype(self, value: ir.Value) -> str | None:
        return dtype_name(self._known(value).dtype)

    def _known(self, value: ir.Value) -> ir.Value | Known:
        """What the model says of a value, else what its operator does, else what onnx infers."""
        if not is_vague(value):
            return value
        if value not in self._evidence:  # asked in topological order: no chain of them is long
            self._evidence[value] = self._evident(value)
        evident = self._evidence[value]
        if evident is not None:
            return evident
        if self._inferred is None:
            self._inferred = inferred(self.model)
        return self._inferred.get(value, value)

    def _evident(self, value: ir.Value) -> Known | None:
        """Shape and type of what a plain operator makes, for which inference need not run."""
        node = value.producer()
        if node is None or not self.is_standard(node) or not node.inputs:
            return None
        source = node.inputs[0]
        if source is None or not (node.op_type in SAME_FORM or node.op_type == "Reshape"):
            return None
        known = self._known(source)
        if node.op_type in SAME_FORM:
            return Known(known.shape, known.type)
        target = node.inputs[1] if len(node.inputs) > 1 else None
        wanted = None if target is None else self.array(target)
        if wanted is None or (wanted < 1).any():
            return None
        return Known(ir.Shape(wanted.tolist()), known.type)

    def visit(self, node: ir.Node) -> bool:
        """Note whether `node` makes constants; its inputs were visited before."""
        constant = self.is_standard(node) and self._is_constant(node)
        if constant:
            self._constant.update(node.outputs)
        return constant

    def is_standard(self, node: ir.Node) -> bool:
        """Whether the node is one of the ONNX operators, and no function of the same name."""
        return node.domain == "" and node.op_identifier() not in self.model.functions

    def is_constant(self, value: ir.Value) -> bool:
        return value in self._constant

    def array(self, value: ir.Value) -> Native | None:
        """The constant in its own type; None if it is none, or would be too large."""
        if value not in self._constant:
            return None
        if value.is_initializer():
            return None if value.const_value is None else value.const_value.numpy()
        waiting = [value]
        while waiting:  # a chain of constants can be longer than a stack is deep
            last = waiting[-1]
            node = last.producer()
            assert node is not None
            read = () if node.op_type in ("Shape", "Size") else node.inputs
            before = [v for v in read if v is not None and self._is_unknown(v)]
            if last not in self._arrays and not before:
                self._arrays[last] = self._evaluated(node)
            if last in self._arrays:
                waiting.pop()
            waiting += before
        return self._arrays[value]

    def _is_unknown(self, value: ir.Value) -> bool:
        """Whether the value is a constant that has still to be computed."""
        known = value in self._arrays or value.is_initializer()
        return value in self._constant and not known

    def constant_kind(self, value: ir.Value) -> tuple[tuple[int, ...], str] | None:
        """Shape and type of the constant; None if it is none. An initializer is not loaded."""
        tensor = value.const_value
        if value in self._constant and value.is_initializer() and tensor is not None:
            return tuple(tensor.shape.numpy()), dtype_name(tensor.dtype) or ""
        found = self.array(value)
        return None if found is None else (found.shape, found.dtype.name)

    def _is_constant(self, node: ir.Node) -> bool:
        inputs = [value for value in node.inputs if value is not None]
        match node.op_type:
            case "Constant":
                return constant_of(node) is not None
            case "Shape" | "Size":
                return self._dims(node) is not None
            case "CastLike":
                return inputs[0] in self._constant and self.dtype(inputs[1]) is not None
            case op_type if op_type in FUNCTIONS and self.opset >= SINCE.get(op_type, 7):
                others = node.outputs[1:]
                alone = not any(value.uses() or value.is_graph_output() for value in others)
                return alone and all(v in self._constant for v in inputs)
        return False

    def _dims(self, node: ir.Node) -> Native | None:
        """What a Shape or Size node gives, if the sizes it asks for are known."""
        (value,) = node.inputs
        shape = None if value is None else self.shape(value)
        if shape is None:
            return None
        if node.op_type == "Shape":
            shape = shape[slice(attribute(node, "start", 0), attribute(node, "end", None))]
        known = [size for size in shape if isinstance(size, int)]
        if len(known) < len(shape):
            return None
        return np.array(known if node.op_type == "Shape" else math.prod(known), np.int64)

    def _evaluated(self, node: ir.Node) -> Native | None:
        if node.op_type == "Constant":
            return constant_of(node)
        if node.op_type in ("Shape", "Size"):
            return self._dims(node)
        if node.op_type == "CastLike":
            source, like = node.inputs
            assert source is not None
            assert like is not None
            found = self.array(source)
            return None if found is None else cast(found, self._known(like).dtype)
        arguments = [None if value is None else self.array(value) for value in node.inputs]
        missing = any(
            value is not None and argument is None
            for value, argument in zip(node.inputs, arguments, strict=True)
        )
        if missing or not arguments:
            return None
        try:
            with np.errstate(all="ignore"):
                return np.asarray(FUNCTIONS[node.op_type](node, *arguments))
        except (ValueError, IndexError, TypeError, MemoryError):
            return None


def dtype_name(dtype: ir.DataType | None) -> str | None:
    """The numpy name of an element type, "str" for strings."""
    if dtype is None or dtype == ir.DataType.UNDEFINED:
        return None
    return "str" if dtype == ir.DataType.STRING else str(dtype.numpy().name)


def sizes(shape: ir.Shape | None) -> Shape | None:
    if shape is None:
        return None
    return tuple(_size(size) for size in shape)


def _size(size: int | ir.SymbolicDim) -> int | str | None:
    """A number, a symbol, or None; some exporters write a size that is not known as -1."""
    if isinstance(size, int):
        return size if size >= 0 else None
    return size.value


def given_of(graph: ir.Graph) -> list[ir.Value]:
    """The inputs and initializers of a graph."""
    return [*graph.inputs, *graph.initializers.values()]


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values of a graph itself, without those of the bodies in it."""
    yield from given_of(graph)
    for node in graph:
        yield from node.outputs
