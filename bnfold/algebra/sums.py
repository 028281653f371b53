"""A sum of sums as the terms it adds up, of which some can go.

    x + (a - (b + 2 c))  ->  +x +a -b -2 c

A term goes together with the addition that reads it, which dissolves into the one operand it has
left. So an addition of n operands loses n - 1 of them or none.

Exact when   READ_ONCE  an inner sum is read by the outer one alone, and is not a graph output
             FACTOR     the operand that is left was added as it is, not subtracted or multiplied;
                        the main term may have been, for its numbers change anyway
             SAME_SHAPE the operand that is left has the shape of the addition: another may have
                        been broadcast. The main term has it, being of the shape of those that go
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bnfold.algebra.def_use import DefUse, Port
from bnfold.algebra.graph import Add, Affine, Conv, Identity, Linear, Node, Pool, factors_of


@dataclass(eq=False, slots=True)
class Term:
    """What a sum adds `factor` times: `nodes`, each read once, one after the other from `root`.

    Without nodes it is the root itself. `addition` is the node that reads it.
    """

    root: str
    nodes: tuple[Node, ...]
    factor: float
    addition: str


class NestedSum:
    """The terms of `top` and of the sums in it, and the additions as a tree over them."""

    def __init__(self, def_use: DefUse, top: Node, locked: Collection[str]) -> None:
        self._def_use = def_use
        self.terms: list[Term] = []
        self._operands: dict[str, dict[int, Term | str]] = {}
        self._above: dict[str, Port | None] = {top.name: None}
        self._depth: dict[str, int] = {}
        waiting = [(top, 1.0, 0)]
        while waiting:
            add, outer, depth = waiting.pop()
            self._depth[add.name] = depth
            operands = self._operands[add.name] = {}
            for port, (value, own) in enumerate(zip(add.inputs, factors_of(add), strict=True)):
                value, maker = _source(def_use, value)
                if maker is not None and isinstance(maker.op, Add) and maker.name not in locked:
                    operands[port] = maker.name
                    self._above[maker.name] = add.name, port
                    waiting.append((maker, outer * own, depth + 1))
                else:
                    term = Term(*_row(def_use, value, locked), outer * own, add.name)
                    operands[port] = term
                    self.terms.append(term)

    def by_root(self) -> list[list[Term]]:
        """The terms that start at the same value, where there are several."""
        found: dict[str, list[Term]] = {}
        for term in self.terms:
            found.setdefault(term.root, []).append(term)
        return [terms for terms in found.values() if len(terms) > 1]

    def without(self, terms: Iterable[Term], main: Term) -> tuple[list[Term], list[Port]]:
        """Take out as many of `terms` as can go, because `main` takes them over.

        Gives these, and the additions that dissolve with the input that each leaves, in order.
        `main.factor` changes where an addition that subtracts or multiplies it dissolves.
        """
        leaving = set(terms)
        taken: list[Term] = []
        gone: list[Port] = []
        waiting = [(-self._depth[name], name) for name in {term.addition for term in leaving}]
        heapq.heapify(waiting)
        while waiting:
            _, name = heapq.heappop(waiting)
            left = self._left(name, leaving, main) if name in self._operands else None
            if left is None:
                continue
            operands = self._operands[name].items()
            taken += [t for port, t in operands if port != left and isinstance(t, Term)]
            gone.append((name, left))
            above = self._dissolve(name, left, main)
            if above is not None:
                heapq.heappush(waiting, (-self._depth[above], above))
        return taken, gone

    def _left(self, name: str, leaving: Collection[Term], main: Term) -> int | None:
        """The only input of an addition that is left when terms leave; None if it must stay."""
        operands, factors = self._operands[name], factors_of(self._def_use.nodes[name])
        rest = [port for port, operand in operands.items() if operand not in leaving]
        if len(rest) > 1:
            return None
        ports = rest or [port for port in operands if factors[port] == 1]
        port = ports[0] if ports else None
        if port is None or operands[port] is main:
            return port
        add, shapes = self._def_use.nodes[name], self._def_use.shapes
        same = shapes.get(add.inputs[port]) == shapes.get(add.outputs[0])
        return port if same and factors[port] == 1 else None

    def _dissolve(self, name: str, port: int, main: Term) -> str | None:
        """Let what an addition has left stand in its place; the addition that reads it there."""
        operand = self._operands.pop(name)[port]
        if operand is main:
            main.factor /= factors_of(self._def_use.nodes[name])[port]
        above = self._above.pop(name)
        if above is not None:
            self._operands[above[0]][above[1]] = operand
        if isinstance(operand, Term):
            operand.addition = "" if above is None else above[0]
        else:
            self._above[operand] = above
        return None if above is None else above[0]


def is_inner(def_use: DefUse, add: Node, locked: Collection[str]) -> bool:
    """Whether a sum is a term of another, which then speaks for both."""
    (value,) = add.outputs
    while def_use.read_once(value):
        ((name, _),) = def_use.readers[value]
        reader = def_use.nodes[name]
        if not isinstance(reader.op, Identity):
            return isinstance(reader.op, Add) and name not in locked
        (value,) = reader.outputs
    return False


def _source(def_use: DefUse, value: str) -> tuple[str, Node | None]:
    """The node that a value comes from through identities, if all of it is read once."""
    while def_use.read_once(value):
        maker = def_use.maker(value)
        if maker is None or not isinstance(maker.op, Identity):
            return value, maker
        (value,) = maker.inputs
    return value, None


def _row(def_use: DefUse, value: str, locked: Collection[str]) -> tuple[str, tuple[Node, ...]]:
    """The linear nodes in a row that make `value`, each read once, and the value they start at."""
    nodes: list[Node] = []
    while True:
        value, maker = _source(def_use, value)
        linear = maker is not None and isinstance(maker.op, Conv | Linear | Affine | Pool)
        if maker is None or not linear or maker.name in locked:
            return _origin(def_use, value), tuple(reversed(nodes))
        nodes.append(maker)
        (value,) = maker.inputs


def _origin(def_use: DefUse, value: str) -> str:
    """The value that `value` is, after nodes that do nothing to it."""
    maker = def_use.maker(value)
    while maker is not None and isinstance(maker.op, Identity):
        (value,) = maker.inputs
        maker = def_use.maker(value)
    return value
