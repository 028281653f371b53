"""What each ONNX operator means: one function per family, one table at the end.

A function answers with the neutral op and the values that it reads, or None if the node is not
known to be anything but Opaque. Parameters must be constants of a floating type, in the layout of
`bnfold.algebra.graph`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Concat,
    Identity,
    Mean,
    Pool,
    Shape,
    Transpose,
)
from bnfold.algebra.refusal import Reason
from bnfold.algebra.reshaping import reshape
from bnfold.algebra.rounding import EPSILON
from bnfold.formats.onnx import arithmetic, arrangement, products
from bnfold.formats.onnx import layers as onnx_layers
from bnfold.formats.onnx.call import Call, Meaning, barred, window_pads

LARGEST = float(np.finfo(np.float32).max)
"""An upper limit from which on nothing is cut."""


def meaning(call: Call) -> Meaning | None:
    """What `call` does, if it is known."""
    if not call.values.is_standard(call.node):
        return None
    function = MEANINGS.get(call.node.op_type)
    return None if function is None else function(call)


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
    """Cast and CastLike to the same type; between others a value is rounded."""
    value, made = call.value(0), call.node.outputs[0]
    before, after = None if value is None else call.values.dtype(value), call.values.dtype(made)
    if before is None or after is None:
        return None
    if before == after:
        return Identity(), (0,)
    if before not in EPSILON or after not in EPSILON:
        return None
    return barred(call, Reason.PRECISION, f"it turns {before} into {after}")[0], (0,)


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
    where = _reduced_axes(call)
    if where is None:
        return None
    return (Mean(where, bool(call.attr("keepdims", 1))) if where else Identity()), (0,)


def _reduce_max(call: Call) -> Meaning | None:
    """The maximum over the last axes, which stay."""
    shape, where = call.shape(), _reduced_axes(call)
    if shape is None or not where or not call.attr("keepdims", 1):
        return None
    last = where == tuple(range(where[0], len(shape)))
    return (AdaptivePool("max", (1,) * len(where)), (0,)) if last else None


def _reduced_axes(call: Call) -> tuple[int, ...] | None:
    """The axes of a reduction in order; none if it does nothing, None if they are not known."""
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
            return ()
        axes = range(len(shape))
    return tuple(sorted(axis % len(shape) for axis in axes))


def _relu(call: Call) -> Meaning | None:
    return Activation(np.zeros(())), (0,)


def _leaky_relu(call: Call) -> Meaning | None:
    return Activation(np.array(call.attr("alpha", 0.01), np.float64)), (0,)


def _clip(call: Call) -> Meaning | None:
    """A ReLU, if it is one: nothing below zero, and everything above."""
    least, most = call.attr("min", -math.inf), call.attr("max", math.inf)
    if call.opset >= 11:
        given = [call.numbers(i) for i in (1, 2)]
        if any(call.value(i) is not None and n is None for i, n in zip((1, 2), given, strict=True)):
            return None
        least, most = (
            default if numbers is None else float(numbers.reshape(-1)[0])
            for default, numbers in zip((-math.inf, math.inf), given, strict=True)
        )
    return _relu(call) if least == 0 and most >= LARGEST else None


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
    "MatMul": products.matmul,
    "Einsum": products.einsum,
    "Attention": products.attention,
    "BatchNormalization": onnx_layers.batchnorm,
    "Add": arithmetic.binary,
    "Sub": arithmetic.binary,
    "Mul": arithmetic.binary,
    "Div": arithmetic.binary,
    "Sum": arithmetic.sum_,
    "Neg": arithmetic.negation,
    "Concat": _concat,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "ReduceMean": _reduce_mean,
    "ReduceMax": _reduce_max,
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "Clip": _clip,
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
    "Expand": arrangement.expand,
    "Tile": arrangement.tile,
    "DepthToSpace": arrangement.depth_to_space,
    "SpaceToDepth": arrangement.space_to_depth,
}
