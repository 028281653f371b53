"""The verdict on one output: is the candidate as close to the truth as the original itself?

    error  of the candidate, against the original computed in float64, as RMS and as maximum
    floor  the same two figures for the original as it is, in the same runtime on the same input
    pass   iff error <= k * max(floor, floor of the other cases, 2 ulp), for RMS and for the maximum

`ulp` is one step of the output's type at the output's scale (for an output that is exactly zero,
at its usual scale): no result can be asked to be much closer than that. The floor of the other
cases, relative to the scale of their outputs (the median over all cases), stands in where a case is
so small or so lucky that its own floor says nothing, such as an output of one number that happened
to come out exact.

k = 8 leaves room for another order of summation; a wrong epsilon or one unshifted channel is
hundreds to millions of floors away.

Where an original cannot be computed in float64 the policy is "half the digits": the truth is the
original as it is, and the error may be the square root of the type's epsilon, at the output's
scale. That finds a wrong fold, not a slightly wrong one, and the report says which policy was used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bnfold.protocol import DEFAULT_K
from bnfold.rounding import EPSILON

Array = NDArray[Any]

ULPS = 2.0
"""Steps of the output's type that are always granted: the last sum and the rounding of the result
can each be one off."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far an output is from the truth: root mean square and maximum over its elements."""

    rms: float
    max: float

    def over(self, scale: Distance) -> Distance:
        return Distance(_ratio(self.rms, scale.rms), _ratio(self.max, scale.max))

    def times(self, scale: Distance) -> Distance:
        return Distance(self.rms * scale.rms, self.max * scale.max)


@dataclass(frozen=True, slots=True)
class Gate:
    """The rule of a verdict: how many floors an error may be, and what the floor is."""

    k: float = DEFAULT_K
    policy: Literal["floor", "half the digits"] = "floor"

    def least(self, scale: Distance, dtype: str) -> Distance:
        """The floor below which no output of this scale and type is judged."""
        epsilon = EPSILON.get(dtype, 0.0)
        step = ULPS * epsilon if self.policy == "floor" else math.sqrt(epsilon) / self.k
        return Distance(step, step).times(scale)


@dataclass(frozen=True, slots=True)
class Row:
    """The judgement of one output of one case in one runtime.

    `floor`, `error` and `ratio` are those of `metric`, the one of RMS and maximum with the larger
    ratio; `ratio` is the smallest k that passes. `why` says what failed where numbers cannot.
    """

    case: str
    provider: str
    output: str
    metric: str
    floor: float
    error: float
    ratio: float
    passed: bool
    why: str | None = None

    def cells(self) -> tuple[str, ...]:
        """What a table shows: place, output, case, floor, error, ratio, verdict."""
        return (
            self.provider,
            self.output,
            f"{self.case} ({self.metric})",
            f"{self.floor:.2e}",
            f"{self.error:.2e}",
            f"{self.ratio:.2f}",
            "pass" if self.passed else "FAIL",
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "provider": self.provider,
            "output": self.output,
            "metric": self.metric,
            "floor": _json_number(self.floor),
            "error": _json_number(self.error),
            "ratio": _json_number(self.ratio),
            "verdict": "pass" if self.passed else "fail",
            "why": self.why,
        }


def distance(output: Array, truth: Array) -> Distance:
    """Infinite unless NaN and infinities are just where the truth has them; between the others."""
    output, truth = _wide(output), _wide(truth)
    where = np.isfinite(truth)
    if not np.array_equal(output[~where], truth[~where], equal_nan=True):
        return Distance(math.inf, math.inf)
    if not np.isfinite(output[where]).all():
        return Distance(math.inf, math.inf)
    return _size(output[where] - truth[where])


def scale_of(truth: Array) -> Distance:
    """The size of an output itself, where it is finite."""
    truth = _wide(truth)
    return _size(truth[np.isfinite(truth)])


def _size(values: Array) -> Distance:
    if not values.size:
        return Distance(0.0, 0.0)
    absolute = np.abs(values)
    return Distance(float(np.sqrt(np.mean(absolute**2))), float(absolute.max()))


def _wide(values: Array) -> Array:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def judge(case: str, provider: str, name: str, floor: Distance, error: Distance, k: float) -> Row:
    ratio = error.over(floor)
    metric = "rms" if ratio.rms >= ratio.max else "max"
    worst = getattr(ratio, metric)
    why = None
    if math.isinf(getattr(error, metric)):
        why = "it has NaN or infinity where the truth is finite, or the other way round"
    elif not math.isfinite(getattr(floor, metric)):
        why = "the original itself is infinitely far from the truth"
    elif not worst <= k:
        why = f"its error is {worst:.3g} times the floor, more than k = {k:g}"
    return Row(
        case,
        provider,
        name,
        metric,
        getattr(floor, metric),
        getattr(error, metric),
        worst,
        why is None,
        why,
    )


def failed(case: str, provider: str, name: str, why: str) -> Row:
    """An output that fails before any number is compared."""
    return Row(case, provider, name, "rms", 0.0, math.inf, math.inf, False, why)


def mismatch(output: Array, expected: Array) -> str | None:
    """What is wrong with the form of an output, if anything."""
    if output.shape != expected.shape:
        return f"its shape is {list(output.shape)}, the original's is {list(expected.shape)}"
    if output.dtype != expected.dtype:
        return f"its type is {output.dtype}, the original's is {expected.dtype}"
    return None


def _ratio(error: float, floor: float) -> float:
    if error == 0:
        return 0.0
    return error / floor if floor else math.inf


def _json_number(value: float) -> float | str:
    """JSON has no infinity: it is written as a string."""
    return value if math.isfinite(value) else str(value)
