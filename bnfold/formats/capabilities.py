"""What single commands need of a format beyond reading, writing and running a model.

`Model` has a default for each, which raises NotSupportedError: the command says so and goes on, or
ends where it was asked for nothing else.

intermediates    `verify` and `export` name the layer that went wrong
damages          `verify --self-test` changes one number of a model
decisions        `verify` tells a tie from a mistake in outputs that are chosen, such as indices
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from bnfold.errors import BnfoldError
from bnfold.runtimes import Outputs, Runner, Sample


class NotSupportedError(BnfoldError):
    """A format does not offer what a command needs of it; the message says what and which."""

    exit_code = 2


@dataclass(frozen=True, eq=False, slots=True)
class Intermediates:
    """A model that shows its values: `runner` and `truth` give each by name, in order.

    `sources` has the values that a value is computed from, `owners` the node or module that does.
    """

    runner: Runner
    truth: Runner
    sources: Mapping[str, Sequence[str]]
    owners: Mapping[str, str]


@dataclass(frozen=True, eq=False, slots=True)
class Damage:
    """One number of a model that can be changed, by a size relative to it.

    `kind` is "weight", "bias" or "epsilon"; `where` names it; `apply` makes the damaged Model.
    """

    kind: str
    where: str
    apply: Callable[[float], Any]


class Tail(Protocol):
    """What comes after a choice, in float64: from the values that it reads, its outputs.

    What it chooses by is moved at random by what `rooms` has for each; empty where that fails.
    """

    def __call__(self, values: Sample, rooms: Mapping[str, NDArray[Any]], seed: int) -> Outputs: ...


@dataclass(frozen=True, eq=False, slots=True)
class Shown:
    """A model cut where it chooses.

    `truth` gives the values that the tail reads, and those that are chosen by; `runner` the latter,
    as the model runs. `tail` computes the outputs at `positions`.
    """

    truth: Runner
    runner: Runner
    tail: Tail
    positions: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Decisions:
    """Which outputs follow from a choice, and, for a place where the model runs, by what.

    Without `shown` nothing is known of that; integers and booleans come from a choice all the same.
    """

    positions: frozenset[int] = frozenset()
    shown: Callable[[str], Shown | None] = lambda place: None
