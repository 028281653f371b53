"""The verdict on one output: is the candidate as close to the truth as the original itself?

    error  of the candidate, against the original computed in float64, as RMS and as maximum
    floor  the same two figures for the original as it is, in the same runtime on the same input
    pass   iff error <= k * max(floor, floor of the other cases, 2 ulp), for RMS and for the maximum

`ulp` is one step of the output's type at the output's scale (for an output that is exactly zero,
at its usual scale): no result can be asked to be much closer than that. The floor of the other
cases, relative to the scale of their outputs (the median over all cases), stands in where a case is
so small or so lucky that its own floor says nothing, such as an output of one number that happened
to come out exact.

An output of which a part is filled in, such as the -1e9 of a mask, is judged on the rest alone,
too: at the scale of the fill value every error would be small.

k = 8 leaves room for another order of summation; a wrong epsilon or one unshifted channel is
hundreds to millions of floors away.

Where nothing of an original can be computed in float64, its own output stands for the truth, and
half the digits for the floor: k floors are the square root of the type's epsilon, at the output's
scale. That finds a wrong fold, not a slightly wrong one, and the report says so.

The other policies compare with the original as it is, like the tools that they are known from:
"assert-close" allows |output - original| <= atol + rtol |original| with the defaults of
torch.testing.assert_close for the output's type, "fixed" with the tolerances that were given. NaN
equals NaN. Every row tells what assert-close would have said, whatever the policy.
"""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.rounding import EPSILON
from bnfold.protocol import Protocol

Array = NDArray[Any]

ULPS = 2.0
"""Steps of the output's type that are always granted: the last sum and the rounding of the result
can each be one off."""

FILL, APART, ALIKE, FILLS = 1e3, 10.0, 1e-4, 3
"""How large a fill value is at least, how many times what is none, and how alike they are where it
stands; how many there may be."""

Metric = Literal["rms", "max", "rest"]

ASSERT_CLOSE = {
    "float16": (1e-3, 1e-5),
    "bfloat16": (1.6e-2, 1e-5),
    "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7),
    "complex64": (1.3e-6, 1e-5),
    "complex128": (1e-7, 1e-7),
}
"""rtol and atol of torch.testing.assert_close by type; both are 0 for any other."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far an output is from the truth: root mean square and maximum over its elements.

    `rest` is the root mean square over what is no fill value, 0 where nothing is filled in.
    """

    rms: float
    max: float
    rest: float = 0.0

    @classmethod
    def alike(cls, value: float) -> Distance:
        return cls(value, value, value)

    @property
    def largest(self) -> float:
        return max(self.rms, self.max, self.rest)

    @property
    def metric(self) -> Metric:
        """The name of the largest."""
        if self.rest > max(self.rms, self.max):
            return "rest"
        return "rms" if self.rms >= self.max else "max"

    def over(self, scale: Distance) -> Distance:
        return self._with(_ratio, scale)

    def times(self, scale: Distance) -> Distance:
        return self._with(operator.mul, scale)

    def or_more(self, other: Distance) -> Distance:
        return self._with(max, other)

    def at_most(self, other: Distance) -> Distance:
        return self._with(min, other)

    def _with(self, combine: Callable[[float, float], float], other: Distance) -> Distance:
        return Distance(
            combine(self.rms, other.rms),
            combine(self.max, other.max),
            combine(self.rest, other.rest),
        )


HEADINGS = (
    *("verified on", "output", "worst case", "floor", "error", "of its size", "ratio", "verdict"),
)
"""Of a table of rows."""

NUMERIC = frozenset({"floor", "error", "of its size", "ratio"})


@dataclass(frozen=True, slots=True)
class Place:
    """What is judged: one output of one case, in one runtime."""

    case: str
    provider: str
    output: str


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a candidate is from the original as it is, over the elements of one output.

    `absolute` and `relative` are the largest that any element needs; `assert_close` and `fixed` are
    the largest share of the tolerance that any element takes: a rule passes iff it is at most 1.
    """

    absolute: float
    relative: float
    assert_close: float
    fixed: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "absolute": json_number(self.absolute),
            "relative": json_number(self.relative),
            "assert_close": "pass" if self.assert_close <= 1 else "fail",
        }


NO_MEASURE = Difference(math.inf, math.inf, math.inf)
"""Of an output that has not the shape of the original's."""


