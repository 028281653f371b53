"""Positively homogeneous activations, f(s * x) = s * f(x) for s >= 0; and dropout in eval."""

from __future__ import annotations

import math

import numpy as np

from bnfold.algebra.graph import Activation, Identity
from bnfold.formats.meaning.operands import Operand, Tensor, constant, keep_type, not_linear
from bnfold.formats.meaning.steps import Meaning, one

LARGEST = float(np.finfo(np.float32).max)
"""An upper limit from which on nothing is cut."""


def relu(x: Tensor) -> Meaning:
    return leaky_relu(x, 0.0)


def leaky_relu(x: Tensor, slope: float) -> Meaning:
    return one(Activation(np.array(slope)), x)


def magnitude(x: Tensor, made: Tensor) -> Meaning:
    """|x|, of real numbers."""
    keep_type(x, made)
    return leaky_relu(x, -1.0)


def clamp(x: Tensor, low: float = -math.inf, high: float = math.inf) -> Meaning:
    """A ReLU, if it is one: nothing below zero, and everything above."""
    if low == -math.inf and high >= LARGEST:
        return one(Identity(), x)
    if low != 0 or high < LARGEST:
        raise not_linear(f"it cuts off below {low:g} and above {high:g}")
    return relu(x)


def threshold(x: Tensor, least: float, below: float) -> Meaning:
    """x where it is above `least`, else `below`."""
    if least != 0 or below != 0:
        raise not_linear(f"it gives {below:g} up to {least:g}")
    return relu(x)


def prelu(x: Tensor, slope: Operand, *, on_channels: bool) -> Meaning:
    """A slope for each channel of axis 1; otherwise one of a shape that is broadcast."""
    slopes = constant(slope, "slope").numbers()
    if slopes.size == 1:
        return leaky_relu(x, float(slopes.reshape(())))
    if on_channels:
        slopes = slopes.reshape([-1 if axis == 1 else 1 for axis in range(x.rank)])
    return one(Activation(slopes), x)


def dropout(x: Tensor, *, training: bool) -> Meaning:
    if training:
        raise not_linear("it is in train mode")
    return one(Identity(), x)
