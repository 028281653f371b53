"""The arguments of the ONNX operators with weights or windows, by attribute and opset."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from bnfold.algebra.graph import Conv, Pads, Shape
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rounding import EPSILON
from bnfold.formats.meaning import layers, spatial
from bnfold.formats.meaning.operands import Constant, NotCoveredError, Tensor, not_linear, unknown
from bnfold.formats.meaning.steps import Meaning
from bnfold.formats.onnx.call import Call, explicit_pads
from bnfold.formats.onnx.constants import DEFAULT_EPSILON

Kind = Literal["max", "avg"]
Ints = tuple[int, ...]


def conv(call: Call) -> Meaning:
    weight = call.parameter(1, "weight")
    kernel = weight.shape[2:]
    ones = (1,) * len(kernel)
    stride, dilation = call.attr("strides", ones), call.attr("dilations", ones)
    return layers.conv(
        call.x,
        weight,
        call.added(2),
        stride=stride,
        dilation=dilation,
        pads=window_pads(call, kernel, stride, dilation),
        groups=call.attr("group", 1),
    )


def conv_transpose(call: Call) -> Meaning:
    weight = call.parameter(1, "weight")
    ones = (1,) * (len(weight.shape) - 2)
    (step,) = layers.conv(
        call.x,
        weight,
        call.added(2),
        stride=call.attr("strides", ones),
        dilation=call.attr("dilations", ones),
        pads=(),
        groups=call.attr("group", 1),
        transposed=True,
        output_padding=call.attr("output_padding", (0,) * len(ones)),
    )
    assert isinstance(step.op, Conv)
    return (replace(step, op=_cut(call, step.op)),)


def _cut(call: Call, op: Conv) -> Conv:
    """With what is cut off, which may depend on the size.

    full = stride * (size - 1) + spare + reach, of which `output_shape` is wanted, or with SAME
    stride * size; an odd one more is cut at the end with SAME_UPPER, else at the beginning. What
    is wanted beyond the full size is added at the end.
    """
    rank, mode = len(op.kernel), call.attr("auto_pad", "NOTSET")
    wanted = call.attr("output_shape", (None,) * rank)[-rank:]
    if wanted[0] is None and mode in ("NOTSET", "VALID"):
        return replace(op, pads=explicit_pads(call, rank))
    shape = call.x.shape
    sizes: Shape = (None,) * rank if shape is None else shape[-rank:]
    lengths = zip(op.kernel, op.stride, op.dilation, op.output_padding, strict=True)
    pads: list[tuple[int, int]] = []
    spares: list[int] = []
    for (k, step, d, spare), size, out in zip(lengths, sizes, wanted, strict=True):
        total = spare + d * (k - 1) + 1 - step
        if out is not None:
            if not isinstance(size, int):
                raise unknown("the size that it cuts its result from")
            total += step * size - out
        pads.append(layers.halved(max(total, 0), mode == "SAME_UPPER"))
        spares.append(spare + max(-total, 0))
    return replace(op, pads=tuple(pads), output_padding=tuple(spares))


def window_pads(call: Call, kernel: Ints, stride: Ints, dilation: Ints) -> Pads:
    mode = call.attr("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return explicit_pads(call, len(kernel))
    shape = call.x.shape
    sizes = (None,) * len(kernel) if shape is None else shape[-len(kernel) :]
    return layers.same_pads(sizes, kernel, stride, dilation, upper=mode == "SAME_UPPER")


def gemm(call: Call) -> Meaning:
    weight, bias = call.parameter(1, "weight"), call.added(2)
    if call.attr("transA", 0):
        raise not_linear("it transposes its data")
    factors = {"alpha": call.attr("alpha", 1.0), "beta": call.attr("beta", 1.0)}
    return layers.linear(call.x, weight, bias, flipped=not call.attr("transB", 0), **factors)


def batchnorm(call: Call) -> Meaning:
    gamma, beta, mean, var = (call.operand(index) for index in range(1, 5))
    training = _batch_statistics(call) or ""
    if call.opset < 9 and not call.attr("spatial", 1) and not training:
        flat = isinstance(gamma, Constant) and len(gamma.shape) == 1
        if not flat or len(call.x.shape or (0, 0)) > 2:
            why = "spatial is 0: it has statistics for every element, not for every channel"
            raise NotCoveredError(Reason.MISMATCHED_CHANNELS, why)
    eps = call.attr("epsilon", DEFAULT_EPSILON)
    return layers.batch_norm(call.x, mean, var, gamma, beta, eps, training=training)


def _batch_statistics(call: Call) -> str | None:
    """Why the node computes with the statistics of the batch, if it does."""
    if call.attr("training_mode", 0):
        return "training_mode is 1: it uses the statistics of the batch"
    if call.opset < 7 and not call.attr("is_test", 0):
        return "is_test is 0: it uses the statistics of the batch"
    if call.opset < 14 and len(call.node.outputs) > 1:
        several = f"it has {len(call.node.outputs)} outputs, which means training before opset 14"
        return f"{several}: it uses the statistics of the batch"
    if any(call.uses(i) for i in range(1, len(call.node.outputs))):
        return "its statistics outputs are used, which makes it a BatchNorm in training"
    return None


def embedding(call: Call) -> Meaning | None:
    """A Gather of the rows of a table that nothing but others like it reads; None if it is none."""
    table, indices = call.operand(0), call.operand(1)
    flat = isinstance(table, Constant) and len(table.shape) == 2 and call.attr("axis", 0) == 0
    if not flat or table.dtype not in EPSILON or isinstance(indices, Constant):
        return None
    source = call.value(0)
    assert source is not None
    if any((user.op_type, i) != ("Gather", 0) for user, i in source.uses()):
        why = "its table is read elsewhere, and would be stored twice"
        raise NotCoveredError(Reason.SHARED_MODULE, why)
    return layers.embedding(indices, call.parameter(0, "table"))


def recurrent(call: Call) -> Meaning:
    """LSTM, GRU and RNN: W [directions, rows, Cin], of B [directions, 2 rows] the first half."""
    w = call.parameter(1, "weight")
    if len(w.shape) != 3:
        raise not_linear(f"its weight has {len(w.shape)} axes")
    directions, rows, size = w.shape
    weight = replace(w, shape=(directions * rows, size), load=lambda: w.load().reshape(-1, size))
    b = call.added(3)
    bias = replace(
        weight,
        name=f"{call.name}.bias" if b is None else b.name,
        shape=(directions * rows,),
        load=lambda: np.zeros(directions * rows) if b is None else b.load()[:, :rows].reshape(-1),
    )
    read = [call.optional(i) for i in range(4, len(call.node.inputs))]
    states = [each for each in read if isinstance(each, Tensor)]
    return layers.recurrent(call.x, states, weight=weight, bias=bias)


def layer_norm(call: Call) -> Meaning:
    """LayerNormalization and RMSNormalization, over the last axis."""
    if call.x.axis(call.attr("axis", -1)) != call.x.rank - 1:
        raise not_linear("it normalises over several axes")
    if call.attr("stash_type", 1) != 1 or any(call.uses(i) for i in (1, 2)):
        raise not_linear("its statistics are read, or of another type")
    return _norm(call, centred=call.node.op_type != "RMSNormalization")


def group_norm(call: Call) -> Meaning:
    """Before opset 21 there is a weight for each group, not for each channel."""
    return _norm(call, groups=call.attr("num_groups"))


def instance_norm(call: Call) -> Meaning:
    return _norm(call, groups=call.x.size(1))


def _norm(call: Call, *, groups: int = 0, centred: bool = True) -> Meaning:
    eps = call.attr("epsilon", DEFAULT_EPSILON)
    weight, bias = call.parameter(1, "weight"), call.added(2)
    return layers.norm(call.x, weight, bias, eps, call.made, groups=groups, centred=centred)


def max_pool(call: Call) -> Meaning:
    if call.uses(1):
        raise not_linear("its indices are read")
    return _pool(call, "max")


def average_pool(call: Call) -> Meaning:
    return _pool(call, "avg")


def _pool(call: Call, kind: Kind) -> Meaning:
    """Pooling; where runtimes disagree on what an average divides by, `divisor` bars a shift."""
    kernel = call.attr("kernel_shape")
    ones = (1,) * len(kernel)
    stride, dilation = call.attr("strides", ones), call.attr("dilations", ones)
    pads = window_pads(call, kernel, stride, dilation)
    ceil = bool(call.attr("ceil_mode", 0))
    counted = bool(call.attr("count_include_pad", 0))
    unclear = kind == "avg" and ceil and (counted or any(lo or hi for lo, hi in pads))
    return spatial.pool(
        call.x,
        kind,
        kernel,
        stride,
        pads,
        dilation,
        ceil_mode=ceil,
        count_include_pad=counted,
        divisor=math.prod(kernel) if unclear else None,
    )


def global_pool(call: Call) -> Meaning:
    rank = call.x.rank
    if rank < 3:
        raise not_linear("it has no pixels")
    kind: Kind = "max" if call.node.op_type == "GlobalMaxPool" else "avg"
    return spatial.adaptive_pool(call.x, kind, (1,) * (rank - 2))
