"""Finds nodes that take an affine together: of the ways of each one must work, with all it asks.

A branch that is granted stays so. What another branch is answered does not depend on it, so that
its other ways would not help: they are dropped, and a search is as long as its branches together,
not as their combinations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Node
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules import Ask, Move

MOST_ASKED = 20_000
"""How many nodes one question may ask before it is given up."""


class Direction(StrEnum):
    UP = "up"
    DOWN = "down"

    @property
    def opposite(self) -> Direction:
        return Direction.DOWN if self is Direction.UP else Direction.UP


Question = tuple[Direction, Ask]
Edits = dict[str, Node]


@dataclass(frozen=True, eq=False, slots=True)
class Edge:
    """A node that is asked to take `affine` at its output (up) or input (down) `port`."""

    direction: Direction
    node: str
    port: int
    affine: ChannelAffine

    def next(self, move: Move) -> list[Question]:
        """What the node asks in its turn."""
        here, back = self.direction, self.direction.opposite
        return [(back if ask.turned else here, ask) for ask in move.asks]


@dataclass(frozen=True, eq=False, slots=True)
class _Granted:
    """Stands behind all that a node's move asks; the first `ways` are older than its others."""

    ways: int


_Agenda = tuple[Edge | _Granted, "_Agenda"] | None
"""What is still to be asked, the next one first; ways that have its end in common share it."""


@dataclass(frozen=True, eq=False, slots=True)
class _Way:
    """A move that could grant what `edge` asks; what was open, and how much edited, before it."""

    edge: Edge
    move: Move
    agenda: _Agenda
    edited: int


class Search:
    """One question: `edges` says whom it asks, `ask` what a node answers after other edits."""

    def __init__(
        self,
        edges: Callable[[Direction, Ask], list[Edge] | Refusal],
        ask: Callable[[Edge, Edits], tuple[Move, ...] | Refusal],
    ) -> None:
        self._edges = edges
        self._ask = ask
        self._edits: Edits = {}
        self._log: list[tuple[str, Node | None]] = []
        self._ways: list[_Way] = []

    def run(self, question: Question | None, takers: Sequence[Edge]) -> Edits | Refusal:
        """The edits that grant `question` and let all `takers` take theirs, or the first no."""
        first: Refusal | None = None
        agenda: _Agenda = None
        for taker in takers:
            agenda = taker, agenda
        found = self._with([] if question is None else [question], agenda)
        for _ in range(MOST_ASKED):
            if isinstance(found, Refusal):
                first = first or found
                if not self._ways:
                    return first
                found = self._taken_back_to(self._ways.pop())
            elif found is None:
                return self._edits
            else:
                found = self._step(*found)
        return Refusal(Reason.SEARCH_LIMIT, f"{MOST_ASKED} nodes were asked, and no way was found")

    def _step(self, next_: Edge | _Granted, agenda: _Agenda) -> _Agenda | Refusal:
        if isinstance(next_, _Granted):
            del self._ways[next_.ways :]
            return agenda
        moves = self._ask(next_, self._edits)
        if isinstance(moves, Refusal):
            return moves
        if len(moves) > 1:
            agenda = _Granted(len(self._ways)), agenda
        best, *others = (_Way(next_, move, agenda, len(self._log)) for move in moves)
        self._ways += reversed(others)
        return self._taken(best)

    def _taken(self, way: _Way) -> _Agenda | Refusal:
        """Make the edit of a move, and ask what it asks."""
        node = way.move.node
        if node is not None:
            self._log.append((node.name, self._edits.get(node.name)))
            self._edits[node.name] = node
        return self._with(way.edge.next(way.move), way.agenda)

    def _taken_back_to(self, way: _Way) -> _Agenda | Refusal:
        """Undo what was edited since there was the choice, and choose again."""
        while len(self._log) > way.edited:
            name, before = self._log.pop()
            if before is None:
                del self._edits[name]
            else:
                self._edits[name] = before
        return self._taken(way)

    def _with(self, questions: list[Question], agenda: _Agenda) -> _Agenda | Refusal:
        """The agenda with all that must be asked on top, for the first question first."""
        for question in reversed(questions):
            found = self._edges(*question)
            if isinstance(found, Refusal):
                return found
            for edge in reversed(found):
                agenda = edge, agenda
        return agenda
