"""Does a candidate compute what its original computes? The answer is measured, case by case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.run import NotComputableError, Outputs, Runner
from bnfold.run.samples import matched
from bnfold.verification.cases import Case
from bnfold.verification.gate import (
    Distance,
    Gate,
    Row,
    distance,
    failed,
    judge,
    mismatch,
    scale_of,
)

__all__ = ["Case", "Gate", "Row", "Verification", "compare"]


@dataclass(frozen=True, eq=False, slots=True)
class Verification:
    """Every judgement made. It passes iff something was compared and every row passed."""

    k: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    policy: str = "floor"

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def worst(self) -> Row | None:
        """The row with the largest ratio, which is the smallest k that passes them all."""
        return max(self.rows, key=_badness, default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "policy": self.policy,
            "k": self.k,
            "verdict": "pass" if self.passed else "fail",
            "cases": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }

    def worst_rows(self) -> list[Row]:
        """Of every place and output the row that is worst."""
        found: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            key = (row.provider, row.output)
            if key not in found or _badness(row) > _badness(found[key]):
                found[key] = row
        return list(found.values())

    def __str__(self) -> str:
        """A table of the worst rows, and the summary."""
        heading = ("verified on", "output", "worst case", "floor", "error", "ratio", "verdict")
        cells = [heading, *(row.cells() for row in self.worst_rows())]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        return "\n".join([*(lines if self.rows else ()), self.summary])

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        worst = self.worst
        if worst is None:
            return f"fail: nothing could be compared. {'; '.join(self.notes)}"
        comparisons = f"{len(self.rows)} comparisons, policy {self.policy}, k = {self.k:g}"
        where = f"{worst.case}, {worst.provider}, {worst.output}"
        if self.passed:
            return f"pass: {comparisons}; the smallest k that passes is {worst.ratio:.2f} ({where})"
        return f"fail: {comparisons}; {where}: {worst.why}"


def _badness(row: Row) -> tuple[bool, float]:
    return (not row.passed, row.ratio)


def compare(
    truth: Runner,
    originals: Sequence[Runner],
    candidates: Sequence[Runner],
    cases: Iterable[Case],
    gate: Gate,
) -> Verification:
    """Judge `candidates` on `cases`.

    Each is held against the floor of the original that runs in the same place, or of the first
    original where none does. Cases on which an original itself fails or overflows cannot be judged;
    they are left out and named in the notes, but for the first, which has to run. Raises
    NotComputableError if the truth cannot be had, and NotDeterministicError if an original does not
    repeat itself.
    """
    measured: list[_Measured] = []
    notes: list[str] = []
    for case in cases:
        try:
            exact = truth(case.sample)
            runs = {original.name: original(case.sample) for original in originals}
        except NotComputableError:
            raise
        except Exception as error:
            if not measured:
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            notes.append(f"case {case.name} is left out: the original does not run on it: {reason}")
            continue
        if not measured:
            _require_repeatable(originals[0], case, runs[originals[0].name])
        if why := _unusable(exact, runs):
            notes.append(f"case {case.name} is left out: the original gives {why}")
        else:
            measured.append(_Measured(case, exact, runs))
    usual = _usual(measured)
    rows = [
        row
        for candidate in candidates
        for one in measured
        for row in one.judge(candidate, usual, gate)
    ]
    return Verification(gate.k, tuple(rows), tuple(notes), gate.policy)


class NotDeterministicError(ValueError):
    """The original gives different outputs for the same input: nothing can be compared with it."""


@dataclass(frozen=True, eq=False, slots=True)
class _Measured:
    """A case with its truth and what the originals made of it."""

    case: Case
    truth: Outputs
    runs: dict[str, Outputs]

    def original(self, provider: str) -> tuple[str, Outputs]:
        name = provider if provider in self.runs else next(iter(self.runs))
        return name, self.runs[name]

    def floors(self, provider: str) -> list[Distance]:
        """The distance of the original's outputs from the truth, in order."""
        _, outputs = self.original(provider)
        pairs = zip(outputs.values(), self.truth.values(), strict=True)
        return [distance(output, exact) for output, exact in pairs]

    def judge(self, candidate: Runner, usual: _Usual, gate: Gate) -> list[Row]:
        case, provider = self.case.name, candidate.name
        source, expected = self.original(provider)
        names = list(expected)
        try:
            outputs = candidate(matched(self.case.sample, candidate.input_names))
        except Exception as error:  # whatever stops the candidate is a failure of the candidate
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return [failed(case, provider, names[0], f"the candidate does not run: {reason}")]
        if len(outputs) != len(names):
            why = f"it has {len(outputs)} outputs, the original has {len(names)}"
            return [failed(case, provider, ", ".join(names), why)]
        in_order = names if set(names) == set(outputs) else list(outputs)
        rows: list[Row] = []
        for i, (name, own) in enumerate(zip(names, in_order, strict=True)):
            output, truth = outputs[own], list(self.truth.values())[i]
            if problem := mismatch(output, expected[name]):
                rows.append(failed(case, provider, name, problem))
                continue
            relative, scale = usual[source, i]
            own_scale = scale_of(truth)
            scale = own_scale if own_scale.max else scale
            floor = _largest(
                self.floors(source)[i],
                relative.times(scale),
                gate.least(scale, output.dtype.name),
            )
            rows.append(judge(case, provider, name, floor, distance(output, truth), gate.k))
        return rows


def _unusable(exact: Outputs, runs: dict[str, Outputs]) -> str | None:
    """What the original gives that nothing can be compared with."""
    if not any(np.isfinite(output).any() for output in exact.values()):
        return "no finite number"
    for outputs in runs.values():
        if len(outputs) != len(exact):
            return "other outputs than in float64"
        for output, truth in zip(outputs.values(), exact.values(), strict=True):
            if np.any(np.isfinite(truth) & ~np.isfinite(output.astype(np.float64))):
                return "NaN or infinity where float64 does not"
    return None


def _require_repeatable(original: Runner, case: Case, first: Outputs) -> None:
    """Two runs may differ by rounding (threads sum in any order), not in half of their digits."""
    half = Gate(1.0, "half the digits")
    second = original(case.sample)
    if list(second) != list(first):
        raise NotDeterministicError(
            f"the model gives other outputs for the same input: {list(first)}, then {list(second)}"
        )
    for (name, one), two in zip(first.items(), second.values(), strict=True):
        error, least = distance(two, one), half.least(scale_of(one), one.dtype.name)
        if error.max > least.max:
            raise NotDeterministicError(
                f"the model gives different values of {name} for the same input"
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
    return Distance(_median([d.rms for d in distances]), _median([d.max for d in distances]))


def _median(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.median(finite)) if finite else 0.0


def _largest(*distances: Distance) -> Distance:
    return Distance(max(d.rms for d in distances), max(d.max for d in distances))
