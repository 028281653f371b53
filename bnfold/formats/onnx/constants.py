"""What the ONNX operators make of constants: numpy, in the constants' own types."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnfold.algebra.affine import from_batchnorm
from bnfold.algebra.refusal import Refusal

Native = NDArray[Any]

DEFAULT_EPSILON = float(np.float32(1e-5))
"""Of a BatchNormalization; attributes are float32, and so are their defaults."""

MOST_ELEMENTS = 1 << 26
"""A constant with more elements than this is not computed, and so not known."""


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute; a list becomes a tuple."""
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    return tuple(found.value) if isinstance(found.value, list | tuple) else found.value


def constant_of(node: ir.Node) -> Native | None:
    """The value of a Constant node; None if it is sparse, absent, or a function's attribute."""
    found = next(iter(node.attributes.values()), None)
    if found is None or found.is_ref():
        return None
    match found.type:
        case ir.AttributeType.TENSOR:
            return np.asarray(found.as_tensor().numpy())
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
            return np.array(found.value, np.float32)
        case ir.AttributeType.INT | ir.AttributeType.INTS:
            return np.array(found.value, np.int64)
    return None


def cast(x: Native, dtype: ir.DataType | int | None) -> Native | None:
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


def _reduced(of: Callable[..., Any]) -> Callable[..., Any]:
    def apply(node: ir.Node, x: Native, axes: Native | None = None) -> Native:
        where = _axes(node, axes) or None
        if where is None and attribute(node, "noop_with_empty_axes", 0):
            return x
        keep = bool(attribute(node, "keepdims", 1))
        return np.asarray(of(x, axis=where, keepdims=keep)).astype(x.dtype)

    return apply


def _normalised(
    node: ir.Node, x: Native, gamma: Native, beta: Native, mean: Native, var: Native
) -> Native:
    """BatchNormalization, also with the statistics of x itself: weight standardisation."""
    wide = x.astype(np.float64)
    if attribute(node, "training_mode", 0):
        others = (0, *range(2, x.ndim))
        mean, var = wide.mean(others), wide.var(others)
    eps = attribute(node, "epsilon", DEFAULT_EPSILON)
    mean, var, gamma, beta = (a.astype(np.float64) for a in (mean, var, gamma, beta))
    affine = from_batchnorm(1, mean, var, eps, gamma, beta)
    if isinstance(affine, Refusal):
        raise ValueError(affine.why)
    return affine.on(wide).astype(x.dtype)


def _norm(x: Native, **how: Any) -> Native:
    return np.asarray(np.sqrt(np.sum(x * x, **how)))


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(node: ir.Node, a: Native, b: Native) -> Native:
        _affordable(np.broadcast_shapes(a.shape, b.shape))
        return np.asarray(function(a, b)).astype(a.dtype)

    return apply


FUNCTIONS: dict[str, Callable[..., Any]] = {
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
    "ReduceSum": _reduced(np.sum),
    "ReduceMean": _reduced(np.mean),
    "ReduceL2": _reduced(_norm),
    "BatchNormalization": _normalised,
    "Identity": lambda node, x: x,
    "Cast": lambda node, x: cast(x, attribute(node, "to", None)),
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

SINCE = {"BatchNormalization": 9}
"""Operators that were something else for longer."""
