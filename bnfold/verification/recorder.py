"""Runners that record what another computes, and that give what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bnfold.runtimes import NotComputableError, Outputs, RunnerOf, Sample
from bnfold.verification.cases import Case
from bnfold.verification.gate import Distance


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


@dataclass(eq=False)
class Recorder(RunnerOf):
    """Runs as `runner` does, and keeps the first outputs of every sample, by its identity."""

    taken: dict[int, Outputs] = field(default_factory=dict)
    inexact: str | None = None

    def __call__(self, sample: Sample) -> Outputs:
        try:
            outputs = self.runner(sample)
        except NotComputableError as error:
            self.inexact = str(error)
            raise
        return self.taken.setdefault(id(sample), outputs)
