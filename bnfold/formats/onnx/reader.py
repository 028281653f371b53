"""Read an ONNX model as one neutral graph, and keep the address of every native node.

The bodies of If, Loop and Scan lie in the same graph, before their node, which is Opaque and reads
what they return; a body's own inputs count as inputs. Constants are no values of the graph, unless
something that is not folded into parameters reads them: then they are Opaque nodes without inputs.
Shape and Size read nothing: folding changes no shape.

MatMul followed by an Add of a constant row, and by nothing else, is one Linear with a bias.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnfold.algebra.checking import MalformedGraphError, check
from bnfold.algebra.graph import (
    Graph,
    Linear,
    Node,
    Op,
    Opaque,
    Param,
    Shape,
    Take,
)
from bnfold.errors import LONGEST_WORD, ModelError, shortened
from bnfold.formats.onnx.arrangement import gather_one, split_sequence
from bnfold.formats.onnx.call import Call
from bnfold.formats.onnx.ops import meaning
from bnfold.formats.onnx.products import axis_that_sums_to_one
from bnfold.formats.onnx.values import Values


@dataclass(frozen=True, eq=False, slots=True)
class Address:
    """A neutral node in the native graph: `data` is the index of the input it acts on.

    `bias` is where the bias of a MatMul lies: an Add, and the index of its constant.
    """

    node: ir.Node
    data: int = 0
    bias: tuple[ir.Node, int] | None = None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        return (self.node,) if self.bias is None else (self.node, self.bias[0])


@dataclass(frozen=True, eq=False, slots=True)
class Reading:
    """`natives` are the native values by the name that the neutral graph knows them by."""

    graph: Graph
    addresses: dict[str, Address]
    natives: dict[str, ir.Value]
    values: Values


def read(model: ir.Model) -> Reading:
    """The neutral graph of `model`. Raises ModelError if the model contradicts itself."""
    return _Reader(model).reading()


class _Reader:
    """What has been read so far.

    `waiting` are MatMuls whose only reader is an Add to come, `apart` the entries of lists that
    were read as one division.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.values = Values(model)
        self.names: dict[ir.Value, str] = {}
        self.taken: set[str] = set()
        self.node_taken: set[str] = set()
        self.node_names = _node_names(model, self.node_taken)
        self.inputs: list[str] = []
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape | None] = {}
        self.addresses: dict[str, Address] = {}
        self.waiting: dict[ir.Value, ir.Node] = {}
        self.apart: set[ir.Value] = set()

    def reading(self) -> Reading:
        self._body(self.model.graph)
        outputs = tuple(self._read(value) for value in self.model.graph.outputs)
        graph = Graph(tuple(self.inputs), tuple(self.nodes), outputs, self.shapes)
        try:
            natives = {name: value for value, name in self.names.items()}
            return Reading(check(graph), self.addresses, natives, self.values)
        except MalformedGraphError as error:
            raise ModelError(f"the model contradicts itself: {error}") from error

    def _body(self, graph: ir.Graph) -> None:
        for value in graph.inputs:
            if not self.values.is_constant(value):
                self.inputs.append(self._name(value))
        for node in graph:
            try:
                self._node(node)
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                title = f"{self.node_names[node]} ({node.op_type})"
                raise ModelError(f"the model contradicts itself: {title}: {error}") from error

    def _node(self, node: ir.Node) -> None:
        bodies = list(_bodies(node))
        if not bodies and self.values.visit(node):
            return
        for body in bodies:
            self._body(body)
        if bodies:
            read = [*node.inputs, *(value for body in bodies for value in body.outputs)]
            self._emit(Address(node), Opaque(), read)
        elif self._is(node, "MatMul") and self._may_wait(node):
            self.waiting[node.outputs[0]] = node
        elif node.outputs and node.outputs[0] in self.apart:
            return
        elif not (self._with_bias(node) or self._entries(node) or self._chosen(node)):
            self._plain(node)

    def _entries(self, node: ir.Node) -> bool:
        """Emit a list that is split and taken apart again as one division; whether it is one."""
        found = split_sequence(self._call(node)) if self._is(node, "SplitToSequence") else None
        if found is not None:
            op, entries = found
            self.apart.update(entries)
            self._emit(Address(node), op, [node.inputs[0]], entries)
        return found is not None

    def _plain(self, node: ir.Node) -> None:
        call = self._call(node)
        op, indices = meaning(call) or (Opaque(), self._read_as_data(node))
        axis = axis_that_sums_to_one(call, op) if node.outputs else None
        if axis is not None:
            self.values.sums_to_one[node.outputs[0]] = axis
        self._emit(
            Address(node, indices[0] if indices else 0), op, [node.inputs[i] for i in indices]
        )

    def _chosen(self, node: ir.Node) -> bool:
        """Emit the choice of one index as two steps: a selection, and the loss of its axis."""
        found = gather_one(self._call(node)) if self._is(node, "Gather") else None
        if found is None:
            return False
        source, (result,), name = node.inputs[0], node.outputs, self.node_names[node]
        assert source is not None
        take, kept, dropped = found
        taken = _unique(f"{result.name} before it loses axis {take.axis}", self.taken)
        self.shapes[taken] = kept
        first = _unique(f"{name}[{take.parts[0][0]}]", self.node_taken)
        self.nodes.append(Node(first, node.op_type, take, (self._read(source),), (taken,)))
        self.nodes.append(Node(name, node.op_type, dropped, (taken,), (self._name(result),)))
        self.addresses[first] = self.addresses[name] = Address(node)
        return True

    def _call(self, node: ir.Node) -> Call:
        return Call(node, self.node_names[node], self.values.opset, self.values)

    def _may_wait(self, node: ir.Node) -> bool:
        (made,) = node.outputs
        uses = made.uses()
        if len(uses) != 1 or made.is_graph_output():
            return False
        (reader, _), *_ = uses
        return self._is(reader, "Add") and reader.graph is node.graph

    def _with_bias(self, add: ir.Node) -> bool:
        """Emit the MatMul that `add` waits for, with its bias if that is one; whether it is."""
        port = next((i for i, value in enumerate(add.inputs) if value in self.waiting), None)
        if port is None or not self._is(add, "Add"):
            return False
        product = add.inputs[port]
        assert product is not None
        matmul = self.waiting.pop(product)
        found = meaning(self._call(matmul))
        if found is not None and isinstance(found[0], Linear):
            bias = self._row(add, 1 - port, found[0].weight.shape[0])
            if bias is not None:
                address = Address(matmul, 0, (add, 1 - port))
                op = Linear(found[0].weight, bias)
                self._emit(address, op, [matmul.inputs[0]], add.outputs)
                return True
        self._plain(matmul)
        return False

    def _row(self, add: ir.Node, index: int, size: int) -> Param | None:
        """The constant operand of `add` as a bias: it has `size` elements, all on the last axis."""
        call = self._call(add)
        found, shape = call.constant_shape(index), call.shape(1 - index)
        if found is None or shape is None or len(found) > len(shape):
            return None
        if found[-1:] != (size,) or math.prod(found) != size:
            return None
        return call.param(index, lambda a: a.reshape(-1), (size,))

    def _is(self, node: ir.Node, op_type: str) -> bool:
        return node.op_type == op_type and self.values.is_standard(node)

    def _read_as_data(self, node: ir.Node) -> range:
        """The inputs of an unknown operator that it reads for more than their shape or type."""
        if self._is(node, "Shape") or self._is(node, "Size"):
            return range(0)
        return range(1 if self._is(node, "CastLike") else len(node.inputs))

    def _emit(
        self,
        address: Address,
        op: Op,
        read: Sequence[ir.Value | None],
        made: Sequence[ir.Value] = (),
    ) -> None:
        node, opaque = address.node, isinstance(op, Opaque)
        name = self.node_names[node]
        values = [value for value in read if value is not None]
        if opaque:
            values = [value for value in values if not self.values.is_constant(value)]
        inputs = tuple(self._read(value) for value in values)
        several = opaque or isinstance(op, Take)
        outputs = made or (node.outputs if several else node.outputs[:1])
        named = tuple(self._name(value) for value in outputs if value.name)
        self.nodes.append(Node(name, shortened(node.op_type), op, inputs, named))
        self.addresses[name] = address

    def _read(self, value: ir.Value) -> str:
        """The name of a value that something reads, which makes a node of a constant."""
        if value in self.names:
            return self.names[value]
        if not self.values.is_constant(value):
            raise ModelError(f"the model reads {value.name!r} before anything makes it")
        name = self._name(value)
        self.nodes.append(Node(_unique(name, self.node_taken), "Constant", Opaque(), (), (name,)))
        return name

    def _name(self, value: ir.Value) -> str:
        name = self.names[value] = _unique(value.name or "value", self.taken)
        self.shapes[name] = self.values.shape(value)
        return name


