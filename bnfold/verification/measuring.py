"""Run a truth and originals on every case: what candidates are held against, and its floors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import ModelError, UsageError, first_line
from bnfold.processes.child import ProcessLostError
from bnfold.protocol import Protocol
from bnfold.runtimes import NotComputableError, Outputs, Runner
from bnfold.verification.cases import Case
from bnfold.verification.gate import (
    Distance,
    Place,
    Row,
    distance,
    failed,
    finite,
    half_the_digits,
    is_discrete,
    least,
    scale_of,
)
from bnfold.verification.recorder import Recorded
from bnfold.verification.scatter import distances, largest, moved, scatter

Ranges = Sequence[float]
"""Of every output, in order, the size of what bounds it, such as 1 for a sigmoid; else 0."""


class NotDeterministicError(ValueError):
    """The original gives different outputs for the same input: nothing can be compared with it."""


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """A case with its truth and what the originals made of it."""

    case: Case
    truth: Outputs
    runs: dict[str, Outputs]
    originals: dict[str, Runner]
    scattered: dict[str, list[Distance]] = field(default_factory=dict)

    def original(self, provider: str) -> tuple[str, Outputs]:
        name = provider if provider in self.runs else next(iter(self.runs))
        return name, self.runs[name]

    def input_names(self, original: str) -> list[str]:
        """The inputs of the case in the order in which the original takes them."""
        own = self.originals[original].input_names
        return sorted(
            self.case.sample, key=lambda name: own.index(name) if name in own else len(own)
        )

    def floors(self, original: str) -> list[Distance]:
        """The distance of the original's outputs from the truth, in order."""
        return distances(self.runs[original], self.truth)

    def spread(self, i: int) -> Distance:
        """How far the originals are at most from each other in the output numbered `i`."""
        return largest([self.floors(name)[i] for name in self.runs])

    def apart(self, output: str) -> float:
        """How far an output is from itself in another place where the original runs, at most."""
        runs = [outputs[output] for outputs in self.runs.values() if output in outputs]
        return max((distance(a, b).max for a in runs for b in runs if a is not b), default=-1.0)

    def values(self, i: int) -> Iterator[NDArray[Any]]:
        """What the originals give for the output numbered `i`, and the truth."""
        yield list(self.truth.values())[i]
        yield from (list(outputs.values())[i] for outputs in self.runs.values())

    def scatter(self, original: str) -> list[Distance]:
        """What `scatter` finds of the original; taken once, when it is asked for."""
        if original not in self.scattered:
            runner = self.originals[original]
            if isinstance(runner, Recorded):
                found = list(runner.scatter(self.case.sample)) or self.floors(original)
            else:
                found = scatter(runner, self.case.sample, self.truth)
            self.scattered[original] = found
        return self.scattered[original]


@dataclass(frozen=True, eq=False, slots=True)
class Floors:
    """What errors are measured in. `exact`: there is a truth; else half the digits are asked for.

    `factor` raises every floor.
    """

    usual: Usual
    ranges: Ranges
    k: float
    exact: bool
    factor: float = 1.0

    def of(self, i: int, one: Measured, source: str, dtype: str) -> Distance:
        """What the error of the output numbered `i` is measured in; integers have none."""
        truth = list(one.truth.values())[i]
        if is_discrete(truth):
            return Distance.alike(0.0)
        relative, usual = self.usual[source, i]
        own = scale_of(truth)
        scale = own if own.max else usual
        bounded = scale.or_more(bound_of(i, self.ranges))
        floors = [one.floors(source)[i], relative.times(bounded), least(bounded, dtype)]
        if not self.exact:
            granted = half_the_digits(scale, dtype)
            floors += [granted.times(Distance.alike(1 / self.k)), one.spread(i)]
        return largest(floors).times(Distance.alike(self.factor))


def bound_of(i: int, ranges: Ranges) -> Distance:
    """The scale that what bounds the output numbered `i` gives it."""
    return Distance.alike(ranges[i] if i < len(ranges) else 0.0)


@dataclass(frozen=True, eq=False, slots=True)
class Taken:
    """Every case that can be judged; of the others, the failures of those that the user gave."""

    measured: tuple[Measured, ...]
    unusable: tuple[Row, ...]
    notes: tuple[str, ...]


