"""What outputs are chosen and bounded by, compared as well.

An index says nothing of the numbers that lost, a sigmoid little of numbers far from zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bnfold.errors import ModelError
from bnfold.formats.model import Model
from bnfold.protocol import Protocol
from bnfold.runtimes import NotComputableError, Outputs, RunnerOf, Sample
from bnfold.verification import Measurement, NotDeterministicError, Row, measure

TELLING = ("given", "noise", "large", "odd sizes")
"""The cases that are enough for it."""


def deciding(original: Model, candidate: Model, measurement: Measurement) -> Iterator[Row]:
    """The rows that fail, or the worst; none where the formats do not show it."""
    found = original.deciding(candidate)
    if found is None:
        return
    one, other, names = found
    k = measurement.judging.protocol.k
    plain = Protocol(k=k, providers=("cpu",), levels=("unoptimised",))
    tried = [case for case in measurement.cases if case.name.split(",")[0] in TELLING]
    originals = [_Called(runner, names) for runner in one.runners(plain)]
    try:
        exact = _Called(one.truth(), names)
        inner = measure(exact, originals, tried or measurement.cases[:1], plain)
    except (NotComputableError, NotDeterministicError, ModelError):
        return
    judged = inner.judge([_Called(runner, names) for runner in other.runners(plain)])
    wrong = [row for row in judged.rows if not row.passed]
    for row in wrong:
        yield replace(row, why=f"{row.why}, although no case shows it in an output")
    if judged.worst is not None and not wrong:
        yield judged.worst


@dataclass(eq=False)
class _Called(RunnerOf):
    """A runner whose outputs have other names."""

    names: Sequence[str]

    def __call__(self, sample: Sample) -> Outputs:
        return dict(zip(self.names, self.runner(sample).values(), strict=True))
