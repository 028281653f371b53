"""Layers and pooling: what ATen's operators with weights and windows mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.algebra.affine import from_batchnorm
from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Affine,
    Conv,
    Identity,
    Linear,
    Mean,
    Op,
    Opaque,
    Pads,
    Pool,
)
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.formats.pytorch.calls import (
    Call,
    Facts,
    NotCoveredError,
    Value,
    axis_of,
    constant_of,
    digit_of,
    float64,
    ints_of,
    optional_param,
    rank_of,
)


def conv(call: Call, facts: Facts) -> Op:
    weight = constant_of(call["weight"])
    rank = weight.tensor.ndim - 2
    if rank < 1:
        raise NotCoveredError
    dilation = ints_of(call["dilation"], rank)
    transposed = bool(call.get("transposed")) or "transpose" in call.op
    spare = ints_of(call.get("output_padding") or 0, rank) if transposed else ()
    return Conv(
        weight.param(),
        optional_param(call.get("bias")),
        ints_of(call["stride"], rank),
        dilation,
        _pads(call["padding"], tuple(weight.tensor.shape[2:]), dilation),
        int(call["groups"]),
        transposed=transposed,
        output_padding=spare,
    )


def _pads(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Pads:
    if padding == "valid":
        return tuple((0, 0) for _ in kernel)
    if padding == "same":
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((r // 2, r - r // 2) for r in reach)
    return tuple((p, p) for p in ints_of(padding, len(kernel)))


def layer_name(op: Op) -> str:
    """The operator that takes the weight and bias of `op`, with no stride, padding or groups."""
    return f"conv{len(op.kernel)}d" if isinstance(op, Conv) else "linear"


def linear(call: Call, facts: Facts) -> Op:
    weight = constant_of(call["weight"])
    if weight.tensor.ndim != 2:
        raise NotCoveredError
    return Linear(weight.param(), optional_param(call.get("bias")))


def batch_norm(call: Call, facts: Facts) -> Op:
    training = bool(call.get("training")) or bool(call.get("use_input_stats"))
    mean, var = call.get("running_mean"), call.get("running_var")
    if training or mean is None or var is None:
        why = "it normalises with the statistics of the batch, also in eval mode"
        return _kept(call, Reason.BATCH_STATISTICS, why)
    named = {role: call.get(role) for role in ("running_mean", "running_var", "weight", "bias")}
    moving = [role for role, a in named.items() if isinstance(a, Value)]
    if moving:
        return _kept(call, Reason.NOT_CONSTANT, f"its {moving[0]} is computed at run time")
    arrays = {role: None if a is None else float64(a.tensor) for role, a in named.items()}
    mean_, var_ = arrays["running_mean"], arrays["running_var"]
    assert mean_ is not None
    assert var_ is not None
    affine = from_batchnorm(1, mean_, var_, float(call["eps"]), arrays["weight"], arrays["bias"])
    if isinstance(affine, Refusal):
        return _kept(call, affine.reason, affine.why)
    return Affine(affine)


def training_norm(call: Call, facts: Facts) -> Op:
    """A BatchNorm that updates its statistics, whatever its arguments say."""
    return _kept(call, Reason.BATCH_STATISTICS, "it is in train mode")


def _kept(call: Call, reason: Reason, why: str) -> Opaque:
    return Opaque(Refusal(reason, f"{call.name}: {why}", call.name), batchnorm=True)


def max_pool(call: Call, facts: Facts) -> Op:
    if len(call.outputs) > 1:
        raise NotCoveredError
    rank = int(digit_of(call.op))
    kernel = ints_of(call["kernel_size"], rank)
    return Pool(
        "max",
        kernel,
        ints_of(call["stride"], rank) if call.get("stride") else kernel,
        _pads(call["padding"], kernel, (1,) * rank),
        ints_of(call["dilation"], rank),
        ceil_mode=bool(call["ceil_mode"]),
    )


def avg_pool(call: Call, facts: Facts) -> Op:
    rank = int(digit_of(call.op))
    kernel = ints_of(call["kernel_size"], rank)
    return Pool(
        "avg",
        kernel,
        ints_of(call["stride"], rank) if call.get("stride") else kernel,
        _pads(call["padding"], kernel, (1,) * rank),
        (1,) * rank,
        ceil_mode=bool(call["ceil_mode"]),
        count_include_pad=bool(call["count_include_pad"]),
        divisor=call.get("divisor_override"),
    )


def adaptive_pool(call: Call, facts: Facts) -> Op:
    if len(call.outputs) > 1:
        raise NotCoveredError
    rank = int(digit_of(call.op))
    size = call["output_size"]
    sizes = (
        tuple(size) * (rank if len(size) == 1 else 1)
        if isinstance(size, list | tuple)
        else ((size,) * rank)
    )
    if not all(s is None or isinstance(s, int) for s in sizes):
        raise NotCoveredError
    return AdaptivePool("max" if "max" in call.op else "avg", sizes)


def mean(call: Call, facts: Facts) -> Op:
    rank = rank_of(call, facts)
    if call.get("dtype") is not None or "dim" not in call.arguments:
        raise NotCoveredError
    dims = call["dim"] if call["dim"] else list(range(rank))
    return Mean(tuple(sorted(axis_of(d, rank) for d in dims)), bool(call["keepdim"]))


def relu(call: Call, facts: Facts) -> Op:
    return Activation(np.zeros(1))


def clamp(call: Call, facts: Facts) -> Op:
    """clamp(min=0), clamp_min(0), hardtanh(0, inf), threshold(0, 0): a ReLU; not other bounds."""
    bounds = {name: call.get(name) for name in _LOW + _HIGH if name in call.arguments}
    lows, highs = ([bounds[n] for n in names if n in bounds] for names in (_LOW, _HIGH))
    if not all(_is_number(low, 0) for low in lows) or not all(
        high is None or _is_number(high, np.inf) for high in highs
    ):
        raise NotCoveredError
    return relu(call, facts)


_LOW, _HIGH = ("min", "min_val", "threshold", "value"), ("max", "max_val")


def _is_number(argument: Any, number: float) -> bool:
    return isinstance(argument, int | float) and argument == number


def magnitude(call: Call, facts: Facts) -> Op:
    """|x|, of real numbers."""
    if not facts.may_keep_float(call):
        raise NotCoveredError
    return Activation(np.array([-1.0]))


def leaky_relu(call: Call, facts: Facts) -> Op:
    return Activation(np.array([float(call["negative_slope"])]))


def prelu(call: Call, facts: Facts) -> Op:
    slope = float64(constant_of(call["weight"]).tensor)
    rank = rank_of(call, facts)
    if slope.size == 1:
        return Activation(slope.reshape(1))
    return Activation(slope.reshape([-1 if axis == 1 else 1 for axis in range(rank)]))


def dropout(call: Call, facts: Facts) -> Op:
    return Opaque() if call["train"] else Identity()
