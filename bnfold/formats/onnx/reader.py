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
from collections.abc import Sequence
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
from bnfold.algebra.refusal import Reason
from bnfold.errors import LONGEST_WORD, ModelError, shortened
from bnfold.formats.meaning.operands import NotCoveredError, not_linear
from bnfold.formats.meaning.steps import Meaning, Native, nodes_of
from bnfold.formats.onnx.call import Call
from bnfold.formats.onnx.functions import batchnorms_in, is_batchnorm, why_they_stay
from bnfold.formats.onnx.ops import meaning
from bnfold.formats.onnx.sequences import split_sequence
from bnfold.formats.onnx.values import Values, bodies_of
from bnfold.naming import claim


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
        self.functions = why_they_stay(model)
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
        bodies = list(bodies_of(node))
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
        elif not (self._with_bias(node) or self._entries(node)):
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
        made = node.outputs if self._is(node, "Split") else [v for v in node.outputs if v.name]
        read = [v for v in self._read_as_data(node) if not self.values.is_constant(v)]
        foreign = self._foreign(call)
        native = Native(
            call.name,
            node.op_type,
            tuple(map(self._read, read)),
            tuple(self._name(value) if _is_read(value) else "" for value in made),
            self._is(node, "BatchNormalization") or foreign is not None,
        )
        found = nodes_of(
            native,
            lambda: _meaning(call, foreign),
            lambda operand: self._read(call.given[operand]),
            lambda name: _unique(_unique(name, self.taken), self.node_taken),
        )
        for each in found.nodes:
            source = each.inputs[:1]
            own = [i for i, v in enumerate(node.inputs) if v and (self.names.get(v),) == source]
            self.nodes.append(each)
            self.addresses[each.name] = Address(node, own[0] if own else 0)
        self.shapes.update(found.shapes)
        sums = found.sums_to_one
        names = zip(native.makes, made, strict=True)
        self.values.sums_to_one.update((v, sums[name]) for name, v in names if name in sums)

    def _foreign(self, call: Call) -> NotCoveredError | None:
        """A call of a function that stays, or another's operator, if there is a BatchNorm in it."""
        called = call.node.op_identifier()
        if called in self.model.functions:
            count = batchnorms_in(self.model, called)
            title = "::".join(filter(None, called))
            why = self.functions.get(called, "its calls do not fit it")
            why = f"it calls the function {title}, with {count} BatchNorms in it: {why}"
            return NotCoveredError(Reason.FUNCTION, why) if count else None
        if call.node.domain != "" and is_batchnorm(call.node.op_type):
            return not_linear(f"what this operator of {call.node.domain} computes is not known")
        return None

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
        try:
            (step,) = meaning(self._call(matmul))
            if isinstance(step.op, Linear):
                bias = self._row(add, 1 - port, step.op.weight.shape[0])
                address = Address(matmul, 0, (add, 1 - port))
                op = Linear(step.op.weight, bias)
                self._emit(address, op, [matmul.inputs[0]], add.outputs)
                return True
        except NotCoveredError:  # each is read by itself
            pass
        self._plain(matmul)
        return False

    def _row(self, add: ir.Node, index: int, size: int) -> Param:
        """The constant operand of `add` as a bias: it has `size` elements, all on the last axis."""
        call = self._call(add)
        row, other = call.parameter(index, "bias"), call.operand(1 - index)
        if other.shape is None or len(row.shape) > len(other.shape):
            raise not_linear("it may add an axis")
        if row.shape[-1:] != (size,) or math.prod(row.shape) != size:
            raise not_linear(f"what it adds is no row of {size}")
        return row.param(lambda a: a.reshape(-1), (size,))

    def _is(self, node: ir.Node, op_type: str) -> bool:
        return node.op_type == op_type and self.values.is_standard(node)

    def _read_as_data(self, node: ir.Node) -> list[ir.Value]:
        """The inputs of an unknown operator that it reads for more than their shape or type."""
        if self._is(node, "Shape") or self._is(node, "Size"):
            return []
        inputs = node.inputs[:1] if self._is(node, "CastLike") else node.inputs
        return [value for value in inputs if value is not None]

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


def _meaning(call: Call, foreign: NotCoveredError | None) -> Meaning:
    if foreign is not None:
        raise foreign
    return meaning(call)


def _is_read(value: ir.Value) -> bool:
    """Whether anything sees the value; an output other than the first may be for nobody."""
    return value.index() == 0 or bool(value.uses()) or value.is_graph_output()


def _unique(name: str, taken: set[str]) -> str:
    """A name of the neutral graph, which stands in many sentences."""
    if len(name) > LONGEST_WORD:
        name = shortened("".join(name.split()))
    return claim(name, taken)


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
