"""What an original computes, recorded: enough to judge a candidate where the original is not.

A Golden holds the inputs of every case, the outputs in float64, and those of the original as it is
in each place where it ran, from which the noise floors follow. Its runners give what was recorded,
so that a candidate is judged by the same rules as beside the original itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bnfold.files import write_atomically
from bnfold.runtimes import NotComputableError, Outputs, Runner, Sample
from bnfold.verification.cases import Case
from bnfold.verification.gate import Distance
from bnfold.verification.verdict import FLOAT64

Free = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, eq=False, slots=True)
class Golden:
    """Recorded cases. `runs`: place -> the outputs of each case, in the order of `cases`.

    `free`: input -> axis -> name, for every input in order and each of its free sizes.

    `truth` is the same in float64, or None, and `inexact` why it could not be had. `scatter` has
    the largest errors of nudged inputs: place -> of each case, of each output. `bounds` has of
    every output the size of what bounds it last, 0 for nothing. `source` names the original: its
    file name, format and SHA-256, None for what it does not have.
    """

    source: Mapping[str, str | None]
    cases: tuple[Case, ...]
    runs: Mapping[str, tuple[Outputs, ...]]
    free: Free
    truth: tuple[Outputs, ...] | None = None
    inexact: str | None = None
    seeds: tuple[int, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scatter: Mapping[str, tuple[tuple[Distance, ...], ...]] = field(default_factory=dict)
    bounds: tuple[float, ...] = ()

    @property
    def float64(self) -> Runner:
        """The truth, as a runner of the recorded samples."""
        return Recorded(FLOAT64, self.cases, self.truth, self.inexact)

    @property
    def originals(self) -> list[Runner]:
        """The original as it is, in each place where it was recorded."""
        return [
            Recorded(place, self.cases, outputs, None, self.scatter.get(place, ()))
            for place, outputs in self.runs.items()
        ]

    def save(self, path: str | Path) -> None:
        """Write the bundle to `path`; the target is never left half-written."""
        from bnfold.verification.bundle import write_golden

        write_atomically(Path(path), lambda place: write_golden(self, place))


@dataclass(frozen=True, eq=False, slots=True)
class Recorded:
    """A runner that knows the outputs of the very samples of `cases`, and of no others."""

    name: str
    cases: Sequence[Case]
    outputs: Sequence[Outputs] | None
    inexact: str | None = None
    scattered: Sequence[Sequence[Distance]] = ()

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self.cases[0].sample)

    def __call__(self, sample: Sample) -> Outputs:
        if self.outputs is None:
            raise NotComputableError(self.inexact or "float64 was not recorded")
        return self.outputs[self._number(sample)]

    def scatter(self, sample: Sample) -> Sequence[Distance]:
        """How far its outputs were from the truth at most, when that input was nudged."""
        return self.scattered[self._number(sample)] if self.scattered else []

    def _number(self, sample: Sample) -> int:
        (number,) = (i for i, case in enumerate(self.cases) if case.sample is sample)
        return number


@dataclass(eq=False, slots=True)
class Recorder:
    """Runs as `runner` does, and keeps the first outputs of every sample, by its identity."""

    runner: Runner
    taken: dict[int, Outputs] = field(default_factory=dict)
    inexact: str | None = None

    @property
    def name(self) -> str:
        return self.runner.name

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.runner.input_names

    def __call__(self, sample: Sample) -> Outputs:
        try:
            outputs = self.runner(sample)
        except NotComputableError as error:
            self.inexact = str(error)
            raise
        return self.taken.setdefault(id(sample), outputs)
