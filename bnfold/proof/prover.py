"""Is a candidate, as it was written, the same function as its original for every input?

The nodes of the candidate are walked in order, and each of its values is found among those of the
original: as the same value, or with a scale and a shift by channel that are known. A linear
operator makes a form of values of the original, whatever layers the two have for it. Any other has
to be there in the original, alike in everything, on the same values; where it reads a scaled or
shifted value, it passes only what `passing.py` lets pass. An output is proved if it is the same.

    EXACT     every form holds for all inputs, of all sizes that the model takes
    ROUNDED   a written weight stands for what is rounded to it: that some such weights make both
              functions equal is what is proved. A scale that no weight of the original tells is
              known by what is written, and leaves half a unit more where it is used
    NOTHING   what the planner found, or names; a name decides nothing but the order of outputs
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from bnfold.algebra.graph import (
    Activation,
    Add,
    Conv,
    Linear,
    MatMul,
    Multiply,
    Node,
    Opaque,
    Pad,
    Pool,
    params,
)
from bnfold.proof.ball import LAST_PLACE
from bnfold.proof.form import Form, substituted
from bnfold.proof.linear import Linearity
from bnfold.proof.original import Original, Roots
from bnfold.proof.passing import passed
from bnfold.proof.relation import IDENTITY, Gap, Relation, identical, relation
from bnfold.proof.taps import UnprovableError
from bnfold.proof.verdict import Finding, Open, Proof
from bnfold.proof.written import Mark, Port, Written

NEAR = 1024
"""So few units in the last place from a value of the original, one is that value, and wrong."""


def prove(original: Written, candidate: Written) -> Proof:
    """What can be proved of `candidate`, output by output."""
    barred = _barred(original, candidate)
    if barred is not None:
        return Proof(tuple(Finding(port.name, (barred,)) for port in candidate.outputs))
    return _Prover(original, candidate).proof()


def _barred(original: Written, candidate: Written) -> Open | None:
    """What of inputs and outputs differs, so that no output can be proved."""
    for what, old, new in (
        ("inputs", original.inputs, candidate.inputs),
        ("outputs", original.outputs, candidate.outputs),
    ):
        if len(old) != len(new):
            return Open("", f"it has {len(new)} {what}, the original {len(old)}")
        places = {port.name: place for place, port in enumerate(old)}
        for place, (its, port) in enumerate(zip(old, new, strict=True)):
            if places.get(port.name, place) != place:
                return Open("", f"its {what} are in another order")
            if its.dtype != port.dtype:
                return Open("", f"{port.name} is of type {port.dtype}, not {its.dtype}")
            if what == "inputs" and not _is_as_free(its, port):
                return Open("", f"{port.name} does not take all sizes that it has in the original")
    if len(original.graph.inputs) != len(candidate.graph.inputs):
        return Open("", "the graphs that it runs have other inputs")
    return None


def _is_as_free(old: Port, new: Port) -> bool:
    if old.shape is None or new.shape is None:
        return new.shape is None
    fits = len(old.shape) == len(new.shape)
    sizes = zip(old.shape, new.shape, strict=False)
    return fits and all(not isinstance(n, int) or n == o for o, n in sizes)


@dataclass(frozen=True, slots=True)
class _Unknown:
    """A value of the candidate that was not found in the original, because of these."""

    open: tuple[Open, ...]


class _Prover:
    """`known` is each value of the candidate as a form of values of the original."""

    def __init__(self, original: Written, candidate: Written) -> None:
        self.old = Original(original)
        self.new = candidate
        self.linearity = Linearity(candidate, rounded=True)
        self.known: dict[str, Form | _Unknown] = {}
        self.inputs = dict(zip(candidate.graph.inputs, original.graph.inputs, strict=True))
        self.unit = _unit(candidate)
        self.read = Counter(value for node in candidate.graph.nodes for value in node.inputs)

    def proof(self) -> Proof:
        graph = self.new.graph
        self.known.update((new, Form.of(old)) for new, old in self.inputs.items())
        needed = _needed(self.new)
        nodes = [node for node in graph.nodes if node.name in needed]
        for node in nodes:
            self._node(node)
        pairs = zip(self.new.outputs, graph.outputs, self.old.graph.outputs, strict=True)
        findings = tuple(
            Finding(port.name, self._output(port.name, new, old)) for port, new, old in pairs
        )
        done = sum(
            not any(isinstance(self.known[value], _Unknown) for value in node.outputs)
            for node in nodes
        )
        return Proof(findings, len(nodes), done)

    def _output(self, name: str, new: str, old: str) -> tuple[Open, ...]:
        found = self.known[new]
        if isinstance(found, _Unknown):
            return found.open
        gap = self._relation(found, old, identity=True)
        return (
            (Open(name, f"it is not what the original gives: {gap.why}"),)
            if isinstance(gap, Gap)
            else ()
        )

    def _node(self, node: Node) -> None:
        """Find what a node makes in the original."""
        read = [self.known[value] for value in node.inputs]
        unknown = [why for each in read if isinstance(each, _Unknown) for why in each.open]
        if unknown:
            self._give_up(node, tuple(dict.fromkeys(unknown)))
            return
        forms = [each for each in read if isinstance(each, Form)]
        why = self._linear(node, forms) if self.linearity.covers(node) else ""
        if why is None:
            return
        try:
            made = self._same_operator(node, forms)
            self.known.update(zip(node.outputs, made, strict=True))
        except UnprovableError as error:
            self._give_up(node, (Open(f"{node.name} ({node.kind})", why or str(error)),))

    def _give_up(self, node: Node, why: tuple[Open, ...]) -> None:
        self.known.update(dict.fromkeys(node.outputs, _Unknown(why)))

    def _linear(self, node: Node, forms: list[Form]) -> str | None:
        """Note the form of what a linear operator makes; or why it has none."""
        try:
            if isinstance(node.op, Conv | Linear | Pool):
                forms = [self._readable(node.inputs[0], forms[0])]
            made = self.linearity.made(node, forms)
        except UnprovableError as error:
            return str(error)
        value = node.outputs[0]
        found = made if _is_itself(made) else self._found(made)
        trunk = isinstance(node.op, Add) or self.read[value] > 1
        if found is made and trunk and not made.is_simple:
            found = self._related(made)
        self.known[value] = found
        return None

    def _readable(self, value: str, form: Form) -> Form:
        """What a layer reads as a single value of the original, and surely meant to be what it is.

        A layer sums over channels: in the sum, what one of them is off could hide.
        """
        if _is_itself(form):
            return form
        for other in self.old.linear(self._roots(form)):
            gap = self._relation(form, other, identity=True)
            if isinstance(gap, Gap) and gap.places < NEAR:
                raise UnprovableError(gap.why)
        if form.is_simple and form.shift.is_zero:
            return form
        found = self._related(form)
        if found.shift.is_zero or not form.is_simple:
            form = self.known[value] = found
        return form

    def _found(self, form: Form) -> Form:
        """A form as the value of the original that it is, or else the form itself."""
        for value in self.old.linear(self._roots(form)):
            if not isinstance(self._relation(form, value, identity=True), Gap):
                self.old.anchor(value)
                return Form.of(value)
        return form

    def _related(self, form: Form) -> Form:
        """The same with a scale and a shift; a value without a shift rather than one with it."""
        best: tuple[str, Relation] | None = None
        for value in self.old.linear(self._roots(form)):
            found = self._relation(form, value)
            if isinstance(found, Relation) and (best is None or found.shift.is_zero):
                best = value, found
                if found.shift.is_zero:
                    break
        if best is None:
            return form
        self.old.anchor(best[0])
        return best[1].of(best[0])

    def _roots(self, form: Form) -> Roots:
        return self.old.roots(form.values)

    def _relation(
        self, form: Form, value: str, *, identity: bool = False, shifts: bool = True
    ) -> Relation | Gap:
        """How a form lies to a value of the original; by their roots where nothing else tells."""
        found = self._compared(form, self.old.form(value), identity, shifts)
        apart = isinstance(found, Gap) and not np.isfinite(found.places)
        if not apart or self._roots(form) != self.old.roots([value]):
            return found
        inner = {each: self.old.deep(each) for each in form.values if self.old.layer(each)}
        try:
            whole = substituted(form, inner) if inner else form
        except UnprovableError as error:
            return Gap(str(error))
        return self._compared(whole, self.old.deep(value), identity, shifts)

    def _compared(self, new: Form, old: Form, identity: bool, shifts: bool) -> Relation | Gap:
        try:
            if not identity:
                return relation(new, old, self.unit, shifts=shifts)
            gap = identical(new, old)
            return IDENTITY if gap is None else gap
        except UnprovableError as error:
            return Gap(str(error))

    def _same_operator(self, node: Node, forms: list[Form]) -> list[Form]:
        """What the same operator of the original makes, in the relation that passes it."""
        mark = self._mark(node)
        roots = [self._roots(form) for form in forms]
        spot = self.old.spot(mark, roots, mark.sized_by)
        linear = self.linearity.covers(node)
        standing = self.old.opaque(spot) if linear else self.old.standing(spot)
        gaps: list[Gap] = []
        for twin in standing:
            found = self._passed(node, twin, forms)
            if not isinstance(found, Gap):
                return found
            gaps.append(found)
        if gaps:
            raise UnprovableError(min(gaps, key=lambda gap: gap.places).why)
        assert mark.key is not None
        if self.old.keys.get(mark.key):
            raise UnprovableError("the original has this operator, but on other values")
        raise UnprovableError(
            "the original has no such operator with the same attributes and constants"
        )

    def _passed(self, node: Node, twin: Node, forms: list[Form]) -> list[Form] | Gap:
        given: list[Relation] = []
        plain = isinstance(twin.op, Activation | Multiply | MatMul | Pad)
        for form, value in zip(forms, twin.inputs, strict=True):
            found = self._relation(form, value, shifts=not plain)
            if isinstance(found, Gap):
                return found
            given.append(found)
        shapes = [self.old.graph.shapes.get(value) for value in twin.inputs]
        try:
            made = passed(twin, given, shapes)
        except UnprovableError as error:
            gaps = [
                gap
                for form, value in zip(forms, twin.inputs, strict=True)
                if isinstance(gap := self._relation(form, value, identity=True), Gap)
            ]
            nearest = min(gaps, key=lambda gap: gap.places)
            return Gap(f"{error}: {nearest.why}", nearest.places)
        return [
            each.of(self.old.alias.get(value, value))
            for each, value in zip(made, twin.outputs, strict=True)
        ]

    def _mark(self, node: Node) -> Mark:
        """The mark of a node of the candidate, with what it names by values of the original."""
        mark = self.new.mark(node)
        if mark.key is None:
            raise UnprovableError("it is not known to give the same result each time")
        sizes: list[str] = []
        for value in mark.sized_by:
            found = self.known.get(value)
            if not isinstance(found, Form):
                raise UnprovableError(f"the shape of {value} is not found in the original")
            settled = found if found.is_simple else self._related(found)
            if not (settled.is_simple and settled.whole):
                raise UnprovableError(f"the shape of {value} is not found in the original")
            sizes.append(self.old.shaped(next(iter(settled.scaled))))
        bodies = tuple(self.inputs.get(value, "") for value in mark.bodies)
        return Mark(mark.key, tuple(sizes), bodies)


def _needed(model: Written) -> set[str]:
    """The nodes that outputs depend on, by name."""
    maker = {value: node for node in model.graph.nodes for value in node.outputs}
    needed: set[str] = set()
    waiting: list[str] = list(model.graph.outputs)
    while waiting:
        node = maker.get(waiting.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            waiting += node.inputs
            if isinstance(node.op, Opaque):
                waiting += model.mark(node).sized_by
    return needed


def _is_itself(form: Form) -> bool:
    """Whether it is one value as it is."""
    return form.is_simple and form.shift.is_zero and all(s.is_one for s in form.scaled.values())


def _unit(model: Written) -> float:
    """A unit in the last place, relative, of the shortest type that the model has weights in."""
    types = {param.dtype for node in model.graph.nodes for _, param in params(node.op)}
    return max((LAST_PLACE[each][0] for each in types), default=LAST_PLACE["float32"][0])
