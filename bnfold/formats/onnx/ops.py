"""What each ONNX operator means: one function per family, one table at the end.

A function answers with the neutral op and the values that it reads, or None if the node is not
known to be anything but Opaque. Parameters must be constants of a floating type, in the layout of
`bnfold.graph`; constants of arithmetic are aligned from the right, as broadcasting is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.affine import Array, ChannelAffine
from bnfold.formats.onnx import arrangement
from bnfold.formats.onnx import layers as onnx_layers
from bnfold.formats.onnx.call import Call, Meaning, refused, window_pads
from bnfold.graph import (
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Identity,
    Mean,
    Pool,
    Shape,
    Transpose,
)
from bnfold.refusal import Reason
from bnfold.reshaping import reshape


def meaning(call: Call) -> Meaning | None:
    """What `call` does, if it is known."""
    if call.node.domain != "":
        return None
    function = MEANINGS.get(call.node.op_type)
    return None if function is None else function(call)


def _arithmetic(call: Call) -> Meaning | None:
    """Add, Sub, Mul and Div by a constant; the sum and difference of two values."""
    kind = call.node.op_type
    if call.opset < 7:
        return None
    constant = [i for i in (0, 1) if call.is_constant(i)]
    if not constant:
        signs = {"Add": (1.0, 1.0), "Sub": (1.0, -1.0)}.get(kind)
        return None if signs is None else (Add(signs), (0, 1))
    (c,) = constant[:1]
    numbers = call.numbers(c)
    if numbers is None or (kind == "Div" and c == 0):
        return None
    axis = _channels(numbers.shape, call.shape(1 - c))
    if axis == "none":
        return None
    with np.errstate(divide="ignore", over="ignore"):
        affine = _affine_of(kind, c, axis, numbers.reshape(-1))
    if not np.all(np.isfinite((affine.scale, affine.shift))):
        why = "its constant is not finite, or a division by zero"
        return refused(call, Reason.NON_FINITE, why, batchnorm=False)
    holds: Any = "scale" if kind in ("Mul", "Div") else "shift"
    return Affine(affine, batchnorm=False, holds=holds), (1 - c,)


def _affine_of(kind: str, c: int, axis: Any, numbers: Array) -> ChannelAffine:
    one, zero = np.ones_like(numbers), np.zeros_like(numbers)
    match kind:
        case "Mul":
            return ChannelAffine.on_axis(axis, numbers, zero)
        case "Div":
            return ChannelAffine.on_axis(axis, 1 / numbers, zero)
        case "Sub" if c == 1:
            return ChannelAffine.on_axis(axis, one, -numbers)
        case "Sub":
            return ChannelAffine.on_axis(axis, -one, numbers)
    return ChannelAffine.on_axis(axis, one, numbers)


def _channels(constant: tuple[int, ...], shape: Shape | None) -> Any:
    """The axis of a value of `shape` that a constant lies on; None for a scalar, else "none".

    It may neither add an axis nor stretch one, so the rank and the size must be known, but for a
    constant of rank 0.
    """
    if not constant:
        return None
    if shape is None or len(constant) > len(shape):
        return "none"
    wide = [i for i, size in enumerate(constant) if size != 1]
    if not wide:
        return None
    axis = wide[0] + len(shape) - len(constant)
    return axis if len(wide) == 1 and shape[axis] == constant[wide[0]] else "none"


def _sum(call: Call) -> Meaning | None:
    return (Add(), tuple(range(len(call.node.inputs)))) if call.opset >= 8 else None


def _concat(call: Call) -> Meaning | None:
    axis = _axis(call.attr("axis", 1), call.out_shape)
    return None if axis is None else (Concat(axis), tuple(range(len(call.node.inputs))))


def _axis(axis: int, shape: Shape | None) -> int | None:
    if axis >= 0:
        return axis
    return None if shape is None else axis + len(shape)


def _identity(call: Call) -> Meaning | None:
    return Identity(), (0,)


def _dropout(call: Call) -> Meaning | None:
    if call.uses(1) or (call.opset < 7 and not call.attr("is_test", 0)):
        return None
    if call.value(2) is not None:
        training = call.array(2)
        if training is None or bool(training):
            return None
    return Identity(), (0,)


def _cast(call: Call) -> Meaning | None:
    value, made = call.value(0), call.node.outputs[0]
    if value is None or call.values.dtype(value) is None:
        return None
    return (Identity(), (0,)) if call.values.dtype(value) == call.values.dtype(made) else None


def _max_pool(call: Call) -> Meaning | None:
    return None if call.uses(1) else (_pool(call, "max"), (0,))


def _average_pool(call: Call) -> Meaning | None:
    return _pool(call, "avg"), (0,)


def _pool(call: Call, kind: Any) -> Pool:
    """Pooling; where runtimes disagree on what an average divides by, `divisor` bars a shift."""
    kernel = call.attr("kernel_shape")
    ones = (1,) * len(kernel)
    stride, dilation = call.attr("strides", ones), call.attr("dilations", ones)
    pads = window_pads(call, kernel, stride, dilation)
    ceil = bool(call.attr("ceil_mode", 0))
    counted = bool(call.attr("count_include_pad", 0))
    unclear = kind == "avg" and ceil and (counted or any(lo or hi for lo, hi in pads))
    divisor = math.prod(kernel) if unclear else None
    return Pool(kind, kernel, stride, pads, dilation, ceil, counted, divisor)


def _global_pool(call: Call) -> Meaning | None:
    shape = call.shape()
    if shape is None or len(shape) < 3:
        return None
    kind: Any = "max" if call.node.op_type == "GlobalMaxPool" else "avg"
    return AdaptivePool(kind, (1,) * (len(shape) - 2)), (0,)


def _reduce_mean(call: Call) -> Meaning | None:
    shape = call.shape()
    if shape is None:
        return None
    axes = call.attr("axes")
    if call.value(1) is not None:
        found = call.array(1)
        if found is None:
            return None
        axes = tuple(found.reshape(-1).tolist())
    if not axes:
        if call.attr("noop_with_empty_axes", 0):
            return Identity(), (0,)
        axes = range(len(shape))
    where = tuple(sorted(axis % len(shape) for axis in axes))
    return Mean(where, bool(call.attr("keepdims", 1))), (0,)


def _relu(call: Call) -> Meaning | None:
    return Activation(np.zeros(())), (0,)


def _leaky_relu(call: Call) -> Meaning | None:
    return Activation(np.array(call.attr("alpha", 0.01), np.float64)), (0,)


def _prelu(call: Call) -> Meaning | None:
    slope = call.numbers(1)
    return None if slope is None or call.opset < 7 else (Activation(slope), (0,))


def _reshape(call: Call) -> Meaning | None:
    """Reshape, Flatten, Squeeze, Unsqueeze, as far as the shapes on both sides are known."""
    source, target, sizes = call.shape(), call.out_shape, call.value(1)
    if source is None or target is None or (sizes is not None and sizes.is_graph_input()):
        return None
    found = reshape(source, target)
    return None if found is None else (found, (0,))


def _transpose(call: Call) -> Meaning | None:
    shape, perm = call.shape(), call.attr("perm")
    if perm is None:
        if shape is None:
            return None
        perm = tuple(reversed(range(len(shape))))
    return Transpose(perm), (0,)


MEANINGS: dict[str, Callable[[Call], Meaning | None]] = {
    "Conv": onnx_layers.conv,
    "ConvTranspose": onnx_layers.conv_transpose,
    "Gemm": onnx_layers.gemm,
    "MatMul": onnx_layers.matmul,
    "BatchNormalization": onnx_layers.batchnorm,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Sum": _sum,
    "Concat": _concat,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Split": arrangement.split,
    "Slice": arrangement.slice_,
    "Gather": arrangement.gather,
    "Pad": arrangement.pad,
    "Resize": arrangement.resize,
    "Upsample": arrangement.resize,
}
