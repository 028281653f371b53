"""Where a candidate went wrong: the first stage that left the gate, and the first layer in it.

A stage is a model on the way from the original to the candidate, in one runtime. A value in it
agrees if the stage before has the same value, whatever it is called there: a convolution that took
its BatchNorm gives what the BatchNorm gave. The search starts at an output that is wrong and goes
up to the nearest values that agree: what computes the next value is the layer. A value that a fold
scales for a later layer to undo agrees with none, although nothing is wrong; so it is the layer
that is named, or one below it, that is at fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from bnfold.formats.capabilities import Intermediates
from bnfold.runtimes import Outputs, Sample
from bnfold.runtimes.samples import matched
from bnfold.verification.gate import Distance, distance, json_number, least, scale_of


@dataclass(frozen=True, slots=True)
class Layer:
    """The first layer that differs, by the name of its node or module.

    `after` are the values above it that agree, and are its inputs as far as they could be matched;
    `given` is what they were, and the value itself. `ratio` is its error in floors. `compared` of
    `values` had a value of the original to be compared with.
    """

    name: str
    value: str
    after: tuple[str, ...]
    ratio: float
    compared: int
    values: int
    given: Outputs = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "after": list(self.after),
            "ratio": json_number(self.ratio),
            "compared": self.compared,
            "values": self.values,
        }

    def __str__(self) -> str:
        above = f"after {', '.join(self.after)}, which agrees, " if self.after else ""
        return (
            f"{above}the first layer that differs is {self.name}, {self.ratio:.3g} floors off "
            f"({self.compared} of {self.values} values could be compared)"
        )


@dataclass(frozen=True, slots=True)
class Attribution:
    """The first stage, and where it runs, that left the gate; `why` where no layer is named.

    `sample` is an input that shows it, if it was one that did.
    """

    stage: str
    provider: str
    layer: Layer | None = None
    why: str | None = None
    sample: Sample | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "provider": self.provider,
            "layer": None if self.layer is None else self.layer.to_json(),
            "why": self.why,
        }

    def __str__(self) -> str:
        inside = self.layer or self.why
        where = f"the first stage that leaves the gate is {self.stage!r}, on {self.provider}"
        return f"{where}: {inside}" if inside else where


def first_layer(
    before: Intermediates, after: Intermediates, sample: Sample, k: float
) -> Layer | None:
    """The layer of `after` whose values leave the floor of `before`; None if there is none."""
    truth, own, made = before.truth(sample), before.runner(sample), _made(after, sample)
    ratios = dict(_ratios(truth, own, made, k))
    wrong = [name for name, ratio in ratios.items() if not ratio <= k]
    if not wrong:
        return None
    found, above = wrong[-1], set[str]()
    while True:
        above = _nearest(found, after.sources, ratios)
        off = [name for name in ratios if name in above and not ratios[name] <= k]
        if not off:
            break
        found = off[0]
    agreeing = tuple(name for name in ratios if name in above)
    owner = after.owners.get(found, found)
    given = {name: made[name] for name in (*agreeing, found)}
    return Layer(owner, found, agreeing, ratios[found], len(ratios), len(made), given)


def _made(after: Intermediates, sample: Sample) -> Outputs:
    return after.runner(matched(sample, after.runner.input_names))


def _ratios(truth: Outputs, own: Outputs, made: Outputs, k: float) -> Iterator[tuple[str, float]]:
    """The error of every value in floors of the value of the original that it is closest to.

    Two values whose sizes are further apart than k floors are so themselves, which saves comparing
    all with all.
    """
    known = [_Known.of(name, truth[name], own[name]) for name in own if name in truth]
    for name, value in made.items():
        if value.dtype.kind not in "fc":
            continue
        alike = [one for one in known if one.exact.shape == value.shape]
        size = scale_of(value).rms
        near = [one for one in alike if abs(one.scale.rms - size) <= k * one.granted.rms]
        tried = near or [one for one in alike if one.name == name] or alike[:1]
        if tried:
            yield name, min(one.ratio(value) for one in tried)


@dataclass(frozen=True, eq=False, slots=True)
class _Known:
    """A value of the original: exactly, its size, and what is granted to one that is the same."""

    name: str
    exact: NDArray[Any]
    scale: Distance
    granted: Distance

    @staticmethod
    def of(name: str, exact: NDArray[Any], own: NDArray[Any]) -> _Known:
        scale, floor = scale_of(exact), distance(own, exact)
        lowest = least(scale, own.dtype.name)
        return _Known(name, exact, scale, floor.or_more(lowest))

    def ratio(self, value: NDArray[Any]) -> float:
        return distance(value, self.exact).over(self.granted).largest


def _nearest(
    value: str, sources: Mapping[str, Sequence[str]], compared: Mapping[str, Any]
) -> set[str]:
    """The closest values above `value` that were compared, whatever lies between."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(sources.get(value, ()))
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in compared:
            found.add(name)
        else:
            waiting += sources.get(name, ())
    return found
