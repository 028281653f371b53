"""Turn the float64 parameters of a plan into the types they are stored in, with one rounding.

Where that would overflow, or cost more than the rounding itself because values fall below the
smallest normal number of the type, the node is refused and named, so that the plan can be made anew
without it.

Exact when   FINITE   every rounded value is finite
             NORMAL   per output channel, the error of rounding stays within the type's epsilon,
                      relative to the channel's norm (half an epsilon is what rounding may cost)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array
from bnfold.graph import Conv, Graph, Linear, Node, Param, params
from bnfold.plan import Plan, make_plan
from bnfold.refusal import Reason, Refusal

Native = NDArray[Any]
Weights = Mapping[str, Mapping[str, Native]]
"""node name -> role ("weight", "bias") -> the new value, in its own type."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type called `name`; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype[Any](ml_dtypes.bfloat16)
    return np.dtype(name)


def make_rounded_plan(graph: Graph, locked: Mapping[str, Refusal]) -> tuple[Plan, Weights]:
    """The plan whose every edit can be stored, and the new parameters of Conv and Linear nodes."""
    locked = dict(locked)
    while True:
        plan = make_plan(graph, locked)
        weights: dict[str, dict[str, Native]] = {}
        trouble: dict[str, Refusal] = {}
        for before, after in plan.changed():
            if not isinstance(after.op, Conv | Linear):
                continue
            weights[after.name] = rounded = {}
            for role, param in params(after.op):
                if getattr(before.op, role) is param:
                    continue
                values = _rounded(after, role, param)
                if isinstance(values, Refusal):
                    trouble[after.name] = values
                else:
                    rounded[role] = values
        if not trouble:
            return plan, weights
        locked.update(trouble)


def _rounded(node: Node, role: str, param: Param) -> Native | Refusal:
    exact = param.load()
    with np.errstate(over="ignore", under="ignore"):
        values = exact.astype(numpy_dtype(param.dtype))
        back: Array = values.astype(np.float64)
    channels = _output_axis_first(node, exact.shape)
    if channel := _first_bad(~np.isfinite(back), channels):
        why = f"the {role} of output channel {channel - 1} overflows {param.dtype}"
        return Refusal(Reason.PRECISION, f"{node.name} ({node.kind}): {why}", node.name)
    error, size = (np.sqrt(_by_channel(a * a, channels).sum(1)) for a in (back - exact, exact))
    lost = np.flatnonzero(error > _epsilon(param.dtype) * size)
    if lost.size:
        why = f"the {role} of output channel {lost[0]} is too small for {param.dtype}"
        return Refusal(Reason.PRECISION, f"{node.name} ({node.kind}): {why}", node.name)
    return values


def _epsilon(dtype: str) -> float:
    return {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[
        dtype
    ]


def _output_axis_first(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The order of axes that brings the one of the output channels to the front."""
    axis = 1 if isinstance(node.op, Conv) and node.op.transposed and len(shape) > 1 else 0
    return (axis, *(i for i in range(len(shape)) if i != axis))


def _by_channel(values: NDArray[Any], order: tuple[int, ...]) -> NDArray[Any]:
    moved = values.transpose(order)
    return moved.reshape(moved.shape[0], -1)


def _first_bad(mask: NDArray[np.bool_], order: tuple[int, ...]) -> int:
    found = np.flatnonzero(_by_channel(mask, order).any(1))
    return int(found[0]) + 1 if found.size else 0
