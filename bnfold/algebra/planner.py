"""Decide, before anything is edited, what becomes of every affine of a graph.

For each affine, the last one first, two questions: can everything above take it (up), or everything
below (down)? If not, can its shift go up and its scale down, or the other way round (split.py), or
can all those beside it that are equal go with it (together.py)? A question walks through the rules
of `rules/`; only if all its branches end in nodes that absorb is the whole answer committed and the
affine's own node dissolved. Rounds repeat until one changes nothing. The result is the graph as it
should become and the fate of every site; it is made of plain data, deterministic, and no framework
has touched it.

Exact when, for every edit:
    CONSTANT    the parameters are constants (the reader makes anything else Opaque)
    SOLE_USER   (up) nothing else reads the value that changes, and it is not a graph output
    ALL_USERS   (down) every reader of the value takes its part, and it is not a graph output;
                (split) so does every other reader of the value that carries the shift
    ITSELF      the affine that is to go takes no part
    UNLOCKED    the node may be edited in the form that the result is wanted in
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from bnfold.algebra import merge
from bnfold.algebra.checking import check
from bnfold.algebra.def_use import DefUse
from bnfold.algebra.graph import Add, Affine, Conv, Graph, Linear, Node, Opaque, Take
from bnfold.algebra.obstacle import Obstacle, Side, obstacle
from bnfold.algebra.placing import relocation
from bnfold.algebra.plan import Made, Outcome, Plan, Site
from bnfold.algebra.refusal import Reason, Refusal, listed
from bnfold.algebra.relocation import Relocation
from bnfold.algebra.rules import RULES, Ask, Move
from bnfold.algebra.search import Direction, Edge, Edits, Question, Search
from bnfold.algebra.split import apart, split
from bnfold.algebra.together import joined_in_one, parts_of_one

SIDES = {Direction.UP: Side.BEFORE, Direction.DOWN: Side.AFTER}


def make_plan(
    graph: Graph,
    locked: Mapping[str, Refusal] | None = None,
    *,
    merging: bool = True,
    free: Collection[str] = (),
) -> Plan:
    """Plan `graph`; nodes in `locked` are neither edited nor dissolved, for the reason given.

    Without `merging` linear nodes stay as many as they are. Linear maps are carried to where they
    cost least by making nodes that are `free` anew.
    """
    planner = _Planner(check(graph), dict(locked or {}), free)
    planner.run(merging)
    return planner.plan()


class _Planner:
    """Folds, merges and moves in turn, until nothing is found."""

    def __init__(self, graph: Graph, locked: Mapping[str, Refusal], free: Collection[str]) -> None:
        self.graph = graph
        self.named = {node.name: node for node in graph.nodes}
        self.locked = locked
        self.def_use = DefUse(graph)
        self.into: dict[str, tuple[str, ...]] = {}
        self.merged: set[str] = set()
        self.amplification: dict[str, float] = {}
        self.refusals: dict[str, dict[Side, Refusal]] = {}
        self.free = {name for name in free if name not in locked}
        self.taken = {*self.named, *graph.inputs, *(v for n in graph.nodes for v in n.outputs)}
        self.made: dict[str, Made] = {}

    def run(self, merging: bool) -> None:
        while True:
            self.fold_all()
            if not (merging and self.merge_all()) and not self.move_all():
                return

    def fold_all(self) -> None:
        """Rounds go backwards and forwards in turn: a fold can free a site on either side of it.

        Backwards first, so that an affine meets the next one above before that has gone: forwards,
        each would walk again through all that its predecessors were carried over.
        """
        open_sites = [n.name for n in reversed(self.graph.nodes) if self.is_open(n.name)]
        while True:
            left = [name for name in open_sites if self.is_open(name) and not self.fold(name)]
            if len(left) == len(open_sites):
                return
            open_sites = left[::-1]

    def is_open(self, name: str) -> bool:
        """Whether a site is an affine still: others may have taken it with them."""
        node = self.def_use.nodes.get(name)
        return node is not None and isinstance(node.op, Affine)

    def fold(self, name: str) -> bool:
        """Try to move one affine into its neighbourhood; whether it is gone."""
        node = self.def_use.nodes[name]
        assert isinstance(node.op, Affine)
        if name in self.locked:
            self.refusals[name] = {Side.ITSELF: self.locked[name]}
            return False
        refusals: dict[Side, Refusal] = {}
        for direction in Direction:
            value = (node.inputs if direction is Direction.UP else node.outputs)[0]
            edits = self.solve(node, (direction, Ask(value, node.op.affine)))
            if not isinstance(edits, Refusal):
                self.commit(node, node.op, edits)
                return True
            refusals[SIDES[direction]] = edits
        self.refusals[name] = refusals
        carried = self.solve_split(node, node.op)
        if carried is None:
            carried = self.solve_apart(node, node.op)
        if carried is not None:
            self.commit(node, node.op, carried)
            return True
        return self.fold_together(node, node.op)

    def fold_together(self, site: Node, op: Affine) -> bool:
        """Try to move an affine together with those beside it that are equal."""
        for value, group in parts_of_one(self.def_use, site, self.locked):
            edge = Edge(Direction.UP, *self.def_use.producer[value], op.affine)
            if self.commit_all(group, self.solve(site, None, [edge])):
                return True
        joined = joined_in_one(self.def_use, site, self.locked)
        if joined is None:
            return False
        value, group = joined
        return self.commit_all(group, self.solve(site, (Direction.DOWN, Ask(value, op.affine))))

    def solve_split(self, site: Node, op: Affine) -> Edits | None:
        """The edits with which the value before a BatchNorm carries its shift, if there are any."""
        (value,), (result,) = site.inputs, site.outputs
        parts = split(op.affine) if op.batchnorm else None
        if parts is None or value in self.def_use.outputs or value not in self.def_use.producer:
            return None
        others = [port for port in self.def_use.readers[value] if port != (site.name, 0)]
        takers = [Edge(Direction.DOWN, *port, parts.back) for port in others]
        takers.append(Edge(Direction.UP, *self.def_use.producer[value], parts.shift))
        edits = self.solve(site, (Direction.DOWN, Ask(result, parts.scale)), takers)
        return None if isinstance(edits, Refusal) else edits

    def solve_apart(self, site: Node, op: Affine) -> Edits | None:
        """The edits with which what is before takes the scale, and what follows the shift."""
        (value,), (result,) = site.inputs, site.outputs
        parts = apart(op.affine) if self.def_use.read_once(value) else None
        if parts is None or value not in self.def_use.producer:
            return None
        scale, shift = parts
        taker = Edge(Direction.UP, *self.def_use.producer[value], scale)
        edits = self.solve(site, (Direction.DOWN, Ask(result, shift)), [taker])
        return None if isinstance(edits, Refusal) else edits

    def solve(
        self, site: Node, question: Question | None, takers: Sequence[Edge] = ()
    ) -> Edits | Refusal:
        """The edits that grant `question` in all its branches, and let all `takers` take theirs.

        Or the first refusal met.
        """
        search = Search(self.edges, lambda edge, edits: self.ask(edge, edits, site))
        return search.run(question, takers)

    def edges(self, direction: Direction, ask: Ask) -> list[Edge] | Refusal:
        """Whom to ask so that `ask.value` may change: SOLE_USER and ALL_USERS."""
        value = ask.value
        if ask.affine.is_identity:
            return []
        if value in self.def_use.outputs:
            return Refusal(Reason.GRAPH_OUTPUT, f"{value} is an output of the model", tensor=value)
        readers = list(self.def_use.readers.get(value, ()))
        if direction is Direction.DOWN:
            if not readers:
                return Refusal(Reason.NO_READER, f"nothing reads {value}", tensor=value)
            return [Edge(direction, *port, ask.affine) for port in readers]
        if value not in self.def_use.producer:
            return Refusal(Reason.GRAPH_INPUT, f"{value} is an input of the model", tensor=value)
        if len(readers) > 1:
            names = listed(name for name, _ in readers)
            why = f"{value} is read {len(readers)} times (by {names})"
            return Refusal(Reason.OTHER_READERS, why, self.def_use.producer[value][0], value)
        return [Edge(direction, *self.def_use.producer[value], ask.affine)]

    def ask(self, edge: Edge, edits: Edits, site: Node) -> tuple[Move, ...] | Refusal:
        if edge.node == site.name:
            why = f"another operand of a sum comes from {site.name} itself"
            return Refusal(Reason.OTHER_OPERAND, why, site.name)
        node = edits.get(edge.node) or self.def_use.nodes[edge.node]
        rules = RULES[type(node.op)]
        rule = rules.up if edge.direction is Direction.UP else rules.down
        answer = rule(node.op, node, edge.affine, edge.port, self.def_use.shapes)
        if isinstance(answer, Refusal) or edge.node not in self.locked:
            return answer
        edited = any(move.node is not None for move in answer)
        return self.locked[edge.node] if edited else answer

    def commit(self, site: Node, op: Affine, edits: Edits) -> None:
        """Make the edits and take the site out of the graph."""
        self.def_use.update(edits)
        self.into[site.name] = tuple(sorted(edits, key=self.def_use.order.__getitem__))
        self.amplification[site.name] = float(np.abs(op.affine.scale).max(initial=0.0))
        self.def_use.bypass(site, site.inputs[0])

    def commit_all(self, group: Sequence[Node], edits: Edits | Refusal) -> bool:
        """Take all sites of a group out of the graph, if what they asked is granted."""
        if isinstance(edits, Refusal) or edits.keys() & {site.name for site in group}:
            return False
        for site in group:
            assert isinstance(site.op, Affine)
            self.commit(site, site.op, edits)
        return True

    def merge_all(self) -> bool:
        """Merge wherever it is possible now; whether it was anywhere."""
        found = False
        for name in list(self.def_use.nodes):
            node = self.def_use.nodes.get(name)
            if node is None or name in self.locked:
                continue
            mergings: list[merge.Merging] = []
            if isinstance(node.op, Add):
                mergings = merge.at_sum(self.def_use, node, self.locked)
            elif isinstance(node.op, Conv | Linear):
                mergings = merge.in_row(self.def_use, node, self.locked)
                mergings = mergings or merge.reordered(self.def_use, node, self.locked)
            elif isinstance(node.op, Take) and len(node.inputs) == 1:
                mergings = merge.reordered_behind(self.def_use, node, self.locked)
            for merging in mergings:
                self.take(merging)
                found = True
        return found

    def take(self, merging: merge.Merging) -> None:
        """Carry a merging out."""
        result = merging.result
        self.def_use.update({result.name: result})
        for node in merging.branches:
            self.into[node.name] = (result.name,)
            self.merged.add(node.name)
            if isinstance(node.op, Affine):
                self.amplification[node.name] = float(np.abs(node.op.affine.scale).max(initial=0.0))
        for name, port in merging.gone:
            gone = self.def_use.nodes[name]
            value = gone.inputs[port]
            if value in result.outputs:
                self.def_use.shapes[value] = self.def_use.shapes.get(gone.outputs[0])
            self.def_use.bypass(gone, value)

    def move_all(self) -> bool:
        """Carry every map to where it costs least now; whether any was."""
        found = False
        for name in list(self.def_use.nodes):
            node = self.def_use.nodes.get(name)
            if node is not None:
                moving = relocation(self.def_use, node, self.free, self.taken)
                if moving is not None:
                    self.move(node, moving)
                    found = True
        return found

    def move(self, node: Node, moving: Relocation) -> None:
        """Carry a map to another place."""
        made = dict(self.made)
        origin = made[node.name].of if node.name in made else node.name
        place, *_ = self.def_use.order[moving.node.name]
        self.def_use.shapes.update(moving.shapes)
        self.def_use.replace(moving.node, moving.nodes)
        for each in moving.nodes:
            old = moving.like.get(each.name)
            like = made[old].like if old in made else old
            self.made[each.name] = Made(origin, self.graph.nodes[place].name, like)
            self.free.add(each.name)
        earlier = self.into.pop(node.name, ())
        if (*moving.layers, *earlier) != (node.name,):
            self.into[node.name] = tuple(dict.fromkeys((*moving.layers, *earlier)))

    def plan(self) -> Plan:
        final = self._final()
        sites = tuple(self._site(node, final) for node in self.graph.nodes if node.is_site)
        after = self.def_use.graph()
        made = {node.name: self.made[node.name] for node in after.nodes if node.name in self.made}
        return Plan(self.graph, after, sites, self.def_use.moved(), made)

    def _site(self, node: Node, final: Mapping[str, tuple[tuple[str, ...], bool]]) -> Site:
        if node.name not in final:
            why = self._obstacles(node)
            return Site(node.name, node.kind, node.is_batchnorm, Outcome.KEPT, obstacles=why)
        into, merged = final[node.name]
        outcome = Outcome.MERGED if merged else Outcome.FOLDED
        grown = self.amplification[node.name]
        return Site(node.name, node.kind, node.is_batchnorm, outcome, into, grown)

    def _final(self) -> dict[str, tuple[tuple[str, ...], bool]]:
        """Where each ended up, through those that took it and were folded or merged in turn later,
        and whether a merging was on the way."""
        final: dict[str, tuple[tuple[str, ...], bool]] = {}
        for name, takers in reversed(self.into.items()):
            ways = [final.get(taker, ((taker,), False)) for taker in takers]
            ends = tuple(dict.fromkeys(end for way, _ in ways for end in way))
            final[name] = ends, name in self.merged or any(merged for _, merged in ways)
        return final

    def _obstacles(self, node: Node) -> tuple[Obstacle, ...]:
        if isinstance(node.op, Opaque):
            assert node.op.refusal is not None
            refusals = {Side.ITSELF: node.op.refusal}
        else:
            refusals = self.refusals[node.name]
        return tuple(obstacle(side, why, node, self.named) for side, why in refusals.items())
