"""Einstein sums: a value and a constant matrix as the layer that they are.

    "...c,oc->...o"        a linear layer
    "nchw,oc->nohw"        a convolution of 1x1; one or three axes behind the channels as well

The operands may stand in either order, and the matrix may be transposed.

Exact when   MATRIX  one letter of the matrix is summed, the other takes its place in the result
             SIZE    the value has as many channels as the matrix: a size of 1 would be broadcast
"""

from __future__ import annotations

import numpy as np

from bnfold.algebra.graph import Conv, Linear, Param, Shape


def layer(equation: str, data: int, shape: Shape | None, matrix: Param) -> Conv | Linear | None:
    """What the sum does to its operand `data`, of `shape`; `matrix` [two axes] is the other one."""
    terms, _, result = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    if len(operands) != 2 or shape is None:
        return None
    value, letters = operands[data], operands[1 - data]
    rest = len(shape) - len(value.replace("...", ""))
    if rest < 0:
        return None
    value, result = (text.replace("...", _UNNAMED[:rest]) for text in (value, result))
    summed = [i for i, letter in enumerate(letters) if letter in value]
    distinct = len({*value, *letters}) == len(shape) + 1
    if len(letters) != 2 or len(value) != len(shape) or not distinct or len(summed) != 1:
        return None
    (c,) = summed
    axis = value.index(letters[c])
    if result != value.replace(letters[c], letters[1 - c]) or shape[axis] != matrix.shape[c]:
        return None
    return _layer(matrix if c == 1 else _transposed(matrix), axis, len(shape) - axis - 1)


_UNNAMED = "0123456789"
"""Letters for the axes that "..." stands for: no equation has digits."""


def _layer(weight: Param, axis: int, behind: int) -> Conv | Linear | None:
    """`weight` [Cout, Cin] on the channels at `axis`, with so many axes behind them."""
    if behind == 0:
        return Linear(weight) if axis else None
    if axis != 1 or behind > 3:
        return None
    shape, ones = (*weight.shape, *[1] * behind), (1,) * behind
    kernel = Param(weight.name, shape, weight.dtype, lambda: weight.load().reshape(shape))
    return Conv(kernel, None, ones, ones, ((0, 0),) * behind)


def _transposed(matrix: Param) -> Param:
    first, second = matrix.shape
    return Param(matrix.name, (second, first), matrix.dtype, lambda: np.asarray(matrix.load().T))
