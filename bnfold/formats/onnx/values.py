"""What is known of the values of an ONNX model before it runs: shapes, types, and constants.

A value is constant if it is an initializer that nobody can override (from IR version 4 on, one
that is also a graph input can be overridden), or computed from constants alone by an operator of
the table below. Exporters write weights that way: the zero bias of a bias-free convolution as
Shape > Expand > CastLike, a linear layer's weight as a Transpose. Constants are evaluated only when
asked for, in their own types.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.formats.onnx.shapes import inferred
from bnfold.graph import Shape

Native = NDArray[Any]

MOST_ELEMENTS = 1 << 26
"""A constant with more elements than this is not computed, and so not known."""


class Values:
    """Shapes, types and constants by value, filled in node by node in topological order."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._inferred = inferred(model)
        self._constant: set[ir.Value] = set()
        self._arrays: dict[ir.Value, Native | None] = {}
        inputs = set(model.graph.inputs) if model.ir_version >= 4 else set()
        for graph in model.graphs():
            self._constant.update(v for v in graph.initializers.values() if v not in inputs)

    def shape(self, value: ir.Value) -> Shape | None:
        """The sizes: numbers, names of symbols, or None; None if the rank is not known."""
        shape = sizes(self._inferred.get(value, value).shape)
        if shape is None and value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        return shape

    def dtype(self, value: ir.Value) -> str | None:
        return dtype_name(self._inferred.get(value, value).dtype)

    def visit(self, node: ir.Node) -> bool:
        """Note whether `node` makes constants; its inputs were visited before."""
        constant = node.domain == "" and self._is_constant(node)
        if constant:
            self._constant.update(node.outputs)
        return constant

    def is_constant(self, value: ir.Value) -> bool:
        return value in self._constant

    def array(self, value: ir.Value) -> Native | None:
        """The constant in its own type; None if it is none, or would be too large."""
        if value not in self._constant:
            return None
        if value.is_initializer():
            return None if value.const_value is None else value.const_value.numpy()
        if value not in self._arrays:
            node = value.producer()
            assert node is not None
            self._arrays[value] = self._evaluated(node)
        return self._arrays[value]

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
                return _constant(node) is not None
            case "Shape" | "Size":
                return self._dims(node) is not None
            case "CastLike":
                return inputs[0] in self._constant and self.dtype(inputs[1]) is not None
            case op_type:
                return op_type in _FUNCTIONS and all(v in self._constant for v in inputs)

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
            return _constant(node)
        if node.op_type in ("Shape", "Size"):
            return self._dims(node)
        if node.op_type == "CastLike":
            source, like = node.inputs
            assert source is not None
            assert like is not None
            found = self.array(source)
            return None if found is None else _cast(found, self._inferred.get(like, like).dtype)
        arguments = [None if value is None else self.array(value) for value in node.inputs]
        missing = any(
            value is not None and argument is None
            for value, argument in zip(node.inputs, arguments, strict=True)
        )
        if missing or not arguments:
            return None
        try:
            with np.errstate(all="ignore"):
                return np.asarray(_FUNCTIONS[node.op_type](node, *arguments))
        except (ValueError, IndexError, TypeError, MemoryError):
            return None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute; a list becomes a tuple."""
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    return tuple(found.value) if isinstance(found.value, list | tuple) else found.value


def dtype_name(dtype: ir.DataType | None) -> str | None:
    """The numpy name of an element type, "str" for strings."""
    if dtype is None or dtype == ir.DataType.UNDEFINED:
        return None
    return "str" if dtype == ir.DataType.STRING else str(dtype.numpy().name)


def sizes(shape: ir.Shape | None) -> Shape | None:
    if shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in shape)


def _constant(node: ir.Node) -> Native | None:
    """The value of a Constant node; None if it is sparse, or an attribute of a function."""
    (found,) = node.attributes.values()
    if found.is_ref():
        return None
    match found.type:
        case ir.AttributeType.TENSOR:
            return np.asarray(found.as_tensor().numpy())
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
            return np.array(found.value, np.float32)
        case ir.AttributeType.INT | ir.AttributeType.INTS:
            return np.array(found.value, np.int64)
    return None


def _cast(x: Native, dtype: ir.DataType | int | None) -> Native | None:
    return None if dtype is None else x.astype(ir.DataType(dtype).numpy())


def _expand(node: ir.Node, x: Native, shape: Native) -> Native:
    wide = np.broadcast_shapes(x.shape, tuple(shape.tolist()))
    return np.broadcast_to(x, _affordable(wide))


def _filled(node: ir.Node, shape: Native) -> Native:
    value = attribute(node, "value", None)
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    return np.broadcast_to(fill.reshape(()), _affordable(tuple(shape.tolist())))


def _affordable(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > MOST_ELEMENTS:
        raise MemoryError(f"a constant of {shape}")
    return shape


def _reshaped(node: ir.Node, x: Native, shape: Native) -> Native:
    wanted: list[int] = shape.tolist()
    if not attribute(node, "allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flattened(node: ir.Node, x: Native) -> Native:
    axis = attribute(node, "axis", 1)
    return x.reshape(math.prod(x.shape[: axis if axis >= 0 else axis + x.ndim]), -1)


def _axes(node: ir.Node, axes: Native | None) -> tuple[int, ...] | None:
    if axes is None:
        found: tuple[int, ...] | None = attribute(node, "axes", None)
        return found
    return tuple(axes.reshape(-1).tolist())


def _unsqueezed(node: ir.Node, x: Native, axes: Native | None = None) -> Native:
    where = _axes(node, axes)
    if where is None:
        raise ValueError("Unsqueeze without axes")
    return np.expand_dims(x, where)


def _gathered(node: ir.Node, x: Native, indices: Native) -> Native:
    return np.take(x, indices, attribute(node, "axis", 0))


def _sliced(
    node: ir.Node,
    x: Native,
    starts: Native,
    ends: Native,
    axes: Native | None = None,
    steps: Native | None = None,
) -> Native:
    where = range(len(starts)) if axes is None else axes.tolist()
    by = [1] * len(starts) if steps is None else steps.tolist()
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), where, by, strict=True):
        before_first = step < 0 and end < -x.shape[axis]
        cut[axis] = slice(start, None if before_first else end, step)
    return x[tuple(cut)]


def _divided(node: ir.Node, a: Native, b: Native) -> Native:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)


def _summed(node: ir.Node, x: Native, axes: Native | None, of: Callable[..., Any]) -> Native:
    where = _axes(node, axes)
    if where is None and attribute(node, "noop_with_empty_axes", 0):
        return x
    return np.asarray(of(x, axis=where, keepdims=bool(attribute(node, "keepdims", 1))))


def _norm(x: Native, **how: Any) -> Native:
    return np.asarray(np.sqrt(np.sum(x * x, **how)))


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(node: ir.Node, a: Native, b: Native) -> Native:
        _affordable(np.broadcast_shapes(a.shape, b.shape))
        return np.asarray(function(a, b)).astype(a.dtype)

    return apply


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Pow": _binary(np.power),
    "Div": _divided,
    "Sqrt": lambda node, x: np.sqrt(x),
    "Neg": lambda node, x: -x,
    "Abs": lambda node, x: np.abs(x),
    "Exp": lambda node, x: np.exp(x),
    "Reciprocal": lambda node, x: (1 / x).astype(x.dtype),
    "ReduceSum": lambda node, x, axes=None: _summed(node, x, axes, np.sum),
    "ReduceL2": lambda node, x, axes=None: _summed(node, x, axes, _norm),
    "Identity": lambda node, x: x,
    "Cast": lambda node, x: _cast(x, attribute(node, "to", None)),
    "Expand": _expand,
    "ConstantOfShape": _filled,
    "Concat": lambda node, *xs: np.concatenate(xs, attribute(node, "axis", 1)),
    "Reshape": _reshaped,
    "Flatten": _flattened,
    "Squeeze": lambda node, x, axes=None: np.squeeze(x, _axes(node, axes)),
    "Unsqueeze": _unsqueezed,
    "Transpose": lambda node, x: x.transpose(attribute(node, "perm", None)),
    "Gather": _gathered,
    "Slice": _sliced,
}
"""Operators that are evaluated on constants, by name; opset 7 and later."""
