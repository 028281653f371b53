"""What becomes of every affine of a graph: plain data that no framework has touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bnfold.algebra.graph import Graph, Identity, Node, Opaque
from bnfold.algebra.obstacle import Obstacle
from bnfold.algebra.refusal import Reason, listed

Role = tuple[str, str]
"""A parameter of a node: the name of the node, and "weight" or "bias"."""


class Outcome(StrEnum):
    FOLDED = "folded"
    MERGED = "merged"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Site:
    """The fate of one BatchNorm or other affine.

    `into` names the nodes that took it, and `obstacles` say why it was kept, on either side of it.
    `amplification` is the largest |scale| that went into a weight, the factor by which the rounding
    errors of a channel grow. `graph_form` is the fate in the graph form of what a module keeps.
    """

    name: str
    op: str
    batchnorm: bool
    outcome: Outcome
    into: tuple[str, ...] = ()
    amplification: float | None = None
    obstacles: tuple[Obstacle, ...] = ()
    graph_form: Site | None = None

    @property
    def obstacle(self) -> Obstacle | None:
        """The one that says most: what follows, where what is before can never take an affine."""
        if len(self.obstacles) < 2:
            return next(iter(self.obstacles), None)
        before, after = self.obstacles
        return after if before.reason in (Reason.GRAPH_INPUT, Reason.NOT_LINEAR) else before

    @property
    def reason(self) -> Reason | None:
        return None if self.obstacle is None else self.obstacle.reason

    @property
    def why(self) -> str | None:
        return "; ".join(map(str, self.obstacles)) or None

    @property
    def remedy(self) -> str | None:
        """What would make it foldable; it begins with "nothing" where only training anew would."""
        unplaced = next((o for o in self.obstacles if o.reason is Reason.NO_PLACE), None)
        if unplaced is not None:
            return unplaced.remedy
        if self.graph_form is not None and self.graph_form.outcome is Outcome.KEPT:
            return self.graph_form.remedy
        if self.graph_form is not None:
            into = f" into {listed(self.graph_form.into)}" if self.graph_form.into else ""
            verb = "merges" if self.graph_form.outcome is Outcome.MERGED else "folds"
            return f"the graph form {verb} it{into}: --form graph"
        able = [each for each in self.obstacles if not each.is_final]
        chosen = able[0] if able else self.obstacle
        return None if chosen is None else chosen.remedy

    def fate(self) -> dict[str, Any]:
        return {"outcome": str(self.outcome), "into": list(self.into)}

    def to_json(self) -> dict[str, Any]:
        main, further = self.obstacle, self.graph_form
        return {
            "name": self.name,
            "op": self.op,
            "batchnorm": self.batchnorm,
            **self.fate(),
            "amplification": self.amplification,
            "reason": None if main is None else str(main.reason),
            "why": self.why,
            "node": None if main is None else main.node,
            "tensor": None if main is None else main.tensor,
            "remedy": self.remedy,
            "graph_form": None if further is None else further.fate(),
            "obstacles": [each.to_json() for each in self.obstacles],
        }


@dataclass(frozen=True, slots=True)
class Count:
    found: int
    folded: int
    kept: int


@dataclass(frozen=True, slots=True)
class Ops:
    """How many ops of each kind there are, before and after."""

    kinds: Mapping[str, tuple[int, int]]

    @property
    def before(self) -> int:
        return sum(before for before, _ in self.kinds.values())

    @property
    def after(self) -> int:
        return sum(after for _, after in self.kinds.values())

    @property
    def unchanged(self) -> bool:
        return all(before == after for before, after in self.kinds.values())

    def to_json(self) -> dict[str, Any]:
        kinds = {kind: {"before": b, "after": a} for kind, (b, a) in self.kinds.items()}
        return {"before": self.before, "after": self.after, "kinds": kinds}

    def __str__(self) -> str:
        changed = [f"{kind} {b} -> {a}" for kind, (b, a) in self.kinds.items() if a != b]
        if not changed:
            return f"{self.before}, unchanged"
        return f"{self.before} -> {self.after} ({', '.join(changed)})"


@dataclass(frozen=True, slots=True)
class Made:
    """A node that is made anew, because the map of the node `of` was carried to another place.

    It stands where the node `at` was, before what was made behind it. It is a copy of `like` for
    other channels, or else made from its op.
    """

    of: str
    at: str
    like: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """`before` as it was read, `after` as it should become, and the fate of every site.

    `moved` maps each value that is gone to the one that is read in its place. `made` are the nodes
    of `after` that are new, by name, which can be that of a node of `before` that goes. `equal`
    maps new parameters that are equal once they are rounded, the first one too, to the first.
    """

    before: Graph
    after: Graph
    sites: tuple[Site, ...]
    moved: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, Made] = field(default_factory=dict)
    equal: Mapping[Role, Role] = field(default_factory=dict)

    @property
    def batchnorms(self) -> Count:
        return _count([site for site in self.sites if site.batchnorm])

    @property
    def affines(self) -> Count:
        """All sites, the BatchNorms included."""
        return _count(self.sites)

    @property
    def ops(self) -> Ops:
        return compare(self.before, self.after)

    @property
    def idle(self) -> bool:
        """Whether the graph stays as it is."""
        same = len(self.before.nodes) == len(self.after.nodes)
        return same and not (self.moved or self.made) and next(self.changed(), None) is None

    def changed(self) -> Iterator[tuple[Node, Node]]:
        """Every node whose op differs, as it was and as it becomes, in graph order."""
        before = {node.name: node for node in self.before.nodes}
        for node in self.after.nodes:
            if node.name in self.made:
                continue
            if node.op is not before[node.name].op and not isinstance(node.op, Identity):
                yield before[node.name], node

    def made_nodes(self) -> Iterator[Node]:
        """The nodes that are new, in graph order."""
        yield from (node for node in self.after.nodes if node.name in self.made)

    def moved_maps(self) -> Iterator[Node]:
        """The nodes whose maps were carried to other places, as they were, in graph order."""
        maps = {made.of for made in self.made.values()}
        yield from (node for node in self.before.nodes if node.name in maps)

    def dissolved(self) -> Iterator[Node]:
        """Every node whose output is read elsewhere now (`moved`), as it was, in graph order.

        Where its output is one of the graph's, `after` has an Identity in its place.
        """
        for node in self.before.nodes:
            if len(node.outputs) == 1 and node.outputs[0] in self.moved:
                yield node

    def unread(self) -> Iterator[Node]:
        """Every node that is gone because nothing reads it any more."""
        left = {node.name for node in self.after.nodes if node.name not in self.made}
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


def compare(before: Graph, after: Graph) -> Ops:
    """How many of each kind of op two graphs have."""
    counts = [kinds(graph) for graph in (before, after)]
    return Ops({kind: (counts[0][kind], counts[1][kind]) for kind in sorted(counts[0] | counts[1])})


def kinds(graph: Graph) -> Counter[str]:
    """How many ops of each kind there are; identities, which do nothing, do not count."""
    return Counter(_kinds(graph))


def _kinds(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.is_batchnorm:
            yield "BatchNorm"
        elif not isinstance(node.op, Identity):
            yield "other" if isinstance(node.op, Opaque) else type(node.op).__name__


def _count(sites: tuple[Site, ...] | list[Site]) -> Count:
    kept = sum(site.outcome is Outcome.KEPT for site in sites)
    return Count(len(sites), len(sites) - kept, kept)
