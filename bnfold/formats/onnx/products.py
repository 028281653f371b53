"""Matrix products: layers, products of computed values, and means that a softmax weighs.

softmax makes weights that sum to one along an axis. A product that contracts this axis is a mean of
its other operand. `Values.sums_to_one` carries the axis from the softmax to the product.

Exact when   TO_ONE  the weights are only carried on the way (bnfold.formats.weights)
             HEADS   (Attention) there are as many heads of values as of queries
             MASK    (Attention) not causal; the mask is absent, or a constant that leaves something
                     in every row: a row without anything gives zeros, whatever the values are
             ALONE   (Attention) no output but the first is read, and nothing comes from a cache
"""

from __future__ import annotations

import numpy as np

from bnfold.algebra.graph import Linear, MatMul, Op, WeightedMean
from bnfold.formats.einsum import layer
from bnfold.formats.onnx.call import Call, Meaning, barred_by_parameters, is_quantised
from bnfold.formats.onnx.constants import Native
from bnfold.formats.weights import carried


def matmul(call: Call) -> Meaning | None:
    """A layer if the right operand is a constant matrix, else a product of two values."""
    shape = call.constant_shape(1)
    if shape is not None and len(shape) == 2:
        weight = call.param(1, lambda b: b.T, shape[::-1])
        return None if weight is None or call.shape() == () else (Linear(weight), (0,))
    if is_quantised(call, 1):
        return barred_by_parameters(call)
    ranks = [None if shape is None else len(shape) for shape in (call.shape(0), call.shape(1))]
    if any(rank is None or rank < 2 for rank in ranks):
        return barred_by_parameters(call)
    axes = [call.values.sums_to_one.get(value) for value in call.node.inputs if value is not None]
    contracted = [(rank or 0) - 1 - port for port, rank in enumerate(ranks)]
    if axes[0] == contracted[0]:
        return WeightedMean(port=1), (0, 1)
    if axes[1] == contracted[1]:
        return WeightedMean(port=0, axis=-1), (0, 1)
    return MatMul(), (0, 1)


def einsum(call: Call) -> Meaning | None:
    """A layer, if one of two operands is a constant matrix."""
    constant = [i for i in (0, 1) if call.is_constant(i)]
    if len(call.node.inputs) != 2 or len(constant) != 1:
        return None
    data = 1 - constant[0]
    matrix = call.param(1 - data)
    if matrix is None or len(matrix.shape) != 2:
        return None
    found = layer(call.attr("equation"), data, call.shape(data), matrix)
    return None if found is None else (found, (data,))


def attention(call: Call) -> Meaning | None:
    """softmax(q k^T + mask) @ v in one operator, of [N, heads, L, E] or [N, L, heads * E]."""
    queries, keys = call.shape(0), call.shape(1)
    cached = any(call.value(index) is not None for index in (4, 5, 6))
    if cached or any(call.uses(i) for i in (1, 2, 3)) or call.attr("is_causal", 0):
        return None
    if queries is None or keys is None:
        return None
    heads = call.attr("q_num_heads"), call.attr("kv_num_heads")
    if len(queries) == len(keys) == 4:
        heads = queries[1], keys[1]
    if heads[0] is None or heads[0] != heads[1]:
        return None
    if call.value(3) is not None:
        mask = call.array(3)
        if mask is None or not _leaves_something(mask):
            return None
    return WeightedMean(port=2), (0, 1, 2)


def _leaves_something(mask: Native) -> bool:
    """MASK: boolean, what takes part; or what is added to the logits."""
    part = mask if mask.dtype == np.bool_ else mask.astype(np.float64) > -np.inf
    return bool(part.any(-1).all())


def axis_that_sums_to_one(call: Call, op: Op) -> int | None:
    """TO_ONE: the axis along which the first result of a call sums to one."""
    if call.node.op_type == "Softmax":
        return _softmax_axis(call)
    value = call.value(0)
    axis = None if value is None else call.values.sums_to_one.get(value)
    return None if axis is None else carried(op, axis)


def _softmax_axis(call: Call) -> int | None:
    """The one axis of a Softmax; before opset 13 it goes over that axis and all that follow."""
    shape = call.shape()
    if shape is None:
        return None
    if call.opset >= 13:
        axis: int = call.attr("axis", -1) % len(shape)
        return axis
    first = call.attr("axis", 1) % len(shape)
    return first if all(size == 1 for size in shape[first + 1 :]) else None