def _unique(name: str, taken: set[str]) -> str:
    """A name of the neutral graph, which stands in many sentences."""
    found, count = name, 2
    if len(name) > LONGEST_WORD:
        found = name = shortened("".join(name.split()))
    while found in taken:
        found, count = f"{name}#{count}", count + 1
    taken.add(found)
    return found


def _node_names(model: ir.Model, taken: set[str]) -> dict[ir.Node, str]:
    """Nodes by the module that their weights are named after where the exporter made names up;
    else by their own name where it is theirs alone, else by that of their first output."""
    nodes = list(model.graph.all_nodes())
    count = Counter(node.name for node in nodes)
    own = {n: n.name for n in nodes if n.name and count[n.name] == 1 and not _is_made_up(n)}
    own = {n: name for n, name in own.items() if len(name) <= LONGEST_WORD}
    taken.update(own.values())
    names: dict[ir.Node, str] = {}
    for node in nodes:
        made = next((value.name for value in node.outputs if value.name), None)
        module = _module_of(node) if _is_made_up(node) else None
        label = module or (node.name if count[node.name] == 1 else made)
        names[node] = own.get(node) or _unique(label or node.name or node.op_type, taken)
    return names


def _is_made_up(node: ir.Node) -> bool:
    """torch's exporter calls its nodes after the operator: node_conv2d_1."""
    return not node.name or node.name.startswith("node_")


def _module_of(node: ir.Node) -> str | None:
    """The path before ".weight" or ".running_mean" in the names of the node's parameters."""
    for value in node.inputs[1:]:
        if value is not None and value.is_initializer() and value.name:
            path, _, role = value.name.rpartition(".")
            if path and role in ("weight", "running_mean"):
                return path
    return None


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
