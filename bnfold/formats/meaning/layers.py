"""Ops with weights: convolutions, linear layers, embeddings, normalisations.

conv            weight [Cout, Cin/g, *K], transposed [Cin, Cout/g, *K]; bias [Cout]
linear          y = alpha x W^T + beta c;  W [Cout, Cin], or [Cin, Cout] where it is `flipped`
embedding       table [count, C], read by whole numbers
recurrent       weight [rows, Cin] and bias [rows] of what its gates read of a sequence
norm            weight and bias [C] on one axis, statistics of the data: Layer-, Group-, RMSNorm
batch_norm      statistics, gamma and beta [C] on axis 1; InstanceNorm with running statistics
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnfold.algebra.affine import from_batchnorm
from bnfold.algebra.graph import Affine, Conv, Embedding, Linear, Norm, Pads, Param, Recurrent, Size
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.formats.meaning.operands import (
    Constant,
    NotCoveredError,
    Operand,
    Tensor,
    constant,
    keep_type,
    not_linear,
)
from bnfold.formats.meaning.steps import Meaning, one

Ints = tuple[int, ...]


def conv(
    x: Operand,
    weight: Operand,
    bias: Operand | None,
    *,
    stride: Ints,
    dilation: Ints,
    pads: Pads,
    groups: int,
    transposed: bool = False,
    output_padding: Ints = (),
) -> Meaning:
    """`stride` and the like have one entry for each spatial axis."""
    kernel = constant(weight, "weight").param()
    if len(kernel.shape) < 3:
        raise not_linear("its weight has no spatial axes")
    added = None if bias is None else constant(bias, "bias").param()
    op = Conv(
        kernel,
        added,
        stride,
        dilation,
        pads,
        groups,
        transposed=transposed,
        output_padding=output_padding,
    )
    return one(op, x)


def same_pads(
    sizes: Sequence[Size], kernel: Ints, stride: Ints, dilation: Ints, *, upper: bool = True
) -> Pads:
    """Pads with which a window gives ceil(size / stride); an odd one more is at the end if `upper`.

    What depends on an unknown size is given as (1, 1), which no shift passes.
    """
    pads: list[tuple[int, int]] = []
    for size, k, step, d in zip(sizes, kernel, stride, dilation, strict=True):
        reach = d * (k - 1) + 1
        if step == 1 or reach == 1:
            pads.append(halved(reach - 1, upper))
        elif isinstance(size, int):
            pads.append(halved(max((-(-size // step) - 1) * step + reach - size, 0), upper))
        else:
            pads.append((1, 1))
    return tuple(pads)


def halved(total: int, upper: bool) -> tuple[int, int]:
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)


def linear(
    x: Operand,
    weight: Operand,
    bias: Operand | None = None,
    *,
    flipped: bool = False,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Meaning:
    """A bias may be a row [Cout], with ones before it, or one number for all."""
    matrix = constant(weight, "weight")
    if len(matrix.shape) != 2:
        raise not_linear(f"its weight has {len(matrix.shape)} axes")
    if isinstance(x, Tensor) and x.shape == ():
        raise not_linear("it multiplies a number")
    out, features = matrix.shape[::-1] if flipped else matrix.shape
    w = matrix.param(lambda a: alpha * (a.T if flipped else a), (out, features))
    return one(Linear(w, None if bias is None else _row(constant(bias, "bias"), out, beta)), x)


def embedding(indices: Operand, table: Operand) -> Meaning:
    """The rows of a table that whole numbers tell."""
    weight = constant(table, "table").param()
    if len(weight.shape) != 2 or not isinstance(indices, Tensor):
        raise not_linear(f"its table has {len(weight.shape)} axes")
    return one(Embedding(weight), indices)


def recurrent(
    x: Tensor,
    states: Sequence[Tensor],
    *,
    weight: Operand,
    bias: Operand | None = None,
    reverse_weight: Operand | None = None,
    reverse_bias: Operand | None = None,
) -> Meaning:
    """An LSTM, GRU or RNN: the rows of all gates by which it reads its sequence."""
    given = (weight, bias, reverse_weight, reverse_bias)
    held = [None if each is None else constant(each, "weight").param() for each in given]
    assert held[0] is not None
    return one(Recurrent(held[0], *held[1:]), x, *states)


def norm(
    x: Tensor,
    weight: Operand | None,
    bias: Operand | None,
    eps: float,
    made: Tensor,
    *,
    groups: int = 0,
    centred: bool = True,
) -> Meaning:
    """Over the last axis, or over each of the groups of channels and all that is behind them."""
    axis = 1 if groups else x.rank - 1
    keep_type(x, made)
    if weight is None:
        raise not_linear("it has no weight")
    held = [constant(each, "weight").param() for each in (weight, bias) if each is not None]
    if {each.shape for each in held} != {(x.size(axis),)} or (groups and x.rank < 2):
        raise not_linear(f"its weights are not those of axis {axis}")
    return one(Norm(held[0], held[1] if held[1:] else None, axis, eps, groups, centred), x)


def _row(bias: Constant, out: int, beta: float) -> Param:
    size = math.prod(bias.shape)
    if size not in (1, out) or (bias.shape and bias.shape[-1] != size):
        raise not_linear(f"its bias {list(bias.shape)} is no row of {out}")
    return bias.param(lambda c: np.broadcast_to(beta * c.reshape(-1), (out,)), (out,))


def batch_norm(
    x: Tensor,
    mean: Operand | None,
    var: Operand | None,
    gamma: Operand | None,
    beta: Operand | None,
    eps: float,
    *,
    training: str = "",
) -> Meaning:
    """`training` says why it uses the statistics of the batch, if it does."""
    if training or mean is None or var is None:
        why = training or "it normalises with the statistics of the batch, also in eval mode"
        raise NotCoveredError(Reason.BATCH_STATISTICS, why)
    named = {"running_mean": mean, "running_var": var, "weight": gamma, "bias": beta}
    for role, operand in named.items():
        if isinstance(operand, Tensor):
            why = f"its {role} {operand.name} is computed at run time".replace("  ", " ")
            raise NotCoveredError(Reason.NOT_CONSTANT, why)
    numbers = [None if a is None else constant(a, "").numbers() for a in named.values()]
    means, variances, scales, shifts = numbers
    assert means is not None
    assert variances is not None
    found = from_batchnorm(1, means, variances, eps, scales, shifts)
    if isinstance(found, Refusal):
        raise NotCoveredError(found.reason, found.why)
    size = found.size if x.shape is None else x.shape[1] if len(x.shape) > 1 else 0
    if isinstance(size, int) and size != found.size:
        why = f"it has {found.size} channels, its input has the shape {list(x.shape or ())}"
        raise NotCoveredError(Reason.MISMATCHED_CHANNELS, why)
    return one(Affine(found), x)