def take(
    truth: Runner | None, originals: Sequence[Runner], cases: Iterable[Case], protocol: Protocol
) -> Taken:
    """Run them on every case; raises what `bnfold.verification.judging.measure` does."""
    measured: list[Measured] = []
    unusable: list[Row] = []
    notes: list[str] = []
    for probe in cases:
        try:
            one = _measured_or_instead(truth, originals, probe)
        except (NotComputableError, MemoryError, ProcessLostError):
            raise
        except Exception as error:
            if probe.given or not measured:
                raise
            reason = f"the original does not run on it: {first_line(error)}"
            notes.append(f"case {probe.name} is left out: {reason}")
            continue
        case = one.case
        if not measured:
            _require_repeatable(originals[0], case, one.runs[originals[0].name])
            _require_known(protocol, one.runs[originals[0].name])
        if why := _unusable(one):
            notes.append(f"case {case.name} is left out: the original gives {why}")
            if case.given:
                place = Place(case.name, originals[0].name, ", ".join(one.truth))
                unusable.append(failed(place, f"it cannot be judged: the original gives {why}"))
        else:
            measured.append(one)
    return Taken(tuple(measured), tuple(unusable), tuple(notes))


def _measured_or_instead(truth: Runner | None, originals: Sequence[Runner], case: Case) -> Measured:
    """The first that the original runs on of the case and what stands in for it."""
    one: Measured | None
    while case.instead is not None:
        try:
            one = _measured(truth, originals, case)
        except (MemoryError, ProcessLostError):
            raise
        except Exception:  # of a probe that this original is not made for
            one = None
        if one is not None and _unusable(one) is None:
            return one
        case = case.instead
    return _measured(truth, originals, case)


def _measured(truth: Runner | None, originals: Sequence[Runner], case: Case) -> Measured:
    runs = {original.name: original(case.sample) for original in originals}
    for name, output in runs[originals[0].name].items():
        if not isinstance(output, np.ndarray):
            raise ModelError(
                f"the output {name!r} is a {type(output).__name__}, which cannot be compared",
                "give the model outputs that are tensors",
            )
    exact = None if truth is None else truth(case.sample)
    by_name = {original.name: original for original in originals}
    one = Measured(case, runs[originals[0].name] if exact is None else exact, runs, by_name)
    _require_shapes(one, originals[0].name)
    return one


def _require_shapes(one: Measured, first: str) -> None:
    """A truth of other shapes than the original is none; a conversion of other shapes is wrong.

    How many there are of what was found, such as by NonZero, may hang on a tie.
    """
    for runner, outputs in one.runs.items():
        for (name, output), truth in zip(outputs.items(), one.truth.values(), strict=False):
            if output.shape != truth.shape and not (
                is_discrete(truth) and output.ndim == truth.ndim
            ):
                why = f"{name} is {output.shape} on {runner} and {truth.shape} in float64"
                if runner == first:
                    raise NotComputableError(why)
                hint = "let the model return real numbers" if np.iscomplexobj(truth) else None
                raise ModelError(f"the conversion changes a shape: {why}", hint)


def _unusable(one: Measured) -> str | None:
    """What the original gives that nothing can be compared with."""
    if not any(finite(output).any() or not output.size for output in one.truth.values()):
        return "no finite number"
    for outputs in one.runs.values():
        if len(outputs) != len(one.truth):
            return "other outputs than in float64"
        for output, truth in zip(outputs.values(), one.truth.values(), strict=True):
            if is_discrete(truth):
                continue
            if np.any(finite(truth) & ~finite(output)):
                return "NaN or infinity where float64 does not"
    return None


def silent(measured: Sequence[Measured], floors: Floors) -> Iterator[str]:
    """A note for every output that shows nothing, because it is always the same or too small."""
    for i, (name, first) in enumerate(measured[0].truth.items() if measured else ()):
        having = [one for one in measured if i < len(one.truth)]
        others = [list(one.truth.values())[i] for one in having[1:]]
        alike = [other for other in others if other.shape == first.shape]
        if alike and all(_same(other, first) for other in alike):
            yield f"the output {name} is the same in every case: it shows nothing of the model"
        elif not is_discrete(first) and all(_is_lost(i, one, floors) for one in having):
            yield f"the output {name} is below what rounding allows in every case: zeros would pass"


