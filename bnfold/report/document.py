"""What a command found, before it is rendered: sections of plans, verdicts, tables and checks.

Every rendering (text, JSON, JUnit, GitHub, Markdown) reads one Document and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnfold.algebra.graph import Graph
from bnfold.algebra.plan import Outcome, Plan
from bnfold.errors import Failure, shortened
from bnfold.verification import Row, Verification

if TYPE_CHECKING:
    from bnfold.verbs.benching import BenchResult
    from bnfold.verbs.results import Artefact

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""What moves a cursor, turns the direction of writing, shows nothing, or is no character."""


def visible(text: str) -> str:
    """`text` with characters that are not what they look like as their codes; so are bytes of a
    file's name that are no UTF-8, which Python keeps as surrogates.

    Names that nobody would read are shortened.
    """
    return _CONTROL.sub(lambda found: _code(ord(found[0])), shortened(text))


def _code(number: int) -> str:
    if 0xDC80 <= number <= 0xDCFF:
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that passes or fails: `place` groups checks, `name` tells them apart."""

    place: str
    name: str
    why: str | None = None
    detail: str | None = None

    @property
    def passed(self) -> bool:
        return self.why is None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells below headings.

    Columns named in `numeric` are aligned on the right; the rows numbered in `wanting` stand out.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[str] = frozenset()
    wanting: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False, slots=True)
class Section:
    """One model or artefact. `artefact` is what was to be written, without a path if it was not.

    `lines` are sentences before everything else, `graph` one to be printed whole, and `checks`
    those beyond the verification.
    """

    name: str = ""
    lines: tuple[str, ...] = ()
    plan: Plan | None = None
    graph: Graph | None = None
    verification: Verification | None = None
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    require_folded: bool = False
    artefact: Artefact | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.all_checks())

    @property
    def ending(self) -> str | None:
        """What became of the artefact, or why nothing did."""
        kept = self.plan.batchnorms.kept if self.plan else 0
        if self.require_folded and kept:
            return f"--require-folded: {kept} BatchNorm{' is' if kept == 1 else 's are'} kept"
        if self.artefact is not None and self.artefact.path is not None:
            return f"written to {self.artefact.path}"
        return None if self.artefact is None or self.passed else "not written"

    def all_checks(self) -> Iterator[Check]:
        """The verification's, one for each BatchNorm that has to be folded, and the rest."""
        if self.verification is not None:
            yield from _verified(self.verification)
        if self.plan is not None and self.require_folded:
            yield from _folded(self.plan)
        yield from self.checks


@dataclass(frozen=True, eq=False, slots=True)
class Document:
    """The result of a command on `source`; `data` is the same as JSON.

    `everything` tells of each affine where many are alike; `speed` has what was timed; `command` is
    what was typed. With a `failure` there is no result.
    """

    title: str
    source: str = ""
    sections: tuple[Section, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[tuple[str, float]] = ()
    everything: bool = False
    failure: Failure | None = None
    speed: BenchResult | None = None
    command: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.failure is None and all(section.passed for section in self.sections)

    @property
    def verdict(self) -> str:
        """ "error", "fail", "pass", or "" where nothing was checked."""
        if self.failure is not None:
            return "error"
        checked = any(True for section in self.sections for _ in section.all_checks())
        return ("pass" if self.passed else "fail") if checked else ""


def failed(title: str, failure: Failure) -> Document:
    """The document of a command that ended without a result."""
    data = {"schema_version": 1, "verdict": "error", "error": failure.to_json()}
    return Document(title, data=data, failure=failure)


def _verified(verification: Verification) -> Iterator[Check]:
    if not verification.rows:
        yield Check("verification", "cases", verification.summary)
    for row in verification.rows:
        why = None if row.passed else row.why or "it failed"
        place = row.place
        yield Check(place.provider, f"{place.output}: {place.case}", why, _figures(row))


def _figures(row: Row) -> str | None:
    if not math.isfinite(row.error):
        return None
    return f"{row.metric} error {row.error:.3g}, floor {row.floor:.3g}, ratio {row.ratio:.3g}"


def _folded(plan: Plan) -> Iterator[Check]:
    for site in plan.sites:
        if site.batchnorm:
            kept = site.outcome is Outcome.KEPT
            yield Check("BatchNorm", site.name, (site.why or "it is kept") if kept else None)
