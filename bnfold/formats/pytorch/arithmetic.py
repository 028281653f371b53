"""Arithmetic: sums and products of two values, and values combined with constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Add, Affine, Multiply, Op
from bnfold.formats.pytorch.calls import (
    Call,
    Constant,
    Facts,
    NotCoveredError,
    Value,
    constant_of,
    float64,
    rank_of,
)


def add(call: Call, facts: Facts) -> Op:
    """add, sub and rsub: `self` and `other`, each times a factor; `alpha` is part of one."""
    given = call.get("alpha")
    alpha = 1.0 if given is None else _number(given)
    factors = (1.0, -alpha if call.op.startswith("sub") else alpha)
    if call.op.startswith("rsub"):
        factors = (-alpha, 1.0)
    if isinstance(call["self"], Value) and isinstance(call["other"], Value):
        if alpha == 0 or not np.isfinite(alpha) or not facts.may_keep_float(call):
            raise NotCoveredError
        return Add(() if factors == (1, 1) else factors)
    own, others = factors if isinstance(call["self"], Value) else factors[::-1]
    axis, numbers = _channel_constant(call, facts)
    if own == 0:
        raise NotCoveredError
    shift = others * numbers
    affine = ChannelAffine.on_axis(axis, np.full_like(shift, own), shift)
    return Affine(affine, False, "shift")


def mul(call: Call, facts: Facts) -> Op:
    if isinstance(call["self"], Value) and isinstance(call["other"], Value):
        if not facts.may_keep_float(call):
            raise NotCoveredError
        return Multiply()
    return _scaled(*_channel_constant(call, facts))


def div(call: Call, facts: Facts) -> Op:
    if len(call.values) == 2 or call.get("rounding_mode") or not isinstance(call["self"], Value):
        raise NotCoveredError
    axis, divisor = _channel_constant(call, facts)
    if not np.all(divisor):
        raise NotCoveredError
    return _scaled(axis, 1 / divisor)


def negated(call: Call, facts: Facts) -> Op:
    if not facts.keeps_float(call):
        raise NotCoveredError
    return _scaled(None, np.array([-1.0]))


def _scaled(axis: int | None, scale: Array) -> Affine:
    return Affine(ChannelAffine.on_axis(axis, scale, np.zeros_like(scale)), False, "scale")


def _number(argument: Any) -> float:
    """A Python number, which a trace may have written as a tensor without axes."""
    if isinstance(argument, Constant) and argument.tensor.ndim == 0:
        argument = argument.tensor.item()
    if isinstance(argument, bool) or not isinstance(argument, int | float):
        raise NotCoveredError
    return float(argument)


def _channel_constant(call: Call, facts: Facts) -> tuple[int | None, Array]:
    """The axis (None: uniform) and numbers of the constant operand of a binary operator."""
    (value,) = call.values
    if not facts.keeps_float(call):
        raise NotCoveredError
    other = call["other"] if isinstance(call["self"], Value) else call["self"]
    if not isinstance(other, Constant) or other.tensor.ndim == 0:
        return None, np.array([_number(other)])
    constant = constant_of(other).tensor
    rank = rank_of(call, facts)
    varying = [axis for axis, size in enumerate(constant.shape) if size != 1]
    if len(varying) > 1 or constant.ndim > rank:
        raise NotCoveredError
    if not varying:
        return None, float64(constant).reshape(1)
    axis = varying[0] + rank - constant.ndim
    shape = facts.shapes[value]
    if shape is None or shape[axis] != constant.numel():
        raise NotCoveredError
    return axis, float64(constant).reshape(-1)
