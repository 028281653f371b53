"""Evaluates a Graph in float64 with numpy: the oracle that every rule is held against.

The window kernels (`convolve`, `pool`) take plain arrays, so that other float64 evaluators can
use them. Layouts are those of `graph.py`; data is [N, C, *spatial].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Conv,
    Embedding,
    Graph,
    Identity,
    Linear,
    MatMul,
    Mean,
    Multiply,
    Node,
    Norm,
    Op,
    Pad,
    Pads,
    Param,
    PixelShuffle,
    Pool,
    Reshape,
    Resize,
    Take,
    Transpose,
    WeightedMean,
)

PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class NotEvaluableError(ValueError):
    """The graph has an operator whose meaning the neutral graph does not hold."""


def evaluate(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of `graph`, float64, for float64 `inputs` by name.

    Raises NotEvaluableError at an Opaque node.
    """
    values: dict[str, Array] = {name: np.asarray(a, np.float64) for name, a in inputs.items()}
    for node in graph.nodes:
        arguments = [values[name] for name in node.inputs]
        if isinstance(node.op, Take):
            for name, part in zip(node.outputs, node.op.parts, strict=True):
                if part is None:
                    raise NotEvaluableError(f"{node.name} ({node.kind}) leaves open what it takes")
                values[name] = arguments[0].take(part, node.op.axis)
        else:
            values[node.outputs[0]] = _apply(node, arguments)
    return {name: values[name] for name in graph.outputs}


def _apply(node: Node, x: list[Array]) -> Array:
    op: Op = node.op
    match op:
        case Conv():
            return convolve(x[0], op.weight.load(), _loaded(op.bias), op)
        case Linear():
            y = x[0] @ op.weight.load().T
            return np.asarray(y if op.bias is None else y + op.bias.load())
        case Embedding():
            return op.weight.load()[x[0].astype(np.intp)]
        case Norm():
            return _normalised(x[0], op)
        case Affine():
            return op.affine.on(x[0])
        case Add():
            factors = op.factors or (1.0,) * len(x)
            return reduce(np.add, [factor * a for factor, a in zip(factors, x, strict=True)])
        case Concat():
            return np.concatenate(x, op.axis)
        case Identity():
            return x[0]
        case Pool():
            return pool(x[0], op)
        case AdaptivePool():
            return _adaptive_pool(x[0], op)
        case Mean():
            reduced = x[0].sum if op.total else x[0].mean
            return np.asarray(reduced(op.axes, keepdims=op.keepdims))
        case Activation():
            return np.where(x[0] > 0, x[0], op.slope * x[0])
        case Pad():
            return _padded_anywhere(x[0], op)
        case Resize(factors=factors) if factors is not None:
            ones: Array = np.ones((1,) * (x[0].ndim - op.spatial) + factors)
            return np.asarray(np.kron(x[0], ones), np.float64)
        case WeightedMean() if len(x) == 2:
            weights, values = x if op.port == 1 else x[::-1]
            return np.asarray(weights @ values if op.axis == -2 else values @ weights)
        case Multiply():
            return np.asarray(x[0] * x[1])
        case MatMul():
            return np.asarray(x[0] @ x[1])
        case PixelShuffle():
            return _pixel_unshuffled(x[0], op) if op.inverse else _pixel_shuffled(x[0], op)
        case Reshape():
            return x[0].reshape(_reshaped(x[0].shape, op))
        case Transpose():
            return x[0].transpose(op.perm)
    raise NotEvaluableError(f"{node.name} ({node.kind}) has no float64 meaning here")


def _pixel_shuffled(x: Array, op: PixelShuffle) -> Array:
    *outer, channels, height, width = x.shape
    r, c, k = op.factor, channels // op.factor**2, len(outer)
    split = (r, r, c) if op.strided else (c, r, r)
    perm = (k + 2, k + 3, k, k + 4, k + 1) if op.strided else (k, k + 3, k + 1, k + 4, k + 2)
    y = x.reshape(*outer, *split, height, width).transpose(*range(k), *perm)
    return y.reshape(*outer, c, height * r, width * r)


