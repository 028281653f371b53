"""float64 kernels for onnx.reference, where its own are slow, inexact or forget the opset.

Importing this module imports onnx.reference. Each class is named after the operator it replaces;
attributes arrive by name, those that are absent as None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_loop import Loop as SlowLoop
from onnx.reference.ops.op_max_pool import MaxPool as SlowMaxPool
from onnx.reference.ops.op_resize import Resize as NewestResize

from bnfold.algebra import graph, reference
from bnfold.algebra.affine import Array
from bnfold.algebra.graph import Pads, Param
from bnfold.formats.onnx.constants import DEFAULT_EPSILON

Results = tuple[NDArray[Any], ...]


class NoFloat64Error(ValueError):
    """An operator has no float64 result, or not the same one twice."""


class Conv(OpRun):
    def _run(self, x: Array, weight: Array, bias: Array | None = None, **a: Any) -> Results:
        kernel = weight.shape[2:]
        op = _conv_op(weight, a, _pads(a, x.shape[2:], kernel))
        return (reference.convolve(x, weight, bias, op),)


class ConvTranspose(OpRun):
    def _run(self, x: Array, weight: Array, bias: Array | None = None, **a: Any) -> Results:
        kernel = weight.shape[2:]
        spare = _filled(a, "output_padding", kernel, 0)
        op = _conv_op(weight, a, _transposed_pads(a, x.shape[2:], kernel, spare), spare)
        return (reference.convolve(x, weight, bias, op),)


class MaxPool(SlowMaxPool):
    def _run(self, x: Array, **a: Any) -> Results:  # type: ignore[override]
        if len(self.onnx_node.output) > 1:
            results: Results = super()._run(x, **a)  # type: ignore[no-untyped-call]
            return results
        return (reference.pool(x, _pool_op("max", a, x.shape[2:])),)


class AveragePool(OpRun):
    def _run(self, x: Array, **a: Any) -> Results:
        return (reference.pool(x, _pool_op("avg", a, x.shape[2:])),)


class GlobalMaxPool(OpRun):
    def _run(self, x: Array) -> Results:
        return (x.max(tuple(range(2, x.ndim)), keepdims=True),)


class BatchNormalization(OpRun):
    def _run(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, **a: Any
    ) -> Results:
        training = self._is_training(a)
        several = len(self.onnx_node.output) > 1
        lined = (1, *gamma.shape, *[1] * (x.ndim - 1 - gamma.ndim))
        keep = 0.9 if a.get("momentum") is None else a["momentum"]
        statistics: list[Array] = [mean, var]
        if training:
            others = (0, *range(2, x.ndim))
            old, (mean, var) = statistics, (x.mean(others), x.var(others))
            statistics = [keep * old[0] + (1 - keep) * mean, keep * old[1] + (1 - keep) * var]
        epsilon = DEFAULT_EPSILON if a.get("epsilon") is None else a["epsilon"]
        scale = gamma.reshape(lined) / np.sqrt(var.reshape(lined) + epsilon)
        y = (x - mean.reshape(lined)) * scale + beta.reshape(lined)
        return (y, *statistics) if several else (y,)

    def _is_training(self, a: dict[str, Any]) -> bool:
        opset = self.run_params["opsets"].get("", 1)
        if opset >= 14:
            return bool(a.get("training_mode"))
        if len(self.onnx_node.output) > 1:
            raise NoFloat64Error("before opset 14, training is not defined well enough")
        return opset < 7 and not a.get("is_test")


class Dropout(OpRun):
    def _run(
        self, x: Array, ratio: Array | None = None, training: Any = False, **a: Any
    ) -> Results:
        opset = self.run_params["opsets"].get("", 1)
        if opset < 7:
            training = not a.get("is_test")
        if training is not None and bool(training) and (ratio is None or float(ratio) != 0):
            raise NoFloat64Error("a Dropout that is active")
        return (x, np.ones(x.shape, np.bool_)) if len(self.onnx_node.output) > 1 else (x,)


class Softmax(OpRun):
    def _run(self, x: Array, **a: Any) -> Results:
        return (np.exp(_log_softmax(self, x)),)


class LogSoftmax(OpRun):
    def _run(self, x: Array, **a: Any) -> Results:
        return (_log_softmax(self, x),)


class Erf(OpRun):
    def _run(self, x: Array) -> Results:
        return (_erf(x),)


class Gelu(OpRun):
    def _run(self, x: Array, approximate: str | None = None) -> Results:
        if approximate == "tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return (0.5 * x * (1 + np.tanh(inner)),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


class LRN(OpRun):
    def _run(self, x: Array, size: int, **a: Any) -> Results:
        alpha, beta, bias = (
            default if a.get(name) is None else a[name]
            for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
        )
        before = (size - 1) // 2
        widths = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x**2, widths), size, axis=1)
        return (x / (bias + alpha / size * windows.sum(-1)) ** beta,)


class QuantizeLinear(OpRun):
    def _run(self, x: Array, scale: Array, zero: Any = None, **a: Any) -> Results:
        dtype = np.dtype(np.uint8) if zero is None else zero.dtype
        given = a.get("output_dtype")
        if zero is None and given:
            dtype = np.dtype(tensor_dtype_to_np_dtype(given))
        if dtype.kind not in "iu":
            raise NoFloat64Error(f"it quantises to {dtype.name}")
        steps = np.rint(x / _by_axis(x, a, scale)) + _by_axis(x, a, zero)
        return (steps.clip(np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype),)


class DequantizeLinear(OpRun):
    def _run(self, x: NDArray[Any], scale: Array, zero: Any = None, **a: Any) -> Results:
        return ((x.astype(np.float64) - _by_axis(x, a, zero)) * _by_axis(x, a, scale),)


class Resize(NewestResize):
    def _run(  # type: ignore[override]
        self, x: Array, roi: Any = None, scales: Any = None, sizes: Any = None, **a: Any
    ) -> Results:
        if self.run_params["opsets"].get("", 1) < 11:
            return _resized_as_of_old(self, x, roi, a["mode"])
        if a.get("axes"):
            a["axes"] = [axis % x.ndim for axis in a["axes"]]
        elif scales is not None and len(scales):
            if a.get("coordinate_transformation_mode") == "align_corners":
                scales = [math.floor(n * s) / n for n, s in zip(x.shape, scales, strict=True)]
            sizes = None
        results: Results = super()._run(x, roi, scales, sizes, **a)
        return results


class Upsample(NewestResize):
    def _run(  # type: ignore[override]
        self, x: Array, scales: Any, mode: str = "nearest", **a: Any
    ) -> Results:
        return _resized_as_of_old(self, x, scales, mode)


class Loop(SlowLoop):
    """onnx's runs nothing where no condition is given, and joins what it should stack."""

    body: Any
    _run_body: Any

    def _run(  # type: ignore[override]
        self,
        most: NDArray[Any] | None,
        going: NDArray[Any] | None,
        *state: Any,
        context: Mapping[str, Any] | None = None,
        **a: Any,
    ) -> Results:
        body, carried, scans = self.body, list(state), list[list[Any]]()
        going = np.array(True) if going is None else going
        while np.all(going) and (most is None or len(scans) < most):
            own = zip(body.input_names, (np.array(len(scans)), going, *carried), strict=True)
            given = {key: a.get(key) for key in ("attributes", "bindings")}
            going, *made = self._run_body({**(context or {}), **dict(own)}, **given)
            carried = made[: self.N]
            scans.append(made[self.N :])
        if self.K and not scans:
            raise NoFloat64Error("it runs no iteration, so that what it collects has no shape")
        return (*carried, *(np.stack(entries) for entries in zip(*scans, strict=True)))


