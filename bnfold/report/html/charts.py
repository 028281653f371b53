"""What the charts of the page show, in their own coordinates: from 0 to 1 along each axis.

The template turns these into SVG; no number is computed there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.graph import Node, params
from bnfold.algebra.plan import Plan
from bnfold.report.speed import against_first, ratio
from bnfold.report.units import seconds
from bnfold.verification import Row, Verification

if TYPE_CHECKING:
    from bnfold.verbs.benching import BenchResult, Measurement

BINS = 48
MOST_HISTOGRAMS = 24
"""Layers whose weights are shown: those with the largest amplification come first."""

MOST_SAMPLED = 200_000
"""Elements of a weight that are counted, evenly spaced."""


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A case: where floor, error and limit lie; None for what is zero or infinite."""

    case: str
    floor: float | None
    error: float | None
    limit: float | None
    passed: bool
    said: str
    title: str


@dataclass(frozen=True, slots=True)
class ErrorChart:
    """The cases of one output in one place, on a logarithmic axis."""

    place: str
    output: str
    rows: tuple[Judged, ...]
    ticks: tuple[Tick, ...]


def error_charts(verification: Verification) -> list[ErrorChart]:
    """One for every place and output; all with the same axis.

    There is a limit to draw under the policy "floor" alone: others do not go by floor and error.
    """
    protocol = verification.protocol
    k = protocol.k if protocol.policy == "floor" else math.inf
    drawn = [v for row in verification.rows for v in (row.floor, row.error, k * row.floor)]
    low, high = _decades([value for value in drawn if _plotted(value)])
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in verification.rows:
        groups.setdefault((row.place.provider, row.place.output), []).append(row)
    return [
        ErrorChart(
            provider,
            output,
            tuple(_judged(row, k, low, high) for row in rows),
            tuple(_log_ticks(low, high)),
        )
        for (provider, output), rows in groups.items()
    ]


def _judged(row: Row, k: float, low: int, high: int) -> Judged:
    def at(value: float) -> float | None:
        return (math.log10(value) - low) / (high - low) if _plotted(value) else None

    title = row.why or f"error {row.error:.3g}, floor {row.floor:.3g}, ratio {row.ratio:.3g}"
    limit = at(k * row.floor)
    return Judged(
        row.place.case, at(row.floor), at(row.error), limit, row.passed, in_floors(row.ratio), title
    )


def in_floors(ratio: float) -> str:
    """How many floors an error is, in three digits or so."""
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.3g}" if math.isfinite(ratio) else "FAIL"


def _plotted(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around the values, two apart at least."""
    if not values:
        return -8, 0
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 2)


def _log_ticks(low: int, high: int) -> Iterator[Tick]:
    step = max(1, -(-(high - low) // 5))
    for power in range(low, high + 1, step):
        yield Tick((power - low) / (high - low), f"1e{power}")


@dataclass(frozen=True, slots=True)
class Histogram:
    """A weight before and after over the same bins: heights from 0 to 1, None if it was not."""

    title: str
    before: tuple[float, ...] | None
    after: tuple[float, ...]
    low: str
    high: str
    before_range: str
    after_range: str


def histograms(plan: Plan) -> tuple[list[Histogram], int]:
    """The weights that changed, those most amplified first; and how many are not shown."""
    loudness: dict[str, float] = {}
    for site in plan.sites:
        for name in site.into:
            loudness[name] = max(loudness.get(name, 0.0), site.amplification or 0.0)
    changed = [
        (was, now)
        for was, now in plan.changed()
        if any(role == "weight" for role, _ in params(now.op))
    ]
    changed.sort(key=lambda pair: -loudness.get(pair[1].name, 0.0))
    shown = changed[:MOST_HISTOGRAMS]
    return [_histogram(was, now) for was, now in shown], len(changed) - len(shown)


def _histogram(was: Node, now: Node) -> Histogram:
    after = _values(now)
    before = _values(was)
    assert after is not None
    both = after if before is None else np.concatenate([before, after])
    low, high = float(both.min(initial=0)), float(both.max(initial=0))
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = [
        None if values is None else np.histogram(values, BINS, (low, high))[0] / values.size
        for values in (before, after)
    ]
    top = max(float(count.max()) for count in counts if count is not None)
    heights = [None if c is None else tuple((c / top).tolist()) for c in counts]
    assert heights[1] is not None
    return Histogram(
        now.name, heights[0], heights[1], f"{low:.3g}", f"{high:.3g}", _range(before), _range(after)
    )


def _values(node: Node) -> NDArray[np.float64] | None:
    """The elements of a node's weight, or evenly spaced ones of a large one."""
    for role, param in params(node.op):
        if role == "weight":
            flat = param.load().ravel()
            flat = flat[:: max(1, flat.size // MOST_SAMPLED)]
            return flat[np.isfinite(flat)]
    return None


def _range(values: NDArray[np.float64] | None) -> str:
    if values is None or not values.size:
        return "none"
    return f"{values.min():.3g} to {values.max():.3g}"


@dataclass(frozen=True, slots=True)
class Timed:
    """A bar from p10 to p90 with the median, and a dot for every round."""

    model: str
    low: float
    middle: float
    high: float
    dots: tuple[float, ...]
    said: str
    compared: str


@dataclass(frozen=True, slots=True)
class LatencyChart:
    """The models in one place; the axis begins at 0 seconds."""

    place: str
    rows: tuple[Timed, ...]
    ticks: tuple[Tick, ...]


def latency_charts(result: BenchResult) -> list[LatencyChart]:
    compared = against_first(result)
    groups: dict[str, list[tuple[Measurement, str]]] = {}
    for position, each in enumerate(result.measurements):
        place = each.provider if each.batch is None else f"{each.provider}, batch {each.batch}"
        found = compared.get(position)
        said = "" if found is None else f"times as fast: {ratio(found.speedup)}"
        groups.setdefault(place, []).append((each, said))
    return [_latency_chart(place, rows) for place, rows in groups.items()]


def _latency_chart(place: str, rows: Iterable[tuple[Measurement, str]]) -> LatencyChart:
    rows = list(rows)
    most = 1.1 * max(each.latency.p90 for each, _ in rows)
    timed = tuple(
        Timed(
            each.model,
            each.latency.p10 / most,
            each.latency.median / most,
            each.latency.p90 / most,
            tuple(value / most for value in each.seconds if value <= most),
            seconds(each.latency.median),
            said,
        )
        for each, said in rows
    )
    ticks = tuple(Tick(v / most, seconds(v) if v else "0") for v in _round_steps(most))
    return LatencyChart(place, timed, ticks)


def _round_steps(most: float) -> list[float]:
    """About five round numbers from 0 to `most`."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough)
    return [step * i for i in range(int(most / step) + 1)]
