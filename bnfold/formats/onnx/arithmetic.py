"""Arithmetic: values combined with constants, and with each other.

Constants are aligned from the right, as broadcasting is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Add, Affine, Multiply, Op, Shape
from bnfold.algebra.refusal import Reason
from bnfold.formats.onnx.call import Call, Meaning, refused

COMBINED: dict[str, Op] = {
    "Add": Add(),
    "Sum": Add(),
    "Sub": Add((1.0, -1.0)),
    "Mul": Multiply(),
}
"""What arithmetic does to two values of which neither is one number for each channel."""


def binary(call: Call) -> Meaning | None:
    """Add, Sub, Mul and Div by a constant; the sum, difference and product of two values."""
    kind = call.node.op_type
    if call.opset < 7:
        return None
    constant = [i for i in (0, 1) if call.is_constant(i)]
    several = COMBINED.get(kind)
    both = None if several is None else (several, (0, 1))
    if not constant:
        return both
    (c,) = constant[:1]
    numbers = call.numbers(c)
    if numbers is None or (kind == "Div" and c == 0):
        return None
    axis = _channels(numbers.shape, call.shape(1 - c))
    if axis == "none":
        return both
    with np.errstate(divide="ignore", over="ignore"):
        affine = _affine_of(kind, c, axis, numbers.reshape(-1))
    if not np.all(np.isfinite((affine.scale, affine.shift))):
        why = "its constant is not finite, or a division by zero"
        return refused(call, Reason.NON_FINITE, why, batchnorm=False)
    holds: Any = "scale" if kind in ("Mul", "Div") else "shift"
    return Affine(affine, batchnorm=False, holds=holds), (1 - c,)


def _affine_of(kind: str, c: int, axis: Any, numbers: Array) -> ChannelAffine:
    one, zero = np.ones_like(numbers), np.zeros_like(numbers)
    match kind:
        case "Mul":
            return ChannelAffine.on_axis(axis, numbers, zero)
        case "Div":
            return ChannelAffine.on_axis(axis, 1 / numbers, zero)
        case "Sub" if c == 1:
            return ChannelAffine.on_axis(axis, one, -numbers)
        case "Sub":
            return ChannelAffine.on_axis(axis, -one, numbers)
    return ChannelAffine.on_axis(axis, one, numbers)


def _channels(constant: tuple[int, ...], shape: Shape | None) -> Any:
    """The axis of a value of `shape` that a constant lies on; None for a scalar, else "none".

    It may neither add an axis nor stretch one, so the rank and the size must be known, but for a
    constant of rank 0.
    """
    if not constant:
        return None
    if shape is None or len(constant) > len(shape):
        return "none"
    wide = [i for i, size in enumerate(constant) if size != 1]
    if not wide:
        return None
    axis = wide[0] + len(shape) - len(constant)
    return axis if len(wide) == 1 and shape[axis] == constant[wide[0]] else "none"


def negation(call: Call) -> Meaning | None:
    minus = ChannelAffine.on_axis(None, np.array([-1.0]), np.zeros(1))
    return Affine(minus, batchnorm=False, holds="scale"), (0,)


def sum_(call: Call) -> Meaning | None:
    count = len(call.node.inputs)
    if call.opset < 8 or count == 2:
        return binary(call) if call.opset >= 8 else None
    return Add(), tuple(range(count))
