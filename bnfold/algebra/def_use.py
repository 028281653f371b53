"""The def-use chains of a graph that is being changed: who makes each value, and who reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bnfold.algebra.checking import check
from bnfold.algebra.graph import Graph, Identity, Node, Shape

Port = tuple[str, int]
"""(node name, index of the input or output)."""


_HELD = ""
"""Stands for readers to come; no node has this name."""


class DefUse:
    """The chains of `graph` at first; a change updates them, and costs what it touches.

    `producer` has no entry for an input of the graph, `readers` none for what nothing reads.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.order: dict[str, tuple[int, ...]] = {n.name: (i,) for i, n in enumerate(graph.nodes)}
        self.outputs = frozenset(graph.outputs)
        self.producer: dict[str, Port] = {
            value: (node.name, i) for node in graph.nodes for i, value in enumerate(node.outputs)
        }
        self.readers: dict[str, dict[Port, None]] = {}
        for node in graph.nodes:
            for i, value in enumerate(node.inputs):
                self.readers.setdefault(value, {})[node.name, i] = None
        self.shapes: dict[str, Shape | None] = dict(graph.shapes)
        self._moved: dict[str, str] = {}

    def maker(self, value: str) -> Node | None:
        """The node that makes `value`; None for an input of the graph."""
        found = self.producer.get(value)
        return None if found is None else self.nodes[found[0]]

    def read_once(self, value: str) -> bool:
        """Whether one input of one node is all that would see `value` changed."""
        return value not in self.outputs and len(self.readers.get(value, ())) == 1

    def update(self, nodes: Mapping[str, Node]) -> None:
        """Give nodes other ops; their inputs and outputs stay."""
        self.nodes.update(nodes)

    def bypass(self, node: Node, value: str) -> None:
        """Let everything that reads the node read `value` instead, and the node be gone.

        A node that makes an output of the graph stays, as the identity of `value`. Whatever else
        only the node read goes with it.
        """
        (result,) = node.outputs
        self._moved[result] = value
        for port, source in enumerate(node.inputs):
            del self.readers[source][node.name, port]
        if result in self.outputs:
            left = Node(node.name, node.kind, Identity(), (value,), node.outputs)
            self.nodes[node.name] = left
            self.readers.setdefault(value, {})[node.name, 0] = None
        else:
            del self.nodes[node.name]
        for name, port in self.readers.pop(result, {}) if result not in self.outputs else ():
            reader = self.nodes[name]
            inputs = tuple(value if i == port else v for i, v in enumerate(reader.inputs))
            self.nodes[name] = replace(reader, inputs=inputs)
            self.readers.setdefault(value, {})[name, port] = None
        for source in node.inputs:
            if source != value:
                self._drop_unread(source)

    def replace(self, node: Node, by: Sequence[Node]) -> None:
        """Let nodes, in order, the last of which makes what `node` makes, stand in its place.

        They may have the names of nodes that go then because nothing reads them any more.
        """
        (result,) = node.outputs
        made = {value for each in by for value in each.outputs}
        read = {value for each in by for value in each.inputs if value not in made}
        held = (_HELD, 0)
        for value in read:
            self.readers.setdefault(value, {})[held] = None
        del self.nodes[node.name]
        for port, source in enumerate(node.inputs):
            del self.readers[source][node.name, port]
        for source in node.inputs:
            self._drop_unread(source)
        place = self.order[node.name]
        for number, each in enumerate(by):
            assert each.name not in self.nodes, f"there are two nodes {each.name}"
            self.nodes[each.name] = each
            self.order[each.name] = (*place, number)
            self.producer.update({value: (each.name, i) for i, value in enumerate(each.outputs)})
            for port, value in enumerate(each.inputs):
                self.readers.setdefault(value, {})[each.name, port] = None
        for value in read:
            del self.readers[value][held]
        assert self.producer[result][0] == by[-1].name

    def _drop_unread(self, value: str) -> None:
        """Remove what makes `value`, and so on upwards, if nothing reads it any more."""
        open_values = [value]
        while open_values:
            unread = open_values.pop()
            maker = self.producer.get(unread)
            if maker is None or maker[0] not in self.nodes:
                continue
            node = self.nodes[maker[0]]
            if any(self.readers.get(v) or v in self.outputs for v in node.outputs):
                continue
            del self.nodes[node.name]
            for port, source in enumerate(node.inputs):
                del self.readers[source][node.name, port]
                open_values.append(source)

    def moved(self) -> dict[str, str]:
        """Every value that was bypassed -> the value that is read in its place now."""
        final: dict[str, str] = {}
        for old, new in reversed(self._moved.items()):
            final[old] = final.get(new, new)
        return final

    def graph(self) -> Graph:
        """The graph as it is now."""
        nodes = tuple(self.nodes[name] for name in sorted(self.nodes, key=self.order.__getitem__))
        return check(replace(self._graph, nodes=nodes, shapes=self.shapes))