@dataclass(frozen=True, slots=True)
class Row:
    """The judgement of one output of one case in one runtime.

    `floor`, `error` and `ratio` are those of `metric`, the figure of a Distance with the largest
    ratio; `ratio` is the smallest k that passes. `used` is the share of what the policy allows: it
    passes up to 1. `why` says what failed. `ties` is how many elements are not those of the truth,
    because the numbers that they were chosen by tie within rounding. `size` is how large the
    output itself is, by the same figure.
    """

    place: Place
    metric: Metric
    floor: float
    error: float
    ratio: float
    used: float
    difference: Difference | None = None
    why: str | None = None
    ties: int = 0
    size: float = 0.0

    @property
    def passed(self) -> bool:
        return self.why is None

    @property
    def badness(self) -> tuple[bool, float, float]:
        """Orders rows from best to worst."""
        return not self.passed, self.used, self.ratio

    def cells(self) -> tuple[str, ...]:
        """What a table shows, by HEADINGS."""
        return (
            self.place.provider,
            self.place.output,
            f"{self.place.case} ({self.metric})",
            f"{self.floor:.2e}",
            f"{self.error:.2e}",
            f"{self.error / self.size:.1e}" if self.size else "",
            f"{self.ratio:.2f}",
            "pass" if self.passed else "FAIL",
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.place.case,
            "provider": self.place.provider,
            "output": self.place.output,
            "metric": self.metric,
            "floor": json_number(self.floor),
            "error": json_number(self.error),
            "ratio": json_number(self.ratio),
            "size": json_number(self.size),
            "ties": self.ties,
            "difference": None if self.difference is None else self.difference.to_json(),
            "verdict": "pass" if self.passed else "fail",
            "why": self.why,
        }


def least(scale: Distance, dtype: str) -> Distance:
    """The floor below which no output of this scale and type is judged."""
    return Distance.alike(ULPS * EPSILON.get(dtype, 0.0)).times(scale)


def half_the_digits(scale: Distance, dtype: str) -> Distance:
    """The error that is granted where the truth is not at hand."""
    return Distance.alike(math.sqrt(EPSILON.get(dtype, 0.0))).times(scale)


def distance(output: Array, truth: Array) -> Distance:
    """Infinite unless NaN and infinities are just where the truth has them; between the others.

    Infinite between different shapes, too.
    """
    if output.shape != truth.shape:
        return Distance.alike(math.inf)
    whole = output.dtype.kind in "iu" and truth.dtype.kind in "iu"
    if whole and not np.array_equal(output, truth):  # also where float64 would not tell
        apart = np.abs(_wide(output) - _wide(truth))
        return _size(np.where(output != truth, np.maximum(apart, 1.0), 0.0), unfilled(truth))
    output, truth = _wide(output), _wide(truth)
    where = np.isfinite(truth)
    if not np.array_equal(output[~where], truth[~where], equal_nan=True):
        return Distance.alike(math.inf)
    if not np.isfinite(output[where]).all():
        return Distance.alike(math.inf)
    return _size(output[where] - truth[where], unfilled(truth[where]))


def is_discrete(values: Array) -> bool:
    """Whether they are integers, booleans or texts: the same or not."""
    return values.dtype.kind in "iubOUS"


def finite(values: Array) -> NDArray[np.bool_]:
    """Where an output of any type is neither NaN nor infinite."""
    found: NDArray[np.bool_] = np.isfinite(_wide(values))
    return found


def scale_of(truth: Array) -> Distance:
    """The size of an output itself, where it is finite."""
    truth = _wide(truth)
    numbers = truth[np.isfinite(truth)]
    return _size(numbers, unfilled(numbers))


def _size(values: Array, unfilled: NDArray[np.bool_] | None) -> Distance:
    if not values.size:
        return Distance(0.0, 0.0)
    absolute = np.abs(values)
    rest = 0.0 if unfilled is None else _rms(absolute[unfilled])
    return Distance(_rms(absolute), float(absolute.max()), rest)


def _rms(absolute: Array) -> float:
    """Of numbers whose squares may be beyond float64."""
    most = float(absolute.max(initial=0.0))
    if not 0 < most < math.inf:
        return most
    return most * float(np.sqrt(np.mean((absolute / most) ** 2)))


