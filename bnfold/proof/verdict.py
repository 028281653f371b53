"""What a proof found: for every output that it is the same for every input, or why that is open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_TOLD = 8
"""Of what is open, so many are told."""


@dataclass(frozen=True, slots=True)
class Open:
    """A node of the candidate from which on nothing is proved, and why."""

    node: str
    why: str

    def __str__(self) -> str:
        return f"{self.node}: {self.why}" if self.node else self.why

    def to_json(self) -> dict[str, Any]:
        return {"node": self.node, "why": self.why}


@dataclass(frozen=True, slots=True)
class Finding:
    """One output; `open` is what stands between it and a proof."""

    output: str
    open: tuple[Open, ...] = ()

    @property
    def proved(self) -> bool:
        return not self.open


@dataclass(frozen=True, slots=True)
class Proof:
    """Proved iff every output is; `nodes` and `proved_nodes` are those that outputs depend on."""

    findings: tuple[Finding, ...]
    nodes: int = 0
    proved_nodes: int = 0

    @property
    def proved(self) -> bool:
        return bool(self.findings) and all(each.proved for each in self.findings)

    @property
    def open(self) -> tuple[Open, ...]:
        """What stands between the model and a proof, each once."""
        return tuple(dict.fromkeys(why for each in self.findings for why in each.open))

    def to_json(self) -> dict[str, Any]:
        return {
            "proved": self.proved,
            "nodes": self.nodes,
            "proved_nodes": self.proved_nodes,
            "outputs": [
                {
                    "output": each.output,
                    "proved": each.proved,
                    "open": [why.to_json() for why in each.open],
                }
                for each in self.findings
            ],
        }

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        if self.proved:
            return f"proved: the same for every input, up to rounding ({self.nodes} nodes)"
        done = sum(each.proved for each in self.findings)
        share = f"{done} of {len(self.findings)} outputs proved, "
        share += f"{self.proved_nodes} of {self.nodes} nodes"
        first = f"; {self.open[0]}" if self.open else ""
        return f"not proved ({share}){first}"

    @property
    def lines(self) -> list[str]:
        """The verdict, and what else stands between the model and a proof."""
        return [self.summary, *(f"open: {why}" for why in self.open[1:MOST_TOLD])]

    def __str__(self) -> str:
        return "\n".join(self.lines)
