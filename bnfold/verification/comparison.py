"""Run a truth, originals and candidates on every case, and judge each output that comes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import ModelError, UsageError
from bnfold.protocol import Protocol
from bnfold.run import NotComputableError, Outputs, Runner, Sample, notes_of, overwritten
from bnfold.run.process import ProcessLostError
from bnfold.run.samples import matched
from bnfold.verification.cases import Case
from bnfold.verification.gate import (
    Distance,
    Place,
    Row,
    difference,
    distance,
    failed,
    finite,
    half_the_digits,
    judge,
    least,
    mismatch,
    scale_of,
)
from bnfold.verification.golden import Recorded
from bnfold.verification.scatter import MOST_LUCK, distances, largest, scatter
from bnfold.verification.verdict import Verification


class NotDeterministicError(ValueError):
    """The original gives different outputs for the same input: nothing can be compared with it."""


def compare(
    truth: Runner | None,
    originals: Sequence[Runner],
    candidates: Sequence[Runner],
    cases: Iterable[Case],
    protocol: Protocol,
) -> Verification:
    """Judge `candidates` on `cases`, as `measure` and `Measurement.judge` do."""
    return measure(truth, originals, cases, protocol).judge(candidates)


def measure(
    truth: Runner | None,
    originals: Sequence[Runner],
    cases: Iterable[Case],
    protocol: Protocol,
) -> Measurement:
    """The truth and the floor of every case; without a `truth` the first original stands for it.

    Probes on which an original itself fails or overflows cannot be judged and are named in the
    notes; the first case, and those that the user gave, have to run. Raises NotComputableError if
    the truth cannot be had, NotDeterministicError if an original does not repeat itself, and
    UsageError if a tolerance is for an output that is not there.
    """
    measured: list[_Measured] = []
    unusable: list[Row] = []
    notes: list[str] = []
    for case in cases:
        try:
            one = _measure(truth, originals, case)
        except (NotComputableError, MemoryError, ProcessLostError):
            raise
        except Exception as error:
            if case.given or not measured:
                raise
            reason = f"the original does not run on it: {_first_line(error)}"
            notes.append(f"case {case.name} is left out: {reason}")
            continue
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
    notes += _silent(measured)
    stands = f"the original as it runs on {originals[0].name}" if truth is None else truth.name
    usual = _usual(measured)
    if truth is not None:
        _require_the_same(measured, usual, protocol.k)
    judging = _Judging(protocol, usual, truth is not None)
    return Measurement(judging, tuple(measured), tuple(unusable), tuple(notes), stands)


@dataclass(frozen=True, eq=False, slots=True)
class Measurement:
    """What candidates are held against: the truth of every case, and the floor of every original.

    `unusable` are the failures of cases that the user gave and that nothing can be judged on.
    """

    judging: _Judging
    measured: tuple[_Measured, ...]
    unusable: tuple[Row, ...]
    notes: tuple[str, ...]
    truth: str

    @property
    def cases(self) -> list[Case]:
        """Those that are judged."""
        return [one.case for one in self.measured]

    def on(self, case: str) -> Measurement:
        """The one case of that name."""
        one = tuple(one for one in self.measured if one.case.name == case)
        return replace(self, measured=one, unusable=())

    def allowing(self, factor: float) -> Measurement:
        """The same, with every floor `factor` times as high."""
        return replace(self, judging=replace(self.judging, factor=factor))

    def roughly(self) -> Measurement:
        """The same, with floors that pass half the digits: for what was found right otherwise."""
        return replace(self, judging=replace(self.judging, exact=False))

    def in_float64(self, exact: Runner, against: str | None = None) -> Verification:
        """Judge what a model computes in float64, rounded to the types of the original's outputs.

        Raises NotComputableError if it cannot be computed.
        """
        rows: list[Row] = []
        for one in self.measured:
            _, outputs = one.original(against or exact.name)
            narrowed = _Narrowed(exact, [output.dtype for output in outputs.values()])
            narrowed(one.case.sample)
            rows += self.judging.rows(narrowed, one, against or exact.name)
        return Verification(self.judging.protocol, tuple(rows), (), self.truth)

    def change(self, before: Runner, after: Runner, provider: str, enough: float) -> float:
        """How far apart two runners are, in floors of `provider`, by the larger of RMS and maximum.

        Of the outputs and cases the first that is more than `enough`, or else the largest.
        """
        largest = 0.0
        for one in self.measured:
            sample = matched(one.case.sample, before.input_names)
            pairs = zip(before(sample).values(), after(sample).values(), strict=True)
            for i, (exact, changed) in enumerate(pairs):
                source, outputs = one.original(provider)
                dtype = list(outputs.values())[i].dtype.name
                ratio = distance(changed, exact).over(self.judging.floor(i, one, source, dtype))
                largest = max(largest, ratio.largest)
                if largest > enough:
                    return largest
        return largest

    def judge(self, candidates: Iterable[Runner], against: str | None = None) -> Verification:
        """Hold each candidate against the floor of the original that is called `against`.

        Without it, the original that runs in the same place, or the first where none does.
        """
        candidates = list(candidates)
        notes = [note for candidate in candidates for note in notes_of(candidate)]
        rows = [
            row
            for candidate in candidates
            for one in self.measured
            for row in self.judging.rows(candidate, one, against or candidate.name)
        ]
        protocol, rows = self.judging.protocol, [*self.unusable, *rows]
        return Verification(protocol, tuple(rows), (*self.notes, *notes), self.truth)


@dataclass(frozen=True, eq=False, slots=True)
class _Narrowed:
    """A runner whose outputs are rounded to `types`."""

    runner: Runner
    types: Sequence[np.dtype[Any]]

    @property
    def name(self) -> str:
        return self.runner.name

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.runner.input_names

    def __call__(self, sample: Sample) -> Outputs:
        outputs = self.runner(matched(sample, self.input_names))
        kinds = [*self.types, *[None] * (len(outputs) - len(self.types))]
        pairs = zip(outputs.items(), kinds, strict=False)
        return {name: output.astype(kind) if kind else output for (name, output), kind in pairs}


@dataclass(frozen=True, eq=False, slots=True)
class _Measured:
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


def _measure(truth: Runner | None, originals: Sequence[Runner], case: Case) -> _Measured:
    runs = {original.name: original(case.sample) for original in originals}
    for name, output in runs[originals[0].name].items():
        if not isinstance(output, np.ndarray):
            raise ModelError(
                f"the output {name!r} is a {type(output).__name__}, which cannot be compared",
                "give the model outputs that are tensors",
            )
    exact = None if truth is None else truth(case.sample)
    by_name = {original.name: original for original in originals}
    one = _Measured(case, runs[originals[0].name] if exact is None else exact, runs, by_name)
    _require_shapes(one, originals[0].name)
    return one


def _require_shapes(one: _Measured, first: str) -> None:
    """A truth of other shapes than the original is none; a conversion of other shapes is wrong."""
    for runner, outputs in one.runs.items():
        for (name, output), truth in zip(outputs.items(), one.truth.values(), strict=False):
            if output.shape != truth.shape:
                why = f"{name} is {output.shape} on {runner} and {truth.shape} in float64"
                if runner == first:
                    raise NotComputableError(why)
                hint = "let the model return real numbers" if np.iscomplexobj(truth) else None
                raise ModelError(f"the conversion changes a shape: {why}", hint)


@dataclass(frozen=True, eq=False, slots=True)
class _Judging:
    """Judges what candidates make of cases that were measured."""

    protocol: Protocol
    usual: _Usual
    exact: bool
    factor: float = 1.0

    def rows(self, candidate: Runner, one: _Measured, against: str) -> list[Row]:
        source, expected = one.original(against)

        def place(output: str) -> Place:
            return Place(one.case.name, candidate.name, output)

        try:
            outputs = candidate(matched(one.case.sample, candidate.input_names))
        except Exception as error:  # whatever stops the candidate is a failure of the candidate
            why = f"the candidate does not run: {_first_line(error)}"
            return [failed(place(next(iter(expected))), why)]
        if len(outputs) != len(expected):
            why = f"it has {len(outputs)} outputs, the original has {len(expected)}"
            return [failed(place(", ".join(expected)), why)]
        if not _in_place([*outputs], [*expected]):
            why = f"its outputs come in another order: {', '.join(outputs)}"
            return [failed(place(", ".join(expected)), why)]
        if not _in_place(candidate.input_names, one.input_names(source)):
            why = f"its inputs come in another order: {', '.join(candidate.input_names)}"
            return [failed(place(", ".join(expected)), why)]
        spoiled = _spoiled(candidate, outputs, one, source)
        if spoiled:
            why = f"it overwrites its caller's input {spoiled[0]}, which the original leaves alone"
            return [failed(place(", ".join(expected)), why)]
        return [
            self._row(place(name), i, output, one, source)
            for i, (name, output) in enumerate(zip(expected, outputs.values(), strict=True))
        ]

    def _row(self, place: Place, i: int, output: NDArray[Any], one: _Measured, source: str) -> Row:
        original, truth = one.runs[source][place.output], list(one.truth.values())[i]
        if not isinstance(output, np.ndarray):
            return failed(place, f"it is a {type(output).__name__}, not a tensor")
        if problem := mismatch(output, original):
            return failed(place, problem)
        floor = self.floor(i, one, source, output.dtype.name)
        error, found = (
            distance(output, truth),
            difference(output, original, place.output, self.protocol),
        )
        row = judge(place, floor, error, found, self.protocol)
        if row.passed or self.protocol.policy != "floor" or not math.isfinite(row.ratio):
            return row
        most = floor.times(Distance.alike(MOST_LUCK))
        wider = one.scatter(source)[i].times(Distance.alike(self.factor)).at_most(most)
        return judge(place, floor.or_more(wider), error, found, self.protocol)

    def floor(self, i: int, one: _Measured, source: str, dtype: str) -> Distance:
        """What the error of the output numbered `i` is measured in."""
        relative, usual = self.usual[source, i]
        own = scale_of(list(one.truth.values())[i])
        scale = own if own.max else usual
        floors = [one.floors(source)[i], relative.times(scale), least(scale, dtype)]
        if not self.exact:
            k = self.protocol.k
            floors.append(half_the_digits(scale, dtype).times(Distance.alike(1 / k)))
        return largest(floors).times(Distance.alike(self.factor))


def _spoiled(candidate: Runner, outputs: Outputs, one: _Measured, source: str) -> list[str]:
    """The inputs that the candidate overwrites and the original does not, matched in order.

    What was recorded does not say what the original does.
    """
    if isinstance(one.originals[source], Recorded):
        return []
    theirs, own = one.input_names(source), candidate.input_names
    changed = {theirs.index(name) for name in overwritten(one.runs[source]) if name in theirs}
    return [name for name in overwritten(outputs) if name in own and own.index(name) not in changed]


def _in_place(own: Sequence[str], others: Sequence[str]) -> bool:
    """Whether no name stands where the other has another one, and it elsewhere.

    `own` may have names between those of the other, if it has all of them.
    """
    if set(own) >= set(others):
        own = [name for name in own if name in others]
    pairs = zip(own, others, strict=False)
    return all(name == other or name not in others for name, other in pairs)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unusable(one: _Measured) -> str | None:
    """What the original gives that nothing can be compared with."""
    if not any(finite(output).any() for output in one.truth.values()):
        return "no finite number"
    for outputs in one.runs.values():
        if len(outputs) != len(one.truth):
            return "other outputs than in float64"
        for output, truth in zip(outputs.values(), one.truth.values(), strict=True):
            if np.any(finite(truth) & ~finite(output)):
                return "NaN or infinity where float64 does not"
    return None


def _silent(measured: Sequence[_Measured]) -> Iterator[str]:
    """A note for every output that is the same whatever comes in, such as a saturated one."""
    for i, (name, first) in enumerate(measured[0].truth.items() if measured else ()):
        others = [list(one.truth.values())[i] for one in measured[1:] if i < len(one.truth)]
        alike = [other for other in others if other.shape == first.shape]
        if alike and all(_same(other, first) for other in alike):
            yield f"the output {name} is the same in every case: it shows nothing of the model"


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


def _require_the_same(measured: Sequence[_Measured], usual: _Usual, k: float) -> None:
    """The truth is of another function than the original if k floors are as large as an output:
    whatever is computed wrong, zeros would pass for it. Rounding alone does not get there."""
    most = max((one.truth for one in measured), key=len, default={})
    for (source, i), (relative, _) in usual.items():
        name, array = list(most.items())[i]
        if array.dtype == np.float64 and k * relative.rms >= 1:
            raise NotComputableError(
                f"{name} on {source} is usually {relative.rms:.1%} of its size away from it"
            )


def _require_known(protocol: Protocol, outputs: Outputs) -> None:
    for name in (*protocol.rtol, *protocol.atol):
        if name and name not in outputs:
            raise UsageError(
                f"there is a tolerance for {name!r}, which is no output of the original",
                f"its outputs are {', '.join(outputs)}",
            )


_Usual = dict[tuple[str, int], tuple[Distance, Distance]]
"""(original, output index) -> its floor relative to its scale, and its scale, over the cases."""


def _usual(measured: Sequence[_Measured]) -> _Usual:
    """The medians over the cases on which the output is not exactly zero."""
    usual: _Usual = {}
    for name in sorted({name for one in measured for name in one.runs}):
        for i in range(max(len(one.truth) for one in measured)):
            having = [one for one in measured if i < len(one.truth)]
            scales = [scale_of(list(one.truth.values())[i]) for one in having]
            pairs = [
                (one.floors(name)[i].over(scale), scale)
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