KERNELS: tuple[type[OpRun], ...] = (
    Loop,
    Conv,
    ConvTranspose,
    MaxPool,
    AveragePool,
    GlobalMaxPool,
    BatchNormalization,
    Dropout,
    Softmax,
    LogSoftmax,
    Erf,
    Gelu,
    LRN,
    QuantizeLinear,
    DequantizeLinear,
    Resize,
    Upsample,
)


def _by_axis(x: NDArray[Any], a: dict[str, Any], values: Any) -> Array:
    """Scales or zero points as x needs them: one, or one for each index or block of an axis."""
    axis = 1 if a.get("axis") is None else a["axis"]
    wide: Array = np.asarray(0 if values is None else values).astype(np.float64)
    if a.get("block_size") and values is not None:
        return np.repeat(wide, a["block_size"], axis).take(range(x.shape[axis]), axis)
    if wide.size == 1:
        return wide.reshape(())
    return wide.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def _resized_as_of_old(node: NewestResize, x: Array, scales: Any, mode: str) -> Results:
    """Resize 10 and Upsample 9: asymmetric coordinates, rounded down."""
    how = {
        "mode": mode,
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
        "keep_aspect_ratio_policy": "stretch",
    }
    results: Results = NewestResize._run(node, x, None, scales, None, **how)
    return results


