"""Hold candidates against what was measured of their original, output by output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import first_line
from bnfold.formats.capabilities import Decisions
from bnfold.protocol import Protocol
from bnfold.runtimes import Outputs, Runner, RunnerOf, Sample, notes_of, overwritten
from bnfold.runtimes.samples import matched
from bnfold.runtimes.sides import Sides
from bnfold.verification.cases import Case
from bnfold.verification.decisions import Ties, Undecided
from bnfold.verification.gate import (
    NO_MEASURE,
    Distance,
    Place,
    Row,
    difference,
    distance,
    failed,
    is_discrete,
    judge,
    mismatch,
    scale_of,
)
from bnfold.verification.measuring import (
    Floors,
    Measured,
    Ranges,
    require_the_same,
    silent,
    take,
    usual_of,
)
from bnfold.verification.recorder import Recorded
from bnfold.verification.scatter import MOST_LUCK
from bnfold.verification.verdict import Verification


def compare(
    truth: Runner | None,
    originals: Sequence[Runner],
    candidates: Sequence[Runner],
    cases: Iterable[Case],
    protocol: Protocol,
    ranges: Ranges = (),
    decisions: Decisions | None = None,
) -> Verification:
    """Judge `candidates` on `cases`, as `measure` and `Measurement.judge` do."""
    return measure(truth, originals, cases, protocol, ranges, decisions).judge(candidates)


def measure(
    truth: Runner | None,
    originals: Sequence[Runner],
    cases: Iterable[Case],
    protocol: Protocol,
    ranges: Ranges = (),
    decisions: Decisions | None = None,
) -> Measurement:
    """The truth and the floor of every case; without a `truth` the first original stands for it.

    `ranges` and `decisions` are what the original tells of its outputs. Probes on which an original
    itself fails or overflows cannot be judged and are named in the notes; the first case, and those
    that the user gave, have to run. Raises NotComputableError if the truth cannot be had,
    NotDeterministicError if an original does not repeat itself, and UsageError if a tolerance is
    for an output that is not there.
    """
    taken = take(truth, originals, cases, protocol)
    floors = Floors(usual_of(taken.measured, ranges), ranges, protocol.k, truth is not None)
    if truth is not None:
        require_the_same(truth, taken.measured, floors)
    notes = (*taken.notes, *silent(taken.measured, floors))
    stands = f"the original as it runs on {originals[0].name}" if truth is None else truth.name
    known = decisions or Decisions()
    ties = Ties(known, truth) if truth else Ties(Decisions(known.positions), originals[0])
    judging = _Judging(protocol, floors, ties)
    return Measurement(judging, taken.measured, taken.unusable, notes, stands)


@dataclass(frozen=True, eq=False, slots=True)
class Measurement:
    """What candidates are held against: the truth of every case, and the floor of every original.

    `unusable` are the failures of cases that the user gave and that nothing can be judged on;
    `sides` is what of the original was reached.
    """

    judging: _Judging
    measured: tuple[Measured, ...]
    unusable: tuple[Row, ...]
    notes: tuple[str, ...]
    truth: str
    sides: Sides | None = None

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
        return self._with(replace(self.judging.floors, factor=factor))

    def roughly(self) -> Measurement:
        """The same, with floors that pass half the digits: for what was found right otherwise."""
        return self._with(replace(self.judging.floors, exact=False))

    def _with(self, floors: Floors) -> Measurement:
        return replace(self, judging=replace(self.judging, floors=floors))

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
                floor = self.judging.floors.of(i, one, source, dtype)
                largest = max(largest, distance(changed, exact).over(floor).largest)
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


@dataclass(eq=False)
class _Narrowed(RunnerOf):
    """A runner whose outputs are rounded to `types`."""

    types: Sequence[np.dtype[Any]]

    def __call__(self, sample: Sample) -> Outputs:
        outputs = self.runner(matched(sample, self.input_names))
        kinds = [*self.types, *[None] * (len(outputs) - len(self.types))]
        pairs = zip(outputs.items(), kinds, strict=False)
        return {name: output.astype(kind) if kind else output for (name, output), kind in pairs}


@dataclass(frozen=True, eq=False, slots=True)
class _Judging:
    """Judges what candidates make of cases that were measured."""

    protocol: Protocol
    floors: Floors
    ties: Ties

    def rows(self, candidate: Runner, one: Measured, against: str) -> list[Row]:
        source, expected = one.original(against)

        def place(output: str) -> Place:
            return Place(one.case.name, candidate.name, output)

        try:
            outputs = candidate(matched(one.case.sample, candidate.input_names))
        except Exception as error:  # whatever stops the candidate is a failure of the candidate
            why = f"the candidate does not run: {first_line(error)}"
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

    def _row(self, place: Place, i: int, output: NDArray[Any], one: Measured, source: str) -> Row:
        original, truth = one.runs[source][place.output], list(one.truth.values())[i]
        if not isinstance(output, np.ndarray):
            return failed(place, f"it is a {type(output).__name__}, not a tensor")
        hangs = self.protocol.policy == "floor" and self.ties.matter(i, truth)
        alike = output.shape == original.shape
        problem = mismatch(output, original)
        if problem and (alike or not hangs or output.ndim != original.ndim):
            return failed(place, problem)
        name = place.output
        found = difference(output, original, name, self.protocol) if alike else NO_MEASURE
        floor = self.floors.of(i, one, source, output.dtype.name)
        row = judge(place, floor, distance(output, truth), found, self.protocol)
        row = replace(row, size=getattr(scale_of(truth), row.metric))
        if row.passed or self.protocol.policy != "floor":
            return row
        if row.ratio <= self.protocol.k * MOST_LUCK and not is_discrete(truth):
            most = floor.times(Distance.alike(MOST_LUCK))
            wider = one.scatter(source)[i].times(Distance.alike(self.floors.factor))
            floor = floor.or_more(wider.at_most(most))
            row = judge(place, floor, distance(output, truth), found, self.protocol)
            row = replace(row, size=getattr(scale_of(truth), row.metric))
        if row.passed or not hangs:
            return row
        return self.ties.settled(Undecided(row, one, source, i, output), floor, self.protocol)


def _spoiled(candidate: Runner, outputs: Outputs, one: Measured, source: str) -> list[str]:
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
