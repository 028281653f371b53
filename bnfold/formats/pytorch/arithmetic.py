"""Arithmetic: sums of two values, and values combined with constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.formats.pytorch.calls import (
    Call,
    Facts,
    NotCoveredError,
    Value,
    constant_of,
    float64,
    rank_of,
)
from bnfold.graph import Add, Affine, Op


def add(call: Call, facts: Facts) -> Op:
    if len(call.values) == 2:
        if call.get("alpha") not in (None, 1):
            raise NotCoveredError
        return Add()
    sign = -1.0 if call.op.startswith("sub") else 1.0
    if call.op.startswith("rsub") or (sign < 0 and not isinstance(call["self"], Value)):
        raise NotCoveredError
    factor = call.get("alpha")
    if factor not in (None, 1) and not isinstance(call["self"], Value):
        raise NotCoveredError  # alpha is a scale of the value
    axis, numbers = _channel_constant(call, facts)
    shift = sign * numbers * (1.0 if factor is None else float(factor))
    return Affine(ChannelAffine.on_axis(axis, np.ones_like(shift), shift), False, "shift")


def sub(call: Call, facts: Facts) -> Op:
    if len(call.values) == 2:
        raise NotCoveredError
    return add(call, facts)


def mul(call: Call, facts: Facts) -> Op:
    if len(call.values) == 2:
        raise NotCoveredError
    axis, scale = _channel_constant(call, facts)
    return Affine(ChannelAffine.on_axis(axis, scale, np.zeros_like(scale)), False, "scale")


def div(call: Call, facts: Facts) -> Op:
    if len(call.values) == 2 or call.get("rounding_mode") or not isinstance(call["self"], Value):
        raise NotCoveredError
    axis, divisor = _channel_constant(call, facts)
    if not np.all(divisor):
        raise NotCoveredError
    return Affine(ChannelAffine.on_axis(axis, 1 / divisor, np.zeros_like(divisor)), False, "scale")


def _channel_constant(
    call: Call, facts: Facts
) -> tuple[int | None, np.ndarray[Any, np.dtype[np.float64]]]:
    """The axis (None: uniform) and numbers of the constant operand of a binary operator."""
    (value,) = call.values
    other = call["other"] if isinstance(call["self"], Value) else call["self"]
    if not facts.keeps_float(call) or isinstance(other, bool | complex):
        raise NotCoveredError
    if isinstance(other, int | float):
        return None, np.array([float(other)])
    constant = constant_of(other).tensor
    if constant.numel() == 1 and constant.ndim == 0:
        return None, float64(constant).reshape(1)
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