def _is_lost(i: int, one: Measured, floors: Floors) -> bool:
    """Whether an output is no larger than the error that is allowed of it."""
    source, outputs = one.original("")
    dtype = list(outputs.values())[i].dtype.name
    floor = floors.of(i, one, source, dtype)
    return scale_of(list(one.truth.values())[i]).over(floor).largest <= floors.k


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two outputs in float64 agree to the digits that float32 has."""
    return distance(one, other).max <= least(scale_of(other), "float32").max


def _require_repeatable(original: Runner, case: Case, first: Outputs) -> None:
    """Two runs may differ by rounding (threads sum in any order), not in half of their digits."""
    second = original(case.sample)
    if list(second) != list(first):
        raise NotDeterministicError(
            f"the model gives other outputs for the same input: {list(first)}, then {list(second)}"
        )
    for (name, one), two in zip(first.items(), second.values(), strict=True):
        if distance(two, one).max > half_the_digits(scale_of(one), one.dtype.name).max:
            raise NotDeterministicError(
                f"the model gives different values of {name} for the same input"
            )


def require_the_same(truth: Runner, measured: Sequence[Measured], floors: Floors) -> None:
    """The truth is of another function than the original if k floors are as large as an output:
    whatever is computed wrong, zeros would pass for it. Rounding gets there only where an output is
    far below what it is computed from, and is another for an input close by."""
    most = max((one.truth for one in measured), key=len, default={})
    for (source, i), (relative, _) in floors.usual.items():
        name, array = list(most.items())[i]
        if array.dtype != np.float64 or floors.k * relative.rms < 1:
            continue
        if not _is_rounding(truth, measured, source, i):
            raise NotComputableError(
                f"{name} on {source} is usually {relative.rms:.1%} of its size away from it"
            )


def _is_rounding(truth: Runner, measured: Sequence[Measured], source: str, i: int) -> bool:
    """Whether the error of an output is noise: of another function it would hardly change.

    The input is moved by half of its digits, which changes noise altogether.
    """
    for one in measured:
        runner = one.originals[source]
        if i >= len(one.truth) or not one.floors(source)[i].rms or isinstance(runner, Recorded):
            continue
        close = moved(one.case.sample, 0, math.sqrt)
        pairs = ((one.runs[source], one.truth), (runner(close), truth(close)))
        first, second = (
            list(own.values())[i].astype(np.float64) - list(exact.values())[i]
            for own, exact in pairs
        )
        return bool(np.square(first - second).mean() >= np.square(first).mean() / 2)
    return False


def _require_known(protocol: Protocol, outputs: Outputs) -> None:
    for name in (*protocol.rtol, *protocol.atol):
        if name and name not in outputs:
            raise UsageError(
                f"there is a tolerance for {name!r}, which is no output of the original",
                f"its outputs are {', '.join(outputs)}",
            )


Usual = dict[tuple[str, int], tuple[Distance, Distance]]
"""(original, output index) -> its floor relative to its scale, and its scale, over the cases.

The floor is relative to what bounds the output where that is larger.
"""


def usual_of(measured: Sequence[Measured], ranges: Ranges = ()) -> Usual:
    """The medians over the cases on which the output is not exactly zero."""
    usual: Usual = {}
    for name in sorted({name for one in measured for name in one.runs}):
        for i in range(max(len(one.truth) for one in measured)):
            having = [one for one in measured if i < len(one.truth)]
            scales = [scale_of(list(one.truth.values())[i]) for one in having]
            pairs = [
                (one.floors(name)[i].over(scale.or_more(bound_of(i, ranges))), scale)
                for one, scale in zip(having, scales, strict=True)
                if scale.max > 0
            ]
            relative, sizes = ([pair[k] for pair in pairs] for k in (0, 1))
            usual[name, i] = _medians(relative), _medians(sizes)
    return usual


def _medians(distances: Sequence[Distance]) -> Distance:
    return Distance(
        _median([d.rms for d in distances]),
        _median([d.max for d in distances]),
        _median([d.rest for d in distances if d.rest]),
    )


def _median(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else 0.0
