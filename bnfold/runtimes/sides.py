"""Which sides of a model were reached: of limits, comparisons, maxima and what bends or saturates.

A mistake on one side of a Clip or of a comparison shows only on an input that gets there. For every
side the margin is how far some number got beyond the point where it begins; negative is how much
was missing.

Relu, LeakyRelu, PRelu, Elu, Abs    below 0, above 0
Clip, HardSigmoid, HardSwish        below its minimum, within, above its maximum
Sigmoid, Tanh                       saturated below (-4), between, saturated above (4)
Greater, Less, Equal, Where         true, false
Max, Min                            each of its inputs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Margins = Iterator[tuple[str, float]]
Side = tuple[str, str]
"""The name of an operator in the model, and the side."""

SATURATED = 4.0

NAMED = 3
"""How many sides a text names."""


@dataclass(eq=False, slots=True)
class Sides:
    """The margin of every side: the largest of all runs, and that of the latest run."""

    largest: dict[Side, float] = field(default_factory=dict)
    latest: dict[Side, float] = field(default_factory=dict)
    work: int = 0
    """How many numbers the latest run computed."""
    count: dict[str, int] = field(default_factory=dict)

    def begin(self) -> None:
        self.latest.clear()
        self.count.clear()
        self.work = 0

    def numbered(self, op: str) -> str:
        """A name for the next operator of that kind in a run, where it has none of its own."""
        self.count[op] = self.count.get(op, 0) + 1
        return f"{op} {self.count[op]}"

    def note(self, name: str, margins: Margins) -> None:
        for side, margin in margins:
            if not math.isnan(margin):
                key = name, side
                self.latest[key] = max(margin, self.latest.get(key, -math.inf))
                self.largest[key] = max(margin, self.largest.get(key, -math.inf))

    @property
    def unseen(self) -> list[Side]:
        """Those that no run reached."""
        return [side for side, margin in self.largest.items() if margin <= 0]

    def to_json(self) -> dict[str, Any]:
        unseen = [{"operator": name, "side": side} for name, side in self.unseen]
        return {"known": len(self.largest), "unseen": unseen}

    def __str__(self) -> str:
        unseen = [f"{name} {side}" for name, side in self.unseen]
        more = f" and {len(unseen) - NAMED} more" if len(unseen) > NAMED else ""
        count = f"{len(unseen)} of {len(self.largest)} sides of the model"
        return f"{count}: {', '.join(unseen[:NAMED])}{more}"


def bend(x: Array) -> Margins:
    yield "below 0", _most(-x)
    yield "above 0", _most(x)


def limits(x: Array, low: Any, high: Any) -> Margins:
    """None for a limit that is not there."""
    inside = np.full(x.shape, np.inf)
    if low is not None and np.any(np.isfinite(low)) and np.all(low > -_FAR):
        yield "below its minimum", _most(low - x)
        inside = np.minimum(inside, x - low)
    if high is not None and np.any(np.isfinite(high)) and np.all(high < _FAR):
        yield "above its maximum", _most(x - high)
        inside = np.minimum(inside, high - x)
    if np.isfinite(inside).all():
        yield "within its limits", _most(inside)


def saturating(x: Array) -> Margins:
    yield "saturated below", _most(-SATURATED - x)
    yield "not saturated", _most(SATURATED - np.abs(x))
    yield "saturated above", _most(x - SATURATED)


def greater(a: Array, b: Array) -> Margins:
    yield "true", _most(a - b)
    yield "false", _most(b - a, closed=True)


def less(a: Array, b: Array) -> Margins:
    yield "true", _most(b - a)
    yield "false", _most(a - b, closed=True)


def equal(a: Array, b: Array) -> Margins:
    yield "true", _most(-np.abs(a - b), closed=True)
    yield "false", _most(np.abs(a - b))


def truth(condition: Array) -> Margins:
    yield "true", 1.0 if condition.any() else -math.inf
    yield "false", -math.inf if condition.all() else 1.0


def larger(*values: Array) -> Margins:
    if len(values) == 2:
        yield "its first input", _most(values[0] - values[1])
        yield "its second input", _most(values[1] - values[0])


def smaller(*values: Array) -> Margins:
    return larger(*values[::-1]) if len(values) != 2 else larger(-values[0], -values[1])


_FAR = 1e30


def _most(margins: Array, *, closed: bool = False) -> float:
    """The largest; `closed`: a margin of exactly 0 is on that side already."""
    most = float(np.fmax.reduce(margins, axis=None, initial=-math.inf))  # which passes NaN over
    return 1e-300 if closed and most == 0 else most


def _wide(values: Sequence[Any]) -> list[Array]:
    return [np.asarray(value, np.float64) for value in values]


def _on_all(function: Callable[..., Margins]) -> Callable[..., Margins]:
    return lambda inputs, a: function(*_wide(inputs))


def _on_first(function: Callable[..., Margins]) -> Callable[..., Margins]:
    return lambda inputs, a: function(*_wide(inputs[:1]))


def _clip(inputs: Sequence[Any], a: Mapping[str, Any]) -> Margins:
    x, low, high = [*inputs, None, None][:3]
    low, high = a.get("min", low), a.get("max", high)
    return limits(_wide([x])[0], low, high)


def _hard_sigmoid(inputs: Sequence[Any], a: Mapping[str, Any]) -> Margins:
    alpha, beta = a.get("alpha", 0.2), a.get("beta", 0.5)
    return limits(alpha * _wide(inputs[:1])[0] + beta, 0.0, 1.0)


OF_ONNX: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], Margins]] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Abs"), _on_first(bend)),
    **dict.fromkeys(("Sigmoid", "Tanh"), _on_first(saturating)),
    **dict.fromkeys(("Less", "LessOrEqual"), _on_all(less)),
    **dict.fromkeys(("Greater", "GreaterOrEqual"), _on_all(greater)),
    "Equal": _on_all(equal),
    "Where": lambda inputs, a: truth(np.asarray(inputs[0])),
    "If": lambda inputs, a: truth(np.asarray(inputs[0])),
    "Max": _on_all(larger),
    "Min": _on_all(smaller),
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda inputs, a: limits(_wide(inputs[:1])[0], -3.0, 3.0),
}
"""ONNX operator -> the margins of its sides, from its inputs and its numeric attributes."""

OF_ATEN: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], Margins]] = {
    **dict.fromkeys(("relu", "leaky_relu", "_prelu_kernel", "elu", "abs"), _on_first(bend)),
    **dict.fromkeys(("sigmoid", "tanh"), _on_first(saturating)),
    **dict.fromkeys(("lt", "le"), _on_all(less)),
    **dict.fromkeys(("gt", "ge"), _on_all(greater)),
    "eq": _on_all(equal),
    "where": lambda inputs, a: truth(np.asarray(inputs[0])),
    "maximum": _on_all(larger),
    "minimum": _on_all(smaller),
    "clamp": _clip,
    "clamp_min": lambda inputs, a: limits(_wide(inputs[:1])[0], inputs[1], None),
    "clamp_max": lambda inputs, a: limits(_wide(inputs[:1])[0], None, inputs[1]),
    "hardtanh": lambda inputs, a: _clip(inputs if len(inputs) > 2 else [*inputs[:1], -1, 1], {}),
    "hardsigmoid": lambda inputs, a: limits(_wide(inputs[:1])[0], -3.0, 3.0),
    "hardswish": lambda inputs, a: limits(_wide(inputs[:1])[0], -3.0, 3.0),
}
"""ATen operator -> the margins of its sides, from its arguments."""
