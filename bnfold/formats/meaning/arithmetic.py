"""Values combined with constants, and with each other.

A constant of one number for each channel, or for everything, makes an affine. It is aligned from
the right, as broadcasting is, and may neither add an axis nor stretch one; another constant is a
value like any other. `made` is the result: a type that changes is rounded, which nothing passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Add, Affine, Multiply, Op
from bnfold.algebra.refusal import Reason
from bnfold.formats.meaning.operands import (
    Constant,
    NotCoveredError,
    Operand,
    Tensor,
    keep_type,
    not_linear,
)
from bnfold.formats.meaning.steps import Meaning, Step, one

Holds = Literal["scale", "shift"]


def add(x: Operand, y: Operand, made: Tensor, factors: tuple[float, float] = (1.0, 1.0)) -> Meaning:
    """factors[0] * x + factors[1] * y."""
    if 0 in factors or not np.all(np.isfinite(factors)):
        raise not_linear(f"it multiplies its operands by {factors[0]:g} and {factors[1]:g}")
    data, own, other = (x, *factors) if isinstance(x, Tensor) else (y, *factors[::-1])
    both = Add(() if factors == (1, 1) else factors)
    if not isinstance(data, Tensor) or (constant := _constant(x, y)) is None:
        return _combined(both, x, y, made)
    keep_type(data, made, surely=True)
    on = _channels(data, constant)
    if on is None:
        return _combined(both, x, y, made)
    axis, numbers = on
    return _affine(data, axis, np.full_like(numbers, own), other * numbers, "shift")


def mul(x: Operand, y: Operand, made: Tensor) -> Meaning:
    data = x if isinstance(x, Tensor) else y
    if not isinstance(data, Tensor) or (constant := _constant(x, y)) is None:
        return _combined(Multiply(), x, y, made)
    keep_type(data, made, surely=True)
    on = _channels(data, constant)
    if on is None:
        return _combined(Multiply(), x, y, made)
    return _affine(data, *on, np.zeros_like(on[1]), "scale")


def div(x: Operand, y: Operand, made: Tensor) -> Meaning:
    if not isinstance(x, Tensor) or not isinstance(y, Constant):
        raise not_linear("it divides by a computed value")
    keep_type(x, made, surely=True)
    on = _channels(x, y)
    if on is None:
        raise not_linear("its constant varies along several axes")
    with np.errstate(divide="ignore", over="ignore"):
        return _affine(x, on[0], 1 / on[1], np.zeros_like(on[1]), "scale")


def neg(x: Tensor, made: Tensor) -> Meaning:
    keep_type(x, made, surely=True)
    return _affine(x, None, np.array([-1.0]), np.zeros(1), "scale")


def add_all(operands: Sequence[Operand], made: Tensor) -> Meaning:
    """The sum of any number of values."""
    if len(operands) == 2:
        return add(operands[0], operands[1], made)
    keep_type(*(x for x in operands if isinstance(x, Tensor)), made)
    return one(Add(), *operands)


def lerp(x: Operand, y: Operand, weight: Operand, made: Tensor) -> Meaning:
    """(1 - w) * x + w * y, for one constant number w."""
    w = _number(weight, "weight")
    return add(x, y, made, (1 - w, w))


def add_product(x: Operand, a: Operand, b: Operand, value: float, made: Tensor) -> Meaning:
    """x + value * a * b (addcmul), where a or b is one constant number, or both are fixed."""
    if isinstance(a, Constant) and isinstance(b, Constant):
        first, second = a, b
        shape = np.broadcast_shapes(a.shape, b.shape)
        if math.prod(shape) > math.prod(a.shape) + math.prod(b.shape):
            raise not_linear("its constants are large together")
        product = Constant(a.name, shape, a.dtype, lambda: first.numbers() * second.numbers())
        return add(x, product, made, (1.0, value))
    data, constant = (a, b) if isinstance(a, Tensor) else (b, a)
    return add(x, data, made, (1.0, value * _number(constant, "factor")))


def _number(operand: Operand, role: str) -> float:
    if not isinstance(operand, Constant):
        raise NotCoveredError(Reason.NOT_CONSTANT, f"its {role} is computed at run time")
    if math.prod(operand.shape) != 1:
        raise not_linear(f"its {role} is no single number")
    return float(operand.numbers().reshape(()))


def _constant(x: Operand, y: Operand) -> Constant | None:
    return next((each for each in (x, y) if isinstance(each, Constant)), None)


def _combined(op: Op, x: Operand, y: Operand, made: Tensor) -> Meaning:
    keep_type(*(each for each in (x, y) if isinstance(each, Tensor)), made)
    return (Step(op, (x, y)),)


def _channels(x: Tensor, constant: Constant) -> tuple[int | None, Array] | None:
    """The axis of x that the constant lies on (None: one number) and its numbers; None if neither.

    The rank must be known, but for a constant without axes.
    """
    shape = constant.shape
    if not shape:
        return None, constant.numbers().reshape(1)
    if x.shape is None or len(shape) > len(x.shape):
        return None
    wide = [i for i, size in enumerate(shape) if size != 1]
    if not wide:
        return None, constant.numbers().reshape(1)
    axis = wide[0] + len(x.shape) - len(shape)
    if len(wide) > 1 or x.shape[axis] != shape[wide[0]]:
        return None
    return axis, constant.numbers().reshape(-1)


def _affine(x: Tensor, axis: int | None, scale: Array, shift: Array, holds: Holds) -> Meaning:
    if not np.all(np.isfinite((scale, shift))):
        why = "its constant is not finite, or a division by zero"
        raise NotCoveredError(Reason.NON_FINITE, why, is_affine=True)
    return one(Affine(ChannelAffine.on_axis(axis, scale, shift), False, holds), x)