def _erf(x: Array) -> Array:
    values = np.fromiter((math.erf(v) for v in x.flat), np.float64, x.size)
    return values.reshape(x.shape)


def _log_softmax(node: OpRun, x: Array) -> Array:
    """Along one axis, from opset 13 on; before, over that axis and all that follow."""
    given = {entry.name: entry.i for entry in node.onnx_node.attribute}
    if node.run_params["opsets"].get("", 1) >= 13:
        axes: tuple[int, ...] = (given.get("axis", -1) % max(x.ndim, 1),)
    else:
        axes = tuple(range(given.get("axis", 1) % (x.ndim + 1), x.ndim))
    shifted = x - x.max(axes, keepdims=True, initial=-math.inf)
    total: Array = shifted - np.log(np.exp(shifted).sum(axes, keepdims=True))
    return total


def _filled(a: dict[str, Any], name: str, kernel: Sequence[int], default: int) -> tuple[int, ...]:
    return tuple(a.get(name) or (default,) * len(kernel))


def _conv_op(
    weight: Array, a: dict[str, Any], pads: Pads, spare: tuple[int, ...] | None = None
) -> graph.Conv:
    kernel = weight.shape[2:]
    return graph.Conv(
        Param("W", weight.shape, "float64", lambda: weight),
        stride=_filled(a, "strides", kernel, 1),
        dilation=_filled(a, "dilations", kernel, 1),
        pads=pads,
        groups=a.get("group") or 1,
        transposed=spare is not None,
        output_padding=spare or (),
    )


def _pool_op(kind: Any, a: dict[str, Any], sizes: tuple[int, ...]) -> graph.Pool:
    kernel = tuple(a["kernel_shape"])
    return graph.Pool(
        kind,
        kernel,
        _filled(a, "strides", kernel, 1),
        _pads(a, sizes, kernel),
        _filled(a, "dilations", kernel, 1),
        bool(a.get("ceil_mode")),
        bool(a.get("count_include_pad")),
    )


def _pads(a: dict[str, Any], sizes: tuple[int, ...], kernel: tuple[int, ...]) -> Pads:
    mode = a.get("auto_pad") or "NOTSET"
    if mode in ("NOTSET", "VALID"):
        return _given_pads(a if mode == "NOTSET" else {}, kernel)
    steps, spread = _filled(a, "strides", kernel, 1), _filled(a, "dilations", kernel, 1)
    totals = [
        max((-(-size // step) - 1) * step + d * (k - 1) + 1 - size, 0)
        for size, step, d, k in zip(sizes, steps, spread, kernel, strict=True)
    ]
    return _split(totals, more_at_end=mode == "SAME_UPPER")


def _transposed_pads(
    a: dict[str, Any], sizes: tuple[int, ...], kernel: tuple[int, ...], spare: tuple[int, ...]
) -> Pads:
    mode = a.get("auto_pad") or "NOTSET"
    steps, spread = _filled(a, "strides", kernel, 1), _filled(a, "dilations", kernel, 1)
    wanted = a.get("output_shape")
    if not wanted:
        if mode in ("NOTSET", "VALID"):
            return _given_pads(a if mode == "NOTSET" else {}, kernel)
        wanted = [size * step for size, step in zip(sizes, steps, strict=True)]
    totals = [
        max(step * (size - 1) + extra + d * (k - 1) + 1 - out, 0)
        for step, size, extra, d, k, out in zip(
            steps, sizes, spare, spread, kernel, wanted[-len(kernel) :], strict=True
        )
    ]
    return _split(totals, more_at_end=mode == "SAME_UPPER")


def _given_pads(a: dict[str, Any], kernel: tuple[int, ...]) -> Pads:
    flat = tuple(a.get("pads") or (0,) * (2 * len(kernel)))
    return tuple(zip(flat[: len(kernel)], flat[len(kernel) :], strict=True))


def _split(totals: Sequence[int], *, more_at_end: bool) -> Pads:
    halves = [(total // 2, total - total // 2) for total in totals]
    return tuple((less, more) if more_at_end else (more, less) for less, more in halves)
