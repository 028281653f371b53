"""What a verification found: every judgement, the verdict, and how it prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bnfold.proof.verdict import Proof
from bnfold.protocol import Protocol
from bnfold.runtimes.sides import Sides
from bnfold.verification.attribution import Attribution
from bnfold.verification.gate import HEADINGS, Difference, Row, json_number

FLOAT64 = "float64"


@dataclass(frozen=True, eq=False, slots=True)
class Verification:
    """Every judgement made. It passes iff something was compared and every row passed.

    `truth` names what the candidate was held against, `attribution` where
    it went wrong; `sides` is what of the original was reached, `proof` what holds for every input,
    where the formats tell enough for one. A proof decides nothing here: it is told beside.
    """

    protocol: Protocol
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    truth: str = FLOAT64
    attribution: Attribution | None = None
    sides: Sides | None = None
    proof: Proof | None = None

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def worst(self) -> Row | None:
        """The row that failed, or came nearest to failing."""
        return max(self.rows, key=lambda row: row.badness, default=None)

    @property
    def smallest_k(self) -> float:
        """The smallest k with which the policy "floor" passes every row."""
        return max((row.ratio for row in self.rows), default=0.0)

    @property
    def difference(self) -> Difference | None:
        """From the original as it is, the largest of every figure; None if any has none."""
        found = [row.difference for row in self.rows]
        known = [one for one in found if one is not None]
        if not known or len(known) < len(found):
            return None
        return Difference(
            max(one.absolute for one in known),
            max(one.relative for one in known),
            max(one.assert_close for one in known),
        )

    @property
    def relative_error(self) -> float | None:
        """The largest error beside the size of its output; None where no output has one."""
        found = [row.error / row.size for row in self.rows if row.size]
        return max(found, default=None)

    def to_json(self) -> dict[str, Any]:
        difference = self.difference
        return {
            "policy": self.protocol.policy,
            "k": self.protocol.k,
            "rtol": dict(self.protocol.rtol),
            "atol": dict(self.protocol.atol),
            "truth": self.truth,
            "verdict": "pass" if self.passed else "fail",
            "smallest_k": json_number(self.smallest_k),
            "difference": None if difference is None else difference.to_json(),
            "sides": None if self.sides is None else self.sides.to_json(),
            "proof": None if self.proof is None else self.proof.to_json(),
            "attribution": None if self.attribution is None else self.attribution.to_json(),
            "cases": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }

    def worst_rows(self) -> list[Row]:
        """Of every runtime and output the row that is worst."""
        found: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            key = (row.place.provider, row.place.output)
            if key not in found or row.badness > found[key].badness:
                found[key] = row
        return list(found.values())

    def __str__(self) -> str:
        """A table of the worst rows, and the summary."""
        cells = [HEADINGS, *(row.cells() for row in self.worst_rows())]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        return "\n".join([*(lines if self.rows else ()), self.summary, *self.asides])

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        worst = self.worst
        if worst is None:
            return f"fail: nothing could be compared. {'; '.join(self.notes)}"
        comparisons = f"{len(self.rows)} comparisons, {self.protocol.rule}"
        where = f"{worst.place.case}, {worst.place.provider}, {worst.place.output}"
        if self.passed:
            return f"pass: {comparisons}; the smallest k that passes is {self.smallest_k:.2f}"
        return f"fail: {comparisons}; {where}: {worst.why}"

    @property
    def asides(self) -> list[str]:
        """What else there is to say: truth, ties, where it went wrong, reach, what is proved."""
        said = [] if self.truth == FLOAT64 else [f"held against: {self.truth}"]
        if self.attribution is not None:
            said.append(str(self.attribution))
        if ties := sum(row.ties for row in self.rows):
            said.append(f"{ties} elements fell the other way where two numbers tie within rounding")
        if self.sides is not None and self.sides.unseen:
            said.append(f"no case reached {self.sides}")
        if self.proof is not None:
            said.append(self.proof.summary)
        return said

    @property
    def closeness(self) -> list[str]:
        """What torch.testing.assert_close would have said, if anything can be told."""
        difference = self.difference
        if difference is None:
            return []
        close = "pass" if difference.assert_close <= 1 else "fail"
        apart = f"up to {difference.absolute:.1e} from the original"
        return [f"torch.testing.assert_close would {close} it: {apart}"]
