"""What becomes of every affine of a graph: plain data that no framework has touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bnfold.graph import Graph, Identity, Node
from bnfold.refusal import Reason


class Outcome(StrEnum):
    FOLDED = "folded"
    MERGED = "merged"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Site:
    """The fate of one BatchNorm or other affine.

    `into` names the nodes that took it; `reason` and `why` say why it was kept; `amplification` is
    the largest |scale| that went into a weight, the factor by which its rounding can grow.
    """

    name: str
    op: str
    batchnorm: bool
    outcome: Outcome
    into: tuple[str, ...] = ()
    reason: Reason | None = None
    why: str | None = None
    amplification: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op": self.op,
            "batchnorm": self.batchnorm,
            "outcome": str(self.outcome),
            "into": list(self.into),
            "reason": None if self.reason is None else str(self.reason),
            "why": self.why,
            "amplification": self.amplification,
        }


@dataclass(frozen=True, slots=True)
class Count:
    found: int
    folded: int
    kept: int


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """`before` as it was read, `after` as it should become, and the fate of every site.

    `moved` maps each value that is gone to the one that is read in its place.
    """

    before: Graph
    after: Graph
    sites: tuple[Site, ...]
    moved: Mapping[str, str] = field(default_factory=dict)

    @property
    def batchnorms(self) -> Count:
        return _count([site for site in self.sites if site.batchnorm])

    @property
    def affines(self) -> Count:
        """All sites, the BatchNorms included."""
        return _count(self.sites)

    def changed(self) -> Iterator[tuple[Node, Node]]:
        """Every node whose op differs, as it was and as it becomes, in graph order."""
        before = {node.name: node for node in self.before.nodes}
        for node in self.after.nodes:
            if node.op is not before[node.name].op and not isinstance(node.op, Identity):
                yield before[node.name], node

    def dissolved(self) -> Iterator[Node]:
        """Every node whose output is read elsewhere now (`moved`), as it was, in graph order.

        Where its output is one of the graph's, `after` has an Identity in its place.
        """
        for node in self.before.nodes:
            if len(node.outputs) == 1 and node.outputs[0] in self.moved:
                yield node

    def unread(self) -> Iterator[Node]:
        """Every node that is gone because nothing reads it any more."""
        left = {node.name for node in self.after.nodes}
        gone = {node.name for node in self.dissolved()}
        yield from (n for n in self.before.nodes if n.name not in left and n.name not in gone)

    def to_json(self) -> dict[str, Any]:
        return {"sites": [site.to_json() for site in self.sites]}

    def __str__(self) -> str:
        return "\n".join(
            f"{s.name} ({s.op}): {s.outcome}"
            + (f" into {', '.join(s.into)}" if s.into else "")
            + (f", because {s.why}" if s.why else "")
            for s in self.sites
        )


def _count(sites: tuple[Site, ...] | list[Site]) -> Count:
    kept = sum(site.outcome is Outcome.KEPT for site in sites)
    return Count(len(sites), len(sites) - kept, kept)
