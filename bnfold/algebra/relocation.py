"""Nodes that may stand in the place of others: what they would cost, and what they are called."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableSet, Sequence
from dataclasses import dataclass, field, replace

from bnfold.algebra.cost import Work, work
from bnfold.algebra.graph import Conv, Linear, Node, Op, Param, Shape
from bnfold.naming import claim


@dataclass(frozen=True, eq=False, slots=True)
class Relocation:
    """`nodes`, the last of which makes what `node` makes, stand in the place of `node`.

    What only it has read goes. `like` says which node each is a copy of, for other channels; one
    without an entry is made from its op. `layers` are the nodes that hold the map then.
    """

    node: Node
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape | None]
    like: Mapping[str, str]
    layers: tuple[str, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Way:
    """Nodes that compute a map of a value; `cost` is their work, less that of the nodes `gone`.

    `layers` are those of them that hold parts of the map: the first is best for its bias. `like`
    has the node that each is a copy of, by the value that the copy makes.
    """

    nodes: tuple[Node, ...]
    cost: Work
    layers: tuple[Node, ...] = ()
    like: Mapping[str, str] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        return self.nodes[-1].outputs[0]

    def then(self, other: Way) -> Way:
        """This and another one that reads from it, or beside it."""
        return Way(
            self.nodes + other.nodes,
            self.cost + other.cost,
            self.layers + other.layers,
            {**self.like, **other.like},
            self.gone + other.gone,
        )

    def instead_of(self, node: Node, own: Work) -> Way:
        return replace(self, cost=self.cost - own, gone=(*self.gone, node.name))

    def with_bias(self, bias: Param | None) -> Way:
        """With a bias added to the first layer."""
        if bias is None:
            return self
        old = self.layers[0]
        assert isinstance(old.op, Conv | Linear)
        new = old.with_op(replace(old.op, bias=_sum(old.op.bias, bias)))
        nodes = tuple(new if each is old else each for each in self.nodes)
        return replace(self, nodes=nodes, layers=(new, *self.layers[1:]))


class Drafts:
    """Makes nodes that may come to be; `shapes` has those of their values, which are numbered."""

    def __init__(self, shapes: dict[str, Shape | None]) -> None:
        self.shapes: ChainMap[str, Shape | None] = ChainMap({}, shapes)

    def node(
        self, name: str, op: Op, inputs: Sequence[str], shape: Shape, like: Node | None = None
    ) -> Way | None:
        """A node called after `name`; None if it is not known what it costs."""
        value = f"\0{len(self.shapes.maps[0])}"
        self.shapes[value] = shape
        kind = type(op).__name__ if like is None else like.kind
        node = Node(name, kind, op, tuple(inputs), (value,))
        cost = work(node, self.shapes)
        layers = (node,) if isinstance(op, Conv | Linear) else ()
        if cost is None:
            return None
        return Way((node,), cost, layers, {} if like is None else {value: like.name})


def finished(
    node: Node, way: Way, shapes: Mapping[str, Shape | None], taken: MutableSet[str]
) -> Relocation:
    """The nodes of a way in the place of `node`; they keep the names of those that go."""
    going = {node.name, *way.gone}
    values = {way.value: node.outputs[0]}
    nodes: list[Node] = []
    layers: list[str] = []
    like: dict[str, str] = {}
    for each in way.nodes:
        name = each.name
        if name in going:
            going.discard(name)
        else:
            name = claim(name, taken)
        (value,) = each.outputs
        if value not in values:
            values[value] = claim(f"{name}.result", taken)
        made = values[value]
        read = tuple(values.get(v, v) for v in each.inputs)
        nodes.append(Node(name, each.kind, _named(each.op, name), read, (made,)))
        if value in way.like:
            like[name] = way.like[value]
        if any(each is layer for layer in way.layers):
            layers.append(name)
    known = {new: shapes[old] for old, new in values.items()}
    return Relocation(node, tuple(nodes), known, like, tuple(layers))


def _named(op: Op, name: str) -> Op:
    """A layer with parameters of its own, called after it."""
    if not isinstance(op, Conv | Linear):
        return op
    weight = replace(op.weight, name=f"{name}.weight")
    bias = op.bias and replace(op.bias, name=f"{name}.bias")
    return replace(op, weight=weight, bias=bias)


def _sum(one: Param | None, other: Param) -> Param:
    if one is None:
        return other
    first = one
    return Param.of(one.name, one.shape, one, lambda: first.load() + other.load(), one, other)
