"""The original, as a proof looks things up in it: forms of its values, and operators by mark.

A value made by a linear operator has a form. What any other operator makes, inputs and constants
are roots: every value is linear in its roots, and two values of different roots are not the same.
A value that some value of the candidate was found to be becomes an anchor: forms of what comes
after are of it, so that they stay short however deep the model is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from bnfold.algebra.graph import Activation, Affine, Conv, Identity, Linear, Node, Pool
from bnfold.proof.form import Form
from bnfold.proof.linear import Linearity, readers_of
from bnfold.proof.taps import UnprovableError
from bnfold.proof.written import Mark, Written

Roots = int
"""A set of roots, a bit each."""

Spot = tuple[str, tuple[Roots, ...], tuple[str, ...]]
"""The key of a mark, the roots of what the node reads, and values that are known otherwise."""

MOST_TRIED = 64
"""Of values with the same roots, so many are held against one of the candidate."""


class Original:
    """Everything is computed when it is asked for, and once."""

    def __init__(self, model: Written) -> None:
        self.model = model
        self.graph = model.graph
        self.linearity = Linearity(model, rounded=False)
        self.maker: dict[str, Node] = {}
        self.alias: dict[str, str] = {}
        self._readers = readers_of(self.graph.nodes)
        self._roots: dict[str, Roots] = {}
        self._forms: dict[str, Form] = {}
        self._deep: dict[str, Form] = {}
        self._anchors: set[str] = set()
        self._linear: dict[Roots, list[str]] = defaultdict(list)
        self._spots: dict[Spot, list[Node]] = defaultdict(list)
        self._opaque: dict[Spot, list[Node]] | None = None
        self.keys: dict[str, list[Node]] = defaultdict(list)
        self._index()

    def _index(self) -> None:
        """Roots of every value, and where every operator that is not linear stands."""
        for value in self.graph.inputs:
            self._is_root(value)
        same: dict[tuple[object, ...], Node] = {}
        for node in self.graph.nodes:
            self.maker.update(dict.fromkeys(node.outputs, node))
            if self.linearity.covers(node):
                roots = self._roots[node.outputs[0]] = self.roots(node.inputs)
                if not isinstance(node.op, Identity):
                    self._linear[roots].append(node.outputs[0])
                continue
            mark = self.model.mark(node)
            if mark.key is not None:
                read = tuple(self.alias.get(value, value) for value in node.inputs)
                first = same.setdefault((mark, read), node)
                if first is not node:
                    self.alias.update(zip(node.outputs, first.outputs, strict=True))
                    for value in node.outputs:
                        self._roots[value] = self._roots[self.alias[value]]
                    continue
            for value in node.outputs:
                self._is_root(value)
            self._place(self._spots, node, mark)

    def _is_root(self, value: str) -> None:
        self._roots[value] = 1 << len(self._roots)

    def _place(self, spots: dict[Spot, list[Node]], node: Node, mark: Mark) -> None:
        if mark.key is not None:
            spots[self.spot(mark, [self.roots([v]) for v in node.inputs], self.sizes(mark))] += [
                node
            ]
            self.keys[mark.key].append(node)

    def sizes(self, mark: Mark) -> list[str]:
        """What stands for the shape of each value that only tells its shape."""
        return [self.shaped(value) for value in mark.sized_by]

    def shaped(self, value: str) -> str:
        """The first value that is known to have the same shape: nothing between changes it."""
        while (node := self.maker.get(value)) is not None:
            if not isinstance(node.op, Affine | Activation | Identity):
                break
            value = node.inputs[0]
        return self.alias.get(value, value)

    def spot(self, mark: Mark, roots: Sequence[Roots], sizes: Sequence[str]) -> Spot:
        assert mark.key is not None
        return mark.key, tuple(roots), (*sizes, *mark.bodies)

    def roots(self, values: Iterable[str]) -> Roots:
        found = 0
        for value in values:
            found |= self._roots[value]
        return found

    def standing(self, spot: Spot) -> list[Node]:
        """The operators of that mark, which are not linear, on values of these roots."""
        return self._spots.get(spot, [])

    def opaque(self, spot: Spot) -> list[Node]:
        """The same of linear operators, taken for what nothing is known of but their marks."""
        if self._opaque is None:
            self._opaque = defaultdict(list)
            for node in self.graph.nodes:
                if self.linearity.covers(node) and not isinstance(node.op, Identity):
                    self._place(self._opaque, node, self.model.mark(node))
        return self._opaque.get(spot, [])

    def linear(self, roots: Roots) -> list[str]:
        """Values that a linear operator makes of exactly these roots, and that are no anchors yet.

        The first ones first; there can be any number in a row.
        """
        return self._linear.get(roots, [])[:MOST_TRIED]

    def form(self, value: str) -> Form:
        """The value by anchors, roots, and what layers in a row make of one another."""
        waiting = [value]
        while waiting:
            last = waiting[-1]
            node = self.maker.get(last)
            if last in self._forms:
                waiting.pop()
            elif node is None or last in self._anchors or self.layer(last) is None:
                self._forms[last] = Form.of(self.alias.get(last, last))
            elif missing := [v for v in node.inputs if v not in self._forms]:
                waiting += missing
            else:
                self._forms[last] = self._made(node, last)
        return self._forms[value]

    def _made(self, node: Node, value: str) -> Form:
        """A layer reads a simple form, or else its input as it is."""
        read = [self._forms[v] for v in node.inputs]
        if isinstance(node.op, Conv | Linear | Pool) and not read[0].is_simple:
            read = [Form.of(node.inputs[0])]
        try:
            return self.linearity.made(node, read)
        except UnprovableError:
            try:
                return self.linearity.made(node, [Form.of(v) for v in node.inputs])
            except UnprovableError:
                return Form.of(value)

    def anchor(self, value: str) -> None:
        """Let forms be of this value from here on; those that it was made of are let go."""
        if value in self._anchors:
            return
        self._anchors.add(value)
        self._linear[self._roots[value]].remove(value)
        before, after = [value], [value]
        while before:
            each = before.pop()
            if self._forms.pop(each, None) is not None and (node := self.layer(each)) is not None:
                before += node.inputs
        while after:
            for node in self._readers.get(after.pop(), ()):
                if self.layer(node.outputs[0]) and self._forms.pop(node.outputs[0], None):
                    after.append(node.outputs[0])

    def layer(self, value: str) -> Node | None:
        """The linear operator that makes a value."""
        node = self.maker.get(value)
        return node if node is not None and self.linearity.covers(node) else None

    def deep(self, value: str) -> Form:
        """The value by its roots alone, as far as layers compose."""
        waiting = [value]
        while waiting:
            last = waiting[-1]
            node = self.maker.get(last)
            if last in self._deep:
                waiting.pop()
            elif node is None or self.layer(last) is None:
                self._deep[last] = Form.of(self.alias.get(last, last))
            elif missing := [v for v in node.inputs if v not in self._deep]:
                waiting += missing
            else:
                try:
                    read = [self._deep[v] for v in node.inputs]
                    self._deep[last] = self.linearity.made(node, read, deep=True)
                except UnprovableError:
                    self._deep[last] = self._shallow(node, last)
        return self._deep[value]

    def _shallow(self, node: Node, value: str) -> Form:
        try:
            return self.linearity.made(node, [Form.of(v) for v in node.inputs])
        except UnprovableError:
            return Form.of(value)