def _pixel_unshuffled(x: Array, op: PixelShuffle) -> Array:
    *outer, c, height, width = x.shape
    r, k = op.factor, len(outer)
    y = x.reshape(*outer, c, height // r, r, width // r, r)
    perm = (k + 2, k + 4, k, k + 1, k + 3) if op.strided else (k, k + 2, k + 4, k + 1, k + 3)
    return y.transpose(*range(k), *perm).reshape(*outer, c * r * r, height // r, width // r)


def _normalised(x: Array, op: Norm) -> Array:
    lined = x.reshape(x.shape[0], op.groups, -1) if op.groups else x
    centre = lined.mean(-1, keepdims=True) if op.centred else 0.0
    spread = np.mean(np.square(lined - centre), -1, keepdims=True)
    made = ((lined - centre) / np.sqrt(spread + op.eps)).reshape(x.shape)
    shape = [-1 if axis == op.axis else 1 for axis in range(x.ndim)]
    scaled: Array = made * op.weight.load().reshape(shape)
    return scaled if op.bias is None else scaled + op.bias.load().reshape(shape)


def _loaded(param: Param | None) -> Array | None:
    return None if param is None else param.load()


def convolve(x: Array, weight: Array, bias: Array | None, op: Conv) -> Array:
    """The convolution that `op` describes, of x [N, Cin, *S] (or without N)."""
    rank = weight.ndim - 2
    batched = x.ndim == rank + 2
    data = x if batched else x[None]
    if op.transposed:
        y = _conv_transposed(data, weight, op)
    else:
        y = _conv(_padded(data, op.pads, op.pad_mode), weight, op)
    if bias is not None:
        y = y + bias.reshape(-1, *[1] * rank)
    return y if batched else y[0]


def _padded(x: Array, pads: Pads, mode: str, value: float = 0.0) -> Array:
    widths = [(0, 0), (0, 0), *pads]
    if mode == "zeros":
        return np.pad(x, widths, constant_values=value)
    return np.asarray(np.pad(x, widths, mode=PAD_MODES[mode]))  # type: ignore[call-overload]


def _padded_anywhere(x: Array, op: Pad) -> Array:
    crop = tuple(
        slice(max(-lo, 0), size - max(-hi, 0))
        for size, (lo, hi) in zip(x.shape, op.pads, strict=True)
    )
    widths = [(max(lo, 0), max(hi, 0)) for lo, hi in op.pads]
    if op.mode == "constant":
        return np.pad(x[crop], widths, constant_values=op.value)
    padded: Array = np.pad(x[crop], widths, mode=PAD_MODES[op.mode])  # type: ignore[call-overload]
    return padded


def _windows(
    x: Array, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Array:
    """View [N, C, *out, *kernel] of the windows of x [N, C, *S]."""
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    axes = tuple(range(2, x.ndim))
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
    steps = tuple(slice(None, None, s) for s in stride)
    taps = tuple(slice(None, None, d) for d in dilation)
    return view[:, :, *steps, *taps]


def _conv(x: Array, weight: Array, op: Conv) -> Array:
    rank = weight.ndim - 2
    view = _windows(x, weight.shape[2:], op.stride, op.dilation)
    n, out = x.shape[0], view.shape[2 : 2 + rank]
    width = weight.shape[0] // op.groups
    per = weight.shape[1]
    y = np.empty((n, weight.shape[0], *out))
    for g in range(op.groups):
        rows = slice(g * width, (g + 1) * width)
        taps = view[:, g * per : (g + 1) * per]
        # contract [N, per, *out, *K] with [width, per, *K] over per and K
        over = (1, *range(2 + rank, 2 + 2 * rank))
        part = np.tensordot(weight[rows], taps, (tuple(range(1, rank + 2)), over))
        y[:, rows] = np.moveaxis(part, 0, 1)
    return y


def _conv_transposed(x: Array, weight: Array, op: Conv) -> Array:
    n, cin, *size = x.shape
    per, kernel = weight.shape[1], weight.shape[2:]
    spare = op.output_padding or (0,) * len(kernel)
    full = [
        (s - 1) * st + d * (k - 1) + 1 + extra
        for s, st, d, k, extra in zip(size, op.stride, op.dilation, kernel, spare, strict=True)
    ]
    y = np.zeros((n, per * op.groups, *full))
    width = cin // op.groups
    for g in range(op.groups):
        rows = slice(g * width, (g + 1) * width)
        out = y[:, g * per : (g + 1) * per]
        for tap in product(*map(range, kernel)):
            where = tuple(
                slice(t * d, t * d + (s - 1) * st + 1, st)
                for t, d, s, st in zip(tap, op.dilation, size, op.stride, strict=True)
            )
            column: tuple[Any, ...] = (rows, slice(None), *tap)
            part = np.tensordot(weight[column], x[:, rows], ((0,), (1,)))
            out[:, :, *where] += np.moveaxis(part, 0, 1)
    crop = tuple(slice(lo, f - hi) for (lo, hi), f in zip(op.pads, full, strict=True))
    return y[:, :, *crop]


def pool(x: Array, op: Pool) -> Array:
    """Pooling of x [N, C, *S] (or without N); averages divide as torch.nn.AvgPool2d documents."""
    rank = len(op.kernel)
    if x.ndim == rank + 1:
        return np.asarray(pool(x[None], op)[0])
    dilation = op.dilation or (1,) * rank
    sizes = x.shape[2:]
    grown, out = _pool_extent(sizes, op, dilation)
    axes = tuple(range(2 + rank, 2 + 2 * rank))
    keep = tuple(slice(0, o) for o in out)

    def windows(a: Array, pads: Pads, outside: float) -> Array:
        view = _windows(_padded(a, pads, "zeros", outside), op.kernel, op.stride, dilation)
        return view[:, :, *keep]

    if op.kind == "max":
        return np.asarray(windows(x, grown, -math.inf).max(axes))
    total: Array = windows(x, grown, 0.0).sum(axes)
    if op.divisor is not None:
        return total / op.divisor
    ones = np.ones((1, 1, *sizes))
    if op.count_include_pad:
        ones = _padded(ones, op.pads, "zeros", 1.0)
        grown = tuple((0, end - hi) for (_, end), (_, hi) in zip(grown, op.pads, strict=True))
    return np.asarray(total / windows(ones, grown, 0.0).sum(axes))


def _pool_extent(
    sizes: tuple[int, ...], op: Pool, dilation: tuple[int, ...]
) -> tuple[Pads, list[int]]:
    """Pads with which every window lies inside, and the number of windows, by dimension."""
    grown: list[tuple[int, int]] = []
    out: list[int] = []
    for size, k, stride, (lo, hi), d in zip(
        sizes, op.kernel, op.stride, op.pads, dilation, strict=True
    ):
        windows = pooled_size(size, k, stride, lo + hi, lo, d, op.ceil_mode)
        last = (windows - 1) * stride + d * (k - 1) + 1
        grown.append((lo, max(last - size - lo, hi)))
        out.append(windows)
    return tuple(grown), out


def pooled_size(
    size: int, kernel: int, stride: int, pads: int, begin: int, dilation: int, ceil: bool
) -> int:
    """The number of windows; a window that starts beyond input and begin pad is dropped."""
    span = size + pads - dilation * (kernel - 1) - 1
    windows = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (windows - 1) * stride >= size + begin:
        windows -= 1
    return windows


def _adaptive_pool(x: Array, op: AdaptivePool) -> Array:
    rank = len(op.output_size)
    reducers: dict[str, Callable[..., Array]] = {"max": np.max, "min": np.min, "avg": np.mean}
    reduce_ = reducers[op.kind]
    for axis, want in zip(range(x.ndim - rank, x.ndim), op.output_size, strict=True):
        size = x.shape[axis]
        out = size if want is None else int(want)
        parts = [
            reduce_(
                x.take(range(i * size // out, -(-(i + 1) * size // out)), axis),
                axis=axis,
                keepdims=True,
            )
            for i in range(out)
        ]
        x = np.concatenate(parts, axis)
    return x


def _reshaped(shape: tuple[int, ...], op: Reshape) -> tuple[int, ...]:
    """The target with its unknown sizes worked out, at most one a group."""
    sizes: list[int] = []
    for merged, split in op.groups:
        wanted = [size if isinstance(size := op.target[j], int) else -1 for j in split]
        sizes += np.empty([shape[i] for i in merged], np.bool_).reshape(tuple(wanted)).shape
    return tuple(sizes)
