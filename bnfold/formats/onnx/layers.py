"""What the ONNX operators with weights mean: convolutions, linear layers, BatchNormalization."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import from_batchnorm
from bnfold.algebra.graph import Affine, Conv, Linear, Pads, Shape
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.formats.onnx.call import (
    Call,
    Meaning,
    barred_by_parameters,
    explicit_pads,
    refused,
    window_pads,
)
from bnfold.formats.onnx.constants import DEFAULT_EPSILON


def conv(call: Call) -> Meaning | None:
    weight, bias = call.param(1), call.param(2)
    if weight is None or len(weight.shape) < 3 or (bias is None) != (call.value(2) is None):
        return barred_by_parameters(call)
    rank = len(weight.shape) - 2
    stride = call.attr("strides", (1,) * rank)
    dilation = call.attr("dilations", (1,) * rank)
    pads = window_pads(call, weight.shape[2:], stride, dilation)
    return Conv(weight, bias, stride, dilation, pads, call.attr("group", 1)), (0,)


def conv_transpose(call: Call) -> Meaning | None:
    weight, bias = call.param(1), call.param(2)
    if weight is None or len(weight.shape) < 3 or (bias is None) != (call.value(2) is None):
        return barred_by_parameters(call)
    ones = (1,) * (len(weight.shape) - 2)
    op = Conv(
        weight,
        bias,
        call.attr("strides", ones),
        call.attr("dilations", ones),
        (),
        call.attr("group", 1),
        transposed=True,
        output_padding=call.attr("output_padding", (0,) * len(ones)),
    )
    pads = _cut(call, op)
    return None if pads is None else (replace(op, pads=pads), (0,))


def _cut(call: Call, op: Conv) -> Pads | None:
    """What a transposed convolution cuts off; None if that depends on a size that is not known.

    full = stride * (size - 1) + spare + reach, of which `output_shape` is wanted, or with SAME
    stride * size; an odd one more is cut at the end with SAME_UPPER, else at the beginning.
    """
    rank, mode = len(op.kernel), call.attr("auto_pad", "NOTSET")
    wanted = call.attr("output_shape", (None,) * rank)[-rank:]
    if wanted[0] is None and mode in ("NOTSET", "VALID"):
        return explicit_pads(call, rank)
    shape = call.shape()
    sizes: Shape = (None,) * rank if shape is None else shape[-rank:]
    lengths = zip(op.kernel, op.stride, op.dilation, op.output_padding, strict=True)
    pads: list[tuple[int, int]] = []
    for (k, step, d, spare), size, out in zip(lengths, sizes, wanted, strict=True):
        total = spare + d * (k - 1) + 1 - step
        if out is not None:
            if not isinstance(size, int):
                return None
            total += step * size - out
        if total < 0:
            return None
        less, more = total // 2, total - total // 2
        pads.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return tuple(pads)


def gemm(call: Call) -> Meaning | None:
    shape = call.constant_shape(1)
    if call.attr("transA", 0) or shape is None or len(shape) != 2:
        return barred_by_parameters(call)
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    flip = not call.attr("transB", 0)
    out, features = shape[::-1] if flip else shape
    weight = call.param(1, lambda b: alpha * (b.T if flip else b), (out, features))
    bias = None
    if call.value(2) is not None:
        row = call.constant_shape(2)
        if row is None or not _is_row(row, out):
            return barred_by_parameters(call)
        bias = call.param(2, lambda c: np.broadcast_to(beta * c.reshape(-1), (out,)), (out,))
    if weight is None or (bias is None) != (call.value(2) is None):
        return None
    return Linear(weight, bias), (0,)


def _is_row(shape: tuple[int, ...], size: int) -> bool:
    return math.prod(shape) in (1, size) and (not shape or math.prod(shape) == shape[-1])


def batchnorm(call: Call) -> Meaning:
    why = _batch_statistics(call)
    if why is not None:
        return refused(call, Reason.BATCH_STATISTICS, why)
    if call.opset < 9 and not call.attr("spatial", 1):
        why = "spatial is 0: it has statistics for every element, not for every channel"
        return refused(call, Reason.MISMATCHED_CHANNELS, why)
    arrays = [call.numbers(i) for i in range(1, 5)]
    for name, array, index in zip(("scale", "B", "mean", "var"), arrays, range(1, 5), strict=True):
        if array is None:
            value = call.value(index)
            what = f"its {name} ({value.name if value else 'absent'})"
            return refused(call, Reason.NOT_CONSTANT, f"{what} is not a constant")
    gamma, beta, mean, var = (a for a in arrays if a is not None)
    found = from_batchnorm(1, mean, var, call.attr("epsilon", DEFAULT_EPSILON), gamma, beta)
    if isinstance(found, Refusal):
        return refused(call, found.reason, found.why)
    shape = call.shape()
    size = found.size if shape is None else shape[1] if len(shape) > 1 else 0
    if isinstance(size, int) and size != found.size:
        why = f"it has {found.size} channels, its input has the shape {list(shape or ())}"
        return refused(call, Reason.MISMATCHED_CHANNELS, why)
    return Affine(found), (0,)


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
