"""What PyTorch's ATen operators mean in the neutral graph, for every form that is made of them.

A reader hands over each call with its arguments by schema name; what this table does not know, or
what does not meet the table's conditions, becomes Opaque.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bnfold.affine import ChannelAffine, from_batchnorm
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
    Node,
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


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that is computed while the model runs."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Constant:
    """A tensor that is fixed: a parameter, a buffer, a literal."""

    name: str
    tensor: torch.Tensor

    def param(self) -> Param:
        tensor = self.tensor
        return Param(self.name, tuple(tensor.shape), _dtype(self), lambda: float64(tensor))


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call. `op` is the name without namespace or overload: "conv2d".

    `arguments` maps the schema's names to Value, Constant, lists of these, or plain Python.
    """

    name: str
    op: str
    arguments: Mapping[str, Any]
    outputs: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def values(self) -> tuple[str, ...]:
        """Every computed tensor among the arguments, in order."""
        found: list[str] = []
        for argument in self.arguments.values():
            entries = argument if isinstance(argument, list | tuple) else [argument]
            found += [entry.name for entry in entries if isinstance(entry, Value)]
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the reader knows of computed tensors: shapes, and dtypes as "float32"."""

    shapes: Mapping[str, Shape | None]
    dtypes: Mapping[str, str]

    def rank(self, name: str) -> int | None:
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def keeps_float(self, call: Call) -> bool:
        """Whether the call gives the floating type that it was given."""
        first = self.dtypes.get(call.values[0], "")
        return "float" in first and self.dtypes.get(call.outputs[0]) == first


class _NotCoveredError(Exception):
    """The call falls outside what the table can say; it is Opaque."""


def float64(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return tensor.detach().to("cpu", torch.float64).numpy()


def translate(call: Call, facts: Facts) -> Node:
    """The neutral node of a call."""
    rule = TABLE.get(call.op.removesuffix("_"))
    inputs = call.values
    op: Op = Opaque()
    if rule is not None:
        try:
            op = rule(call, facts)
        except _NotCoveredError:
            op = Opaque()
    kind = "batch_norm" if "batch_norm" in call.op else call.op
    return Node(call.name, kind, op, inputs, call.outputs)


def _conv(call: Call, facts: Facts) -> Op:
    weight = _constant(call["weight"])
    rank = weight.tensor.ndim - 2
    dilation = _ints(call["dilation"], rank)
    transposed = bool(call.get("transposed")) or "transpose" in call.op
    spare = _ints(call.get("output_padding") or 0, rank) if transposed else ()
    return Conv(
        weight.param(),
        _optional(call.get("bias")),
        _ints(call["stride"], rank),
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
    return tuple((p, p) for p in _ints(padding, len(kernel)))


def _linear(call: Call, facts: Facts) -> Op:
    weight = _constant(call["weight"])
    if weight.tensor.ndim != 2:
        raise _NotCoveredError
    return Linear(weight.param(), _optional(call.get("bias")))


def _batch_norm(call: Call, facts: Facts) -> Op:
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


def _training_norm(call: Call, facts: Facts) -> Op:
    """A BatchNorm that updates its statistics, whatever its arguments say."""
    return _kept(call, Reason.BATCH_STATISTICS, "it is in train mode")


def _kept(call: Call, reason: Reason, why: str) -> Opaque:
    return Opaque(Refusal(reason, f"{call.name}: {why}", call.name), batchnorm=True)


def _max_pool(call: Call, facts: Facts) -> Op:
    if len(call.outputs) > 1:
        raise _NotCoveredError
    rank = int(_digit(call.op))
    kernel = _ints(call["kernel_size"], rank)
    return Pool(
        "max",
        kernel,
        _ints(call["stride"], rank) if call.get("stride") else kernel,
        _pads(call["padding"], kernel, (1,) * rank),
        _ints(call["dilation"], rank),
        ceil_mode=bool(call["ceil_mode"]),
    )


def _avg_pool(call: Call, facts: Facts) -> Op:
    rank = int(_digit(call.op))
    kernel = _ints(call["kernel_size"], rank)
    return Pool(
        "avg",
        kernel,
        _ints(call["stride"], rank) if call.get("stride") else kernel,
        _pads(call["padding"], kernel, (1,) * rank),
        (1,) * rank,
        ceil_mode=bool(call["ceil_mode"]),
        count_include_pad=bool(call["count_include_pad"]),
        divisor=call.get("divisor_override"),
    )


def _adaptive_pool(call: Call, facts: Facts) -> Op:
    if len(call.outputs) > 1:
        raise _NotCoveredError
    rank = int(_digit(call.op))
    size = call["output_size"]
    sizes = (
        tuple(size) * (rank if len(size) == 1 else 1)
        if isinstance(size, list | tuple)
        else ((size,) * rank)
    )
    if not all(s is None or isinstance(s, int) for s in sizes):
        raise _NotCoveredError
    return AdaptivePool("max" if "max" in call.op else "avg", sizes)


def _mean(call: Call, facts: Facts) -> Op:
    rank = _rank(call, facts)
    if call.get("dtype") is not None or "dim" not in call.arguments:
        raise _NotCoveredError
    dims = call["dim"] if call["dim"] else list(range(rank))
    return Mean(tuple(sorted(_axis(d, rank) for d in dims)), bool(call["keepdim"]))


def _relu(call: Call, facts: Facts) -> Op:
    return Activation(np.zeros(1))


def _leaky_relu(call: Call, facts: Facts) -> Op:
    return Activation(np.array([float(call["negative_slope"])]))


def _prelu(call: Call, facts: Facts) -> Op:
    slope = float64(_constant(call["weight"]).tensor)
    rank = _rank(call, facts)
    if slope.size == 1:
        return Activation(slope.reshape(1))
    return Activation(slope.reshape([-1 if axis == 1 else 1 for axis in range(rank)]))


def _dropout(call: Call, facts: Facts) -> Op:
    return Opaque() if call["train"] else Identity()


def _identity(call: Call, facts: Facts) -> Op:
    return Identity()


def _cast(call: Call, facts: Facts) -> Op:
    if len(call.values) != 1 or not facts.keeps_float(call):
        raise _NotCoveredError
    return Identity()


def _reshape(call: Call, facts: Facts) -> Op:
    if call.get("dtype") is not None:
        raise _NotCoveredError
    source, target = (facts.shapes.get(v) for v in (call.values[0], call.outputs[0]))
    if source is None or target is None:
        raise _NotCoveredError
    found = reshape(source, target)
    if found is None:
        raise _NotCoveredError
    return found


def _permute(call: Call, facts: Facts) -> Op:
    rank = _rank(call, facts)
    return Transpose(tuple(_axis(d, rank) for d in call["dims"]))


def _transpose(call: Call, facts: Facts) -> Op:
    rank = _rank(call, facts)
    perm = list(range(rank))
    first, second = (_axis(call.get(d), rank) for d in ("dim0", "dim1"))
    perm[first], perm[second] = second, first
    return Transpose(tuple(perm))


def _concat(call: Call, facts: Facts) -> Op:
    tensors = call["tensors"]
    if not all(isinstance(t, Value) for t in tensors):
        raise _NotCoveredError
    rank = facts.rank(call.outputs[0])
    if rank is None:
        raise _NotCoveredError
    return Concat(_axis(int(call.get("dim") or 0), rank))


def _add(call: Call, facts: Facts) -> Op:
    if len(call.values) == 2:
        if call.get("alpha") not in (None, 1):
            raise _NotCoveredError
        return Add()
    sign = -1.0 if call.op.startswith("sub") else 1.0
    if call.op.startswith("rsub") or (sign < 0 and not isinstance(call["self"], Value)):
        raise _NotCoveredError
    factor = call.get("alpha")
    if factor not in (None, 1) and not isinstance(call["self"], Value):
        raise _NotCoveredError  # alpha is a scale of the value
    axis, numbers = _channel_constant(call, facts)
    shift = sign * numbers * (1.0 if factor is None else float(factor))
    return Affine(ChannelAffine(axis, np.ones_like(shift), shift), False, "shift")


def _sub(call: Call, facts: Facts) -> Op:
    if len(call.values) == 2:
        raise _NotCoveredError
    return _add(call, facts)


def _mul(call: Call, facts: Facts) -> Op:
    if len(call.values) == 2:
        raise _NotCoveredError
    axis, scale = _channel_constant(call, facts)
    return Affine(ChannelAffine(axis, scale, np.zeros_like(scale)), False, "scale")


def _div(call: Call, facts: Facts) -> Op:
    if len(call.values) == 2 or call.get("rounding_mode") or not isinstance(call["self"], Value):
        raise _NotCoveredError
    axis, divisor = _channel_constant(call, facts)
    if not np.all(divisor):
        raise _NotCoveredError
    return Affine(ChannelAffine(axis, 1 / divisor, np.zeros_like(divisor)), False, "scale")


def _channel_constant(
    call: Call, facts: Facts
) -> tuple[int | None, np.ndarray[Any, np.dtype[np.float64]]]:
    """The axis (None: uniform) and numbers of the constant operand of a binary operator."""
    (value,) = call.values
    other = call["other"] if isinstance(call["self"], Value) else call["self"]
    if not facts.keeps_float(call) or isinstance(other, bool | complex):
        raise _NotCoveredError
    if isinstance(other, int | float):
        return None, np.array([float(other)])
    constant = _constant(other).tensor
    if constant.numel() == 1 and constant.ndim == 0:
        return None, float64(constant).reshape(1)
    rank = _rank(call, facts)
    varying = [axis for axis, size in enumerate(constant.shape) if size != 1]
    if len(varying) > 1 or constant.ndim > rank:
        raise _NotCoveredError
    if not varying:
        return None, float64(constant).reshape(1)
    axis = varying[0] + rank - constant.ndim
    shape = facts.shapes[value]
    if shape is None or shape[axis] != constant.numel():
        raise _NotCoveredError
    return axis, float64(constant).reshape(-1)


def _rank(call: Call, facts: Facts) -> int:
    rank = facts.rank(call.values[0]) if call.values else None
    if rank is None:
        raise _NotCoveredError
    return rank


def _axis(axis: Any, rank: int) -> int:
    if not isinstance(axis, int):
        raise _NotCoveredError
    return axis % rank if rank else axis


def _constant(argument: Any) -> Constant:
    """The argument, if it is fixed and of a type that values can be folded into."""
    if not isinstance(argument, Constant) or _dtype(argument) not in EPSILON:
        raise _NotCoveredError
    return argument


def _dtype(constant: Constant) -> str:
    return str(constant.tensor.dtype).removeprefix("torch.")


def _optional(argument: Any) -> Param | None:
    return None if argument is None else _constant(argument).param()


def _ints(argument: Any, rank: int) -> tuple[int, ...]:
    entries = list(argument) if isinstance(argument, list | tuple) else [argument]
    if not all(isinstance(entry, int) for entry in entries):
        raise _NotCoveredError
    return tuple(entries * rank if len(entries) == 1 else entries)


def _digit(op: str) -> str:
    return next(c for c in op if c.isdigit())


Translation = Callable[[Call, Facts], Op]

TABLE: dict[str, Translation] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "_convolution"), _conv),
    **{f"conv_transpose{n}d": _conv for n in (1, 2, 3)},
    "linear": _linear,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "native_batch_norm": _batch_norm,
    "_batch_norm_no_update": _batch_norm,
    "_native_batch_norm_legit_functional": _training_norm,
    "_batch_norm_with_update": _training_norm,
    "_batch_norm_with_update_functional": _training_norm,
    "cudnn_batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    **{f"max_pool{n}d": _max_pool for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _avg_pool for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": _adaptive_pool for kind in ("avg", "max") for n in (1, 2, 3)},
    "mean": _mean,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys(("feature_alpha_dropout", "dropout1d"), _dropout),
    **dict.fromkeys(("clone", "alias", "detach", "contiguous", "identity"), _identity),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten"), _reshape),
    **dict.fromkeys(("squeeze", "unsqueeze", "view_as", "reshape_as"), _reshape),
    **dict.fromkeys(("to", "_to_copy"), _cast),
    "permute": _permute,
    "transpose": _transpose,
    "cat": _concat,
    "concat": _concat,
    "add": _add,
    "sub": _sub,
    "rsub": _sub,
    "mul": _mul,
    "div": _div,
}