def unfilled(truth: Array) -> NDArray[np.bool_] | None:
    """Where an output has no fill value, such as the -1000 of a mask; None if it has none at all.

    A fill value is one number, or a few, far above all else, and stands in more than
    one place: beside it, what else the output says would be less than its rounding.
    """
    sizes = np.abs(truth)
    top = sizes.max(initial=0.0)
    if top < FILL:
        return None
    rest = sizes
    for _ in range(FILLS):
        rest = rest[rest < rest.max() * (1 - ALIKE)]
        if not rest.size:
            return None
        if rest.max() <= top / APART:
            found: NDArray[np.bool_] = sizes <= rest.max()
            return found if (~found).sum() > 1 else None
    return None


def _wide(values: Array) -> Array:
    if values.dtype.kind in "OUS":  # texts are the same or not: so are their checksums
        sums = [zlib.crc32(str(value).encode()) for value in values.flat]
        return np.array(sums, np.float64).reshape(values.shape)
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def difference(output: Array, original: Array, name: str, protocol: Protocol) -> Difference:
    """Compare with the original as it is; all infinite where the other's NaN and infinities are."""
    rtol, atol = ASSERT_CLOSE.get(output.dtype.name, (0.0, 0.0))
    fixed = None
    output, original = _wide(output), _wide(original)
    where = np.isfinite(original)
    apart = not np.array_equal(output[~where], original[~where], equal_nan=True)
    away, size = np.abs(output[where] - original[where]), np.abs(original[where])
    apart = apart or not np.isfinite(away).all()

    def taken(rtol: float, atol: float) -> float:
        return math.inf if apart else _share(away, atol + rtol * size)

    if protocol.policy == "fixed":
        fixed = taken(_tolerance(protocol.rtol, name), _tolerance(protocol.atol, name))
    return Difference(taken(0.0, 1.0), taken(1.0, 0.0), taken(rtol, atol), fixed)


def _tolerance(given: Mapping[str, float], output: str) -> float:
    return given.get(output, given.get("", 0.0))


def _share(away: Array, allowed: Array) -> float:
    """The largest away / allowed, where no distance takes nothing of no tolerance."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares = np.where(away == 0, 0.0, away / allowed)
    return float(shares.max(initial=0.0))


def judge(
    place: Place, floor: Distance, error: Distance, found: Difference, protocol: Protocol
) -> Row:
    ratio = error.over(floor)
    metric, worst = ratio.metric, ratio.largest
    used = {
        "floor": worst / protocol.k,
        "assert-close": found.assert_close,
        "fixed": math.inf if found.fixed is None else found.fixed,
    }[protocol.policy]
    why = None
    if math.isinf(error.max):
        why = "it has NaN or infinity where the truth is finite, or the other way round"
    elif protocol.policy != "floor":
        if not used <= 1:
            why = f"it differs from the original by {used:.3g} times what {protocol.rule} allows"
    elif not math.isfinite(getattr(floor, metric)):
        why = "the original itself is infinitely far from the truth"
    elif not worst <= protocol.k:
        why = f"its error is {worst:.3g} times the floor, more than k = {protocol.k:g}"
    figures = getattr(floor, metric), getattr(error, metric), worst
    return Row(place, metric, *figures, used, found, why)


def failed(place: Place, why: str) -> Row:
    """An output that fails before any number is compared."""
    return Row(place, "rms", 0.0, math.inf, math.inf, math.inf, None, why)


def mismatch(output: Array, expected: Array) -> str | None:
    """What is wrong with the form of an output, if anything."""
    if output.shape != expected.shape:
        why = f"its shape is {list(output.shape)}, the original's is {list(expected.shape)}"
        pairs = enumerate(zip(output.shape, expected.shape, strict=False))
        axes = [str(axis) for axis, (own, other) in pairs if own != other]
        return f"{why} (axis {', '.join(axes)})" if output.ndim == expected.ndim else why
    if output.dtype != expected.dtype:
        return f"its type is {output.dtype}, the original's is {expected.dtype}"
    return None


def _ratio(error: float, floor: float) -> float:
    if error == 0:
        return 0.0
    return error / floor if floor else math.inf


def json_number(value: float) -> float | str:
    """JSON has no infinity: it is written as a string."""
    return value if math.isfinite(value) else str(value)
