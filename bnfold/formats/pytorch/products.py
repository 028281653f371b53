"""Matrix products: layers written as such, attention, and products of any two values.

softmax makes weights that sum to one along an axis. A product that contracts this axis is a mean of
its other operand. `Facts.sums_to_one` carries the axis from the softmax to the product.

Exact when   TO_ONE  the weights are only carried on the way (bnfold.formats.weights)
             MASK    (attention in one operator) the mask is a constant that leaves something in
                     every row: a row without anything gives zeros there, whatever the values are
"""

from __future__ import annotations

import torch

from bnfold.algebra.graph import Linear, MatMul, Op, Param, WeightedMean
from bnfold.formats.einsum import layer
from bnfold.formats.pytorch.calls import (
    Call,
    Constant,
    Facts,
    NotCoveredError,
    Value,
    axis_of,
    constant_of,
    optional_param,
    rank_of,
)
from bnfold.formats.weights import carried

SOFTMAX = ("softmax", "_softmax")


def matmul(call: Call, facts: Facts) -> Op:
    """matmul, mm and bmm, with two computed operands or with a constant matrix on the right."""
    left, right = call["self"], call.get("mat2") or call.get("other")
    if call.get("out_dtype") is not None or not facts.may_keep_float(call):
        raise NotCoveredError
    if isinstance(left, Value) and isinstance(right, Constant):
        return Linear(_transposed(right))
    ranks = [facts.rank(name) for name in call.values]
    if len(ranks) < 2 or any(rank is None or rank < 2 for rank in ranks):
        raise NotCoveredError
    axes = [facts.sums_to_one.get(name) for name in call.values]
    contracted = [(rank or 0) - 1 - port for port, rank in enumerate(ranks)]
    if axes[0] == contracted[0]:
        return WeightedMean(port=1)
    if axes[1] == contracted[1]:
        return WeightedMean(port=0, axis=-1)
    return MatMul()


def einsum(call: Call, facts: Facts) -> Op:
    """A layer, if one of two operands is a constant matrix."""
    operands = call["tensors"]
    if not isinstance(operands, list) or len(operands) != 2 or not facts.may_keep_float(call):
        raise NotCoveredError
    data = 0 if isinstance(operands[0], Value) else 1
    matrix = constant_of(operands[1 - data])
    if not isinstance(operands[data], Value) or matrix.tensor.ndim != 2:
        raise NotCoveredError
    found = layer(call["equation"], data, facts.shapes.get(call.values[0]), matrix.param())
    if found is None:
        raise NotCoveredError
    return found


def addmm(call: Call, facts: Facts) -> Op:
    """beta * bias + alpha * (x @ W), as a layer."""
    bias = optional_param(call["self"])
    factors = (call.get("beta"), call.get("alpha"))
    if factors != (1, 1) or not isinstance(call["mat1"], Value) or call.get("out_dtype"):
        raise NotCoveredError
    weight = _transposed(call["mat2"])
    if bias is None or bias.shape != weight.shape[:1]:
        raise NotCoveredError
    return Linear(weight, bias)


def _transposed(argument: object) -> Param:
    """A constant matrix [Cin, Cout] as the weight [Cout, Cin] of a layer."""
    constant = constant_of(argument)
    if constant.tensor.ndim != 2:
        raise NotCoveredError
    return Constant(constant.name, constant.tensor.t()).param()


def attention(call: Call, facts: Facts) -> Op:
    """scaled_dot_product_attention of (query, key, value), in eval mode."""
    mask = call.get("attn_mask")
    plain = call.get("dropout_p") == 0 and not call.get("enable_gqa")
    if not plain or not isinstance(call["value"], Value) or not facts.may_keep_float(call):
        raise NotCoveredError
    if mask is not None and not (isinstance(mask, Constant) and _leaves_something(mask.tensor)):
        raise NotCoveredError
    return WeightedMean(port=sum(isinstance(call[name], Value) for name in ("query", "key")))


def _leaves_something(mask: torch.Tensor) -> bool:
    """MASK: boolean, what takes part; or what is added to the logits."""
    part = mask if mask.dtype == torch.bool else mask > -torch.inf
    return bool(part.any(-1).all())


def axis_that_sums_to_one(call: Call, op: Op, facts: Facts) -> int | None:
    """TO_ONE: the axis along which the result of a call sums to one."""
    if call.op in SOFTMAX:
        return axis_of(call["dim"], rank_of(call, facts))
    axis = facts.sums_to_one.get(call.values[0]) if len(call.values) == 1 else None
    return None if axis is None or call.op == "select" else carried(op, axis)
