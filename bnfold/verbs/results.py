"""What the results of all verbs have in common: where a model came from and went, and how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bnfold.algebra.cost import cost
from bnfold.algebra.plan import Plan
from bnfold.algebra.refusal import listed
from bnfold.algebra.sharing import copies
from bnfold.errors import BnfoldError
from bnfold.files import sha256
from bnfold.formats.model import Model
from bnfold.formats.sizes import in_words

Progress = Callable[[str], None]


SCHEMA_VERSION = 1


class VerificationError(BnfoldError):
    """A result was asked for that did not pass its verification."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Artefact:
    """A model as reports name it; `path` and `sha256` are None for an object in memory."""

    path: str | None
    format: str
    sha256: str | None

    def to_json(self) -> dict[str, str | None]:
        return {"path": self.path, "format": self.format, "sha256": self.sha256}


@dataclass(slots=True)
class Clock:
    """The stages of a run with their seconds; tells `progress` when each begins."""

    progress: Progress
    stages: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name)
        start = time.perf_counter()
        yield
        self.stages.append((name, time.perf_counter() - start))

    def to_json(self) -> list[dict[str, Any]]:
        return [{"name": name, "seconds": round(seconds, 4)} for name, seconds in self.stages]


def describe(given: Any, model: Model) -> Artefact:
    if isinstance(given, str | Path):
        return Artefact(str(given), str(model.format), sha256(Path(given)))
    return Artefact(None, str(model.format), None)


def moves_told(plan: Plan) -> tuple[str, ...]:
    """A note of the maps that are computed in other places, if there are any."""
    maps = [node.name for node in plan.moved_maps()]
    what = "a linear map is" if len(maps) == 1 else f"{len(maps)} linear maps are"
    note = f"{what} computed where it costs less, which no proof follows: {listed(maps)}"
    note += "; --no-move leaves what is there"
    return (note,) if maps else ()


def copies_told(plan: Plan) -> tuple[str, ...]:
    """A note of the parameters that have become several, if there are any; the largest first."""
    found = sorted(copies(plan), key=lambda each: -each.bytes)
    if not found:
        return ()
    more = sum(each.count - 1 for each in found)
    what = "1 copy" if more == 1 else f"{more} copies"
    names, cost = listed(each.name for each in found), in_words(sum(each.bytes for each in found))
    return (f"what follows the calls of one layer differs: {what}, {cost} more, of {names}",)


def counts(plan: Plan) -> dict[str, Any]:
    """How many BatchNorms, affines of any kind, ops of every kind, and what they cost."""
    return {
        "batchnorms": asdict(plan.batchnorms),
        "affines": asdict(plan.affines),
        "ops": plan.ops.to_json(),
        "cost": {"before": asdict(cost(plan.before)), "after": asdict(cost(plan.after))},
    }
