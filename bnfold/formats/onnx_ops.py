"""What each ONNX operator means: one function per family, one table at the end.

A function answers with the neutral op and the values that it reads, or None if the node is not
known to be anything but Opaque. Parameters must be constants of a floating type, in the layout of
`bnfold.graph`; constants of arithmetic are aligned from the right, as broadcasting is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.affine import Array, ChannelAffine, from_batchnorm
from bnfold.formats.onnx_values import Native, Values, attribute
from bnfold.graph import (
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Conv,
    Identity,
    Linear,
    Mean,
    Op,
    Opaque,
    Pads,
    Param,
    Pool,
    Shape,
    Transpose,
    reshape,
)
from bnfold.refusal import Reason, Refusal
from bnfold.rounding import EPSILON

Meaning = tuple[Op, tuple[int, ...]]
"""A neutral op and the indices of the native inputs that it reads."""


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """A native node with what is known of its inputs; `name` is its neutral name."""

    node: ir.Node
    name: str
    opset: int
    values: Values

    def attr(self, name: str, default: Any = None) -> Any:
        return attribute(self.node, name, default)

    def value(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def shape(self, index: int = 0) -> Shape | None:
        value = self.value(index)
        return None if value is None else self.values.shape(value)

    @property
    def out_shape(self) -> Shape | None:
        return self.values.shape(self.node.outputs[0])

    def is_constant(self, index: int) -> bool:
        value = self.value(index)
        return value is not None and self.values.is_constant(value)

    def array(self, index: int) -> Native | None:
        value = self.value(index)
        return None if value is None else self.values.array(value)

    def numbers(self, index: int) -> Array | None:
        """A constant of a floating type, as float64."""
        found = self.array(index)
        if found is None or found.dtype.name not in EPSILON:
            return None
        return found.astype(np.float64)

    def param(self, index: int, change: Callable[[Array], Array] = lambda a: a) -> Param | None:
        """A constant input of a floating type as a parameter, after `change` of its layout."""
        value = self.value(index)
        found = self.array(index)
        if value is None or found is None or found.dtype.name not in EPSILON:
            return None
        shape = change(np.broadcast_to(np.zeros(()), found.shape)).shape
        values = self.values

        def load() -> Array:
            native = values.array(value)
            assert native is not None
            return change(native.astype(np.float64))

        return Param(value.name or self.name, shape, found.dtype.name, load)

    def uses(self, output: int) -> bool:
        """Whether anything reads the output of that index, or it leaves its graph."""
        if output >= len(self.node.outputs):
            return False
        value = self.node.outputs[output]
        return bool(value.uses()) or value.is_graph_output()


def meaning(call: Call) -> Meaning | None:
    """What `call` does, if it is known."""
    if call.node.domain != "":
        return None
    function = MEANINGS.get(call.node.op_type)
    return None if function is None else function(call)


def _conv(call: Call) -> Meaning | None:
    weight = call.param(1)
    bias = call.param(2)
    if weight is None or len(weight.shape) < 3 or (bias is None) != (call.value(2) is None):
        return None
    rank = len(weight.shape) - 2
    stride = call.attr("strides", (1,) * rank)
    dilation = call.attr("dilations", (1,) * rank)
    pads = _pads(call, weight.shape[2:], stride, dilation)
    return Conv(weight, bias, stride, dilation, pads, call.attr("group", 1)), (0,)


def _conv_transpose(call: Call) -> Meaning | None:
    weight, bias = call.param(1), call.param(2)
    if weight is None or len(weight.shape) < 3 or (bias is None) != (call.value(2) is None):
        return None
    if call.attr("output_shape") or call.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    rank = len(weight.shape) - 2
    ones = (1,) * rank
    op = Conv(
        weight,
        bias,
        call.attr("strides", ones),
        call.attr("dilations", ones),
        _explicit_pads(call, rank),
        call.attr("group", 1),
        transposed=True,
        output_padding=call.attr("output_padding", (0,) * rank),
    )
    return op, (0,)


def _explicit_pads(call: Call, rank: int) -> Pads:
    flat = call.attr("pads", (0,) * (2 * rank))
    if call.attr("auto_pad", "NOTSET") == "VALID":
        flat = (0,) * (2 * rank)
    return tuple(zip(flat[:rank], flat[rank:], strict=True))


def _pads(
    call: Call, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Pads:
    """The pads; those that depend on an unknown size are given as (1, 1), which no shift passes."""
    mode = call.attr("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return _explicit_pads(call, len(kernel))
    shape = call.shape()
    sizes = (None,) * len(kernel) if shape is None else shape[-len(kernel) :]
    pads: list[tuple[int, int]] = []
    for size, k, step, d in zip(sizes, kernel, stride, dilation, strict=True):
        reach = d * (k - 1) + 1
        if step == 1 or reach == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max((-(-size // step) - 1) * step + reach - size, 0)
        else:
            pads.append((1, 1))
            continue
        less, more = total // 2, total - total // 2
        pads.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return tuple(pads)


def _gemm(call: Call) -> Meaning | None:
    if call.attr("transA", 0):
        return None
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    flip = not call.attr("transB", 0)
    weight = call.param(1, lambda b: alpha * (b.T if flip else b))
    if weight is None or len(weight.shape) != 2:
        return None
    out, bias = weight.shape[0], None
    if call.value(2) is not None:
        found = call.array(2)
        if found is None or not _is_row(found.shape, out):
            return None
        bias = call.param(2, lambda c: np.broadcast_to(beta * c.reshape(-1), (out,)))
        if bias is None:
            return None
    return Linear(weight, bias), (0,)


def _is_row(shape: tuple[int, ...], size: int) -> bool:
    return math.prod(shape) in (1, size) and (not shape or math.prod(shape) == shape[-1])


def _matmul(call: Call) -> Meaning | None:
    weight = call.param(1, lambda b: b.T)
    rank = None if call.shape() is None else len(call.shape() or ())
    if weight is None or len(weight.shape) != 2 or rank == 0:
        return None
    return Linear(weight), (0,)


def _batchnorm(call: Call) -> Meaning:
    why = _batch_statistics(call)
    if why is not None:
        return _refused(call, Reason.BATCH_STATISTICS, why)
    arrays = [call.numbers(i) for i in range(1, 5)]
    for name, array, index in zip(("scale", "B", "mean", "var"), arrays, range(1, 5), strict=True):
        if array is None:
            value = call.value(index)
            what = f"its {name} ({value.name if value else 'absent'})"
            return _refused(call, Reason.NOT_CONSTANT, f"{what} is not a constant")
    gamma, beta, mean, var = (a for a in arrays if a is not None)
    found = from_batchnorm(1, mean, var, call.attr("epsilon", 1e-5), gamma, beta)
    if isinstance(found, Refusal):
        return _refused(call, found.reason, found.why)
    shape = call.shape()
    size = found.size if shape is None else shape[1] if len(shape) > 1 else 0
    if isinstance(size, int) and size != found.size:
        why = f"it has {found.size} channels, its input has the shape {list(shape or ())}"
        return _refused(call, Reason.MISMATCHED_CHANNELS, why)
    return Affine(found), (0,)


def _batch_statistics(call: Call) -> str | None:
    """Why the node computes with the statistics of the batch, if it does."""
    if call.attr("training_mode", 0):
        return "training_mode is 1: it uses the statistics of the batch"
    if call.opset < 7 and not call.attr("is_test", 0):
        return "is_test is 0: it uses the statistics of the batch"
    if any(call.uses(i) for i in range(1, len(call.node.outputs))):
        return "its statistics outputs are used, which makes it a BatchNorm in training"
    return None


def _refused(call: Call, reason: Reason, why: str, *, batchnorm: bool = True) -> Meaning:
    refusal = Refusal(reason, f"{call.name} ({call.node.op_type}): {why}", call.name)
    return Opaque(refusal, batchnorm), tuple(range(len(call.node.inputs)))


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
        return _refused(call, Reason.NON_FINITE, why, batchnorm=False)
    holds: Any = "scale" if kind in ("Mul", "Div") else "shift"
    return Affine(affine, batchnorm=False, holds=holds), (1 - c,)


def _affine_of(kind: str, c: int, axis: Any, numbers: Array) -> ChannelAffine:
    one, zero = np.ones_like(numbers), np.zeros_like(numbers)
    match kind:
        case "Mul":
            return ChannelAffine(axis, numbers, zero)
        case "Div":
            return ChannelAffine(axis, 1 / numbers, zero)
        case "Sub" if c == 1:
            return ChannelAffine(axis, one, -numbers)
        case "Sub":
            return ChannelAffine(axis, -one, numbers)
    return ChannelAffine(axis, one, numbers)


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
    pads = _pads(call, kernel, stride, dilation)
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
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batchnorm,
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
}
