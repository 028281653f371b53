"""What is known of the values of an ONNX model before it runs: shapes, types, and constants.

A value is constant if it is an initializer that nobody can override (from IR version 4 on, one
that is also a graph input can be overridden), or computed from constants alone, by whatever
deterministic operator. Exporters write weights that way: the zero bias of a bias-free convolution
as Shape > Expand > CastLike, a linear layer's weight as a Transpose. Constants are evaluated only
when asked for, in their own types.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from bnfold.algebra.graph import Shape, product
from bnfold.formats.meaning.operands import Constant, Operand, Tensor
from bnfold.formats.onnx.constants import (
    Native,
    attribute,
    cast,
    constant_of,
    evaluated,
    is_deterministic,
)
from bnfold.formats.onnx.shapes import Known, inferred, is_vague

SAME_FORM = {
    *("Sigmoid", "Relu", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Identity"),
    *("BatchNormalization", "Clip", "PRelu", "Dropout", "Softmax"),
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
        """What is found of a value; the layers around it tell the rank where nothing else does."""
        found = self._found(value)
        told = self._told(value) if found.shape is None else None
        return found if told is None else Known(told, found.type)

    def _told(self, value: ir.Value) -> ir.Shape | None:
        """Rank and channels by the weight of the convolution that makes or reads the value."""
        node = value.producer()
        if node is not None and (weight := self._weight(node)) is not None:
            wide = node.op_type == "ConvTranspose"
            groups = node.attributes.get_int("group", 1)
            return _image(weight, weight[1] * groups if wide else weight[0])
        for reader, index in value.uses():
            if index == 0 and (weight := self._weight(reader)) is not None:
                wide = reader.op_type == "ConvTranspose"
                groups = reader.attributes.get_int("group", 1)
                return _image(weight, weight[0] if wide else weight[1] * groups)
        return None

    def _weight(self, node: ir.Node) -> tuple[int, ...] | None:
        """The shape of the constant weight of a convolution."""
        if node.op_type not in ("Conv", "ConvTranspose") or not self.is_standard(node):
            return None
        weight = node.inputs[1]
        maker = None if weight is None else weight.producer()
        if maker is not None and maker.op_type == "Constant":
            self.visit(maker)
        kind = None if weight is None else self.constant_kind(weight)
        return kind[0] if kind is not None and len(kind[0]) > 2 else None

    def _found(self, value: ir.Value) -> ir.Value | Known:
        """What the model says of a value, else what its operator does, else what onnx infers."""
        if not is_vague(value):
            return value
        for each in reversed(list(self._unsettled(value))):
            self._evidence[each] = self._evident(each)
        evident = self._evidence[value]
        if evident is not None:
            return evident
        if self._inferred is None:
            self._inferred = inferred(self.model)
        return self._inferred.get(value, value)

    def _unsettled(self, value: ir.Value) -> Iterator[ir.Value]:
        """The value and what its evidence hangs on: a chain can be longer than a stack is deep."""
        each: ir.Value | None = value
        while each is not None and is_vague(each) and each not in self._evidence:
            yield each
            each = self._source(each)

    def _source(self, value: ir.Value) -> ir.Value | None:
        """What a plain operator makes the value of, if that tells its shape or type."""
        node = value.producer()
        if node is None or not self.is_standard(node) or value is not node.outputs[0]:
            return None
        told = node.op_type in SAME_FORM or node.op_type == "Reshape"
        return node.inputs[0] if told and node.inputs else None

    def _evident(self, value: ir.Value) -> Known | None:
        """Shape and type of what a plain operator makes, for which inference need not run."""
        node, source = value.producer(), self._source(value)
        if node is None or source is None:
            return None
        known = self._known(source)
        if node.op_type in SAME_FORM:
            return Known(known.shape, known.type)
        target = node.inputs[1] if len(node.inputs) > 1 else None
        wanted = None if target is None else self.array(target)
        after = None if wanted is None else _resolved(wanted.tolist(), sizes(known.shape))
        return None if after is None else Known(ir.Shape(after), known.type)

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
        waiting = [value] if value not in self._arrays else []
        while waiting:  # a chain of constants can be longer than a stack is deep
            last = waiting[-1]
            node = last.producer()
            assert node is not None
            read = () if node.op_type in ("Shape", "Size") else node.inputs
            before = [v for v in read if v is not None and self._is_unknown(v)]
            if last not in self._arrays and not before:
                found = self._evaluated(node) or [None] * len(node.outputs)
                self._arrays.update(zip(node.outputs, found, strict=True))
            if last in self._arrays:
                waiting.pop()
            waiting += before
        return self._arrays[value]

    def _is_unknown(self, value: ir.Value) -> bool:
        """Whether the value is a constant that has still to be computed."""
        known = value in self._arrays or value.is_initializer()
        return value in self._constant and not known

    def operand(self, value: ir.Value) -> Operand:
        """A value as the builders of meanings know it."""
        kind = self.constant_kind(value)
        if kind is None:
            return self.tensor(value)

        def load() -> Native:
            found = self.array(value)
            assert found is not None
            return found

        return Constant(value.name or "a constant", *kind, load)

    def tensor(self, value: ir.Value) -> Tensor:
        sums = self.sums_to_one.get(value)
        return Tensor(value.name or "", self.shape(value), self.dtype(value) or "", sums)

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
        if node.op_type == "BatchNormalization" and self.opset < 14 and len(node.outputs) > 1:
            return False  # in training
        return bool(inputs) and is_deterministic(node) and self._constant.issuperset(inputs)

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

    def _evaluated(self, node: ir.Node) -> list[Native | None] | None:
        """The constants that a node makes."""
        if node.op_type == "Constant":
            return [constant_of(node)]
        if node.op_type in ("Shape", "Size"):
            return [self._dims(node)]
        if node.op_type == "CastLike":
            source, like = node.inputs
            found = None if source is None else self.array(source)
            return None if found is None or like is None else [cast(found, self._known(like).dtype)]
        arguments = [None if value is None else self.array(value) for value in node.inputs]
        missing = any(
            value is not None and argument is None
            for value, argument in zip(node.inputs, arguments, strict=True)
        )
        return None if missing else evaluated(node, self.opset, arguments)


def _resolved(target: list[int], source: Shape | None) -> list[int] | None:
    """The sizes that a Reshape asks for, with a -1 worked out where all of `source` are known."""
    if all(size > 0 for size in target):
        return target
    total = None if source is None else product(source)
    rest = math.prod(size for size in target if size != -1)
    if total is None or target.count(-1) != 1 or rest <= 0 or total % rest:
        return None
    return [total // rest if size == -1 else size for size in target]


def _image(weight: tuple[int, ...], channels: int) -> ir.Shape:
    """A batch of images with so many channels, of the rank of a convolution's weight."""
    return ir.Shape([None, channels, *[None] * (len(weight) - 2)])


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


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node runs: the branches of an If, the body of a Loop."""
    for found in node.attributes.values():
        if found.type == ir.AttributeType.GRAPH and not found.is_ref():
            yield found.as_graph()
        elif found.type == ir.AttributeType.GRAPHS and not found.is_ref():
            yield from found.as_graphs()
