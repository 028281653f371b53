"""The verb behind `verify --self-test`: does the gate see a candidate that is slightly damaged?

One weight, one bias and one epsilon are damaged, each alone, by as little as changes an output by
more than ten floors in float64. The gate has to fail every one of these candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bnfold.formats.capabilities import Damage
from bnfold.formats.model import Model, blaming
from bnfold.formats.opening import Opening, open_model
from bnfold.isolation.runners import runners_of
from bnfold.protocol import DEFAULT, Protocol
from bnfold.verbs.inputs import cases, inputs_of
from bnfold.verbs.places import placed
from bnfold.verbs.results import Progress
from bnfold.verbs.verifying import golden_of, measured
from bnfold.verification import Measurement

KINDS = ("weight", "bias", "epsilon")
SIZES = (1e-3, 1e-2, 0.1, 1.0, 10.0)
"""How large a damage may be, relative to what is damaged; the first that shows is taken."""

SHOWS = 10.0
"""How many floors an output has to change by, in float64, for a damage to count."""

MOST = 4
"""How many places of a kind are tried."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A damage and whether the gate saw it; `where` is None if nothing of the kind matters."""

    kind: str
    where: str | None
    change: float = 0.0
    seen: bool = True

    @property
    def why(self) -> str | None:
        """What is wrong, if anything."""
        if self.seen:
            return None
        return f"the gate does not see that {self.where} is off by {self.change:.3g} floors"

    def __str__(self) -> str:
        if self.where is None:
            return f"there is no {self.kind} whose damage would change an output"
        return self.why or f"the gate sees that {self.where} is off by {self.change:.3g} floors"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "where": self.where, "change": self.change, "seen": self.seen}


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Every trial. It passes iff something could be damaged and all of it was seen."""

    trials: tuple[Trial, ...]

    @property
    def passed(self) -> bool:
        return all(why is None for _, why in self.checks)

    @property
    def checks(self) -> list[tuple[str, str | None]]:
        """Every kind, with what is wrong with it."""
        if not any(trial.where for trial in self.trials):
            return [("damage", "nothing of the candidate could be damaged: that shows nothing")]
        return [(trial.kind, trial.why) for trial in self.trials]

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": "pass" if self.passed else "fail",
            "trials": [trial.to_json() for trial in self.trials],
        }


def self_test(
    reference: Any,
    candidate: Any,
    inputs: Any = None,
    *,
    protocol: Protocol = DEFAULT,
    opening: Opening | None = None,
    progress: Progress = lambda step: None,
) -> SelfTest:
    """Damage `candidate` and judge it against `reference`; both as `bnfold.verify` takes them."""
    other = open_model(candidate, opening)
    golden = golden_of(reference)
    if golden is not None:
        protocol = placed(protocol, [other.format])
        tried = partial(iter, golden.cases)
        measurement = measured(
            golden.float64, golden.originals, tried, protocol, progress, golden.bounds
        )
    else:
        original = open_model(reference, opening)
        protocol = placed(protocol, [original.format, other.format])
        with blaming(original), blaming(other):
            known = inputs_of(original, other, inputs, protocol)
            tried = partial(cases, known, protocol)
            runners = runners_of(original, protocol)
            told = original.bounds(), original.decisions()
            measurement = measured(original.truth(), runners, tried, protocol, progress, *told)
    trials = []
    for kind in KINDS:
        progress(f"self-test: {kind}")
        damages = [damage for damage in other.damages() if damage.kind == kind]
        trials.append(_trial(kind, _spread(damages), other, measurement, protocol))
    return SelfTest(tuple(trials))


def _spread(damages: Sequence[Damage]) -> Sequence[Damage]:
    """A few of them, from the first to the last."""
    step = max(1, (len(damages) - 1) // (MOST - 1))
    return damages[::step][:MOST]


def _trial(
    kind: str,
    damages: Sequence[Damage],
    candidate: Model,
    measurement: Measurement,
    protocol: Protocol,
) -> Trial:
    exact = candidate.truth()
    place = runners_of(candidate, protocol)[0].name
    for damage in damages:
        for size in SIZES:
            damaged = damage.apply(size)
            change = measurement.change(exact, damaged.truth(), place, SHOWS)
            if change > SHOWS:
                verdict = measurement.judge(runners_of(damaged, protocol))
                return Trial(kind, damage.where, change, not verdict.passed)
    return Trial(kind, None)
