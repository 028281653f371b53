"""Read a frozen TorchScript graph into the neutral one.

prim::Constant         a tensor is a parameter, anything else plain Python
prim::If, prim::Loop   their blocks lie flat before them; a loop's own values are inputs
prim::ListConstruct    inlined where only concatenations read it
prim::ListUnpack       one with the aten::split or the like right before it
prim::TupleConstruct   at the end of the graph: the tensors inside are the outputs
aten::size, ...        what reads only shapes and types is left out
aten::relu_, ...       functional, unless the old value may be read afterwards
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch

from bnfold.algebra.graph import (
    Activation,
    Add,
    Affine,
    Graph,
    Identity,
    Multiply,
    Node,
    Op,
    Opaque,
    Shape,
    Transpose,
)
from bnfold.formats.pytorch import aten
from bnfold.formats.torchscript.constants import evaluated
from bnfold.formats.torchscript.memory import Memory
from bnfold.formats.torchscript.nodes import (
    CONTAINERS,
    METADATA,
    METADATA_ARGUMENTS,
    SAME,
    argument_names,
    constant_tensor,
    holds_tensor,
    is_divided,
    is_joined,
    operator_name,
    read_by,
)
from bnfold.formats.torchscript.shapes import Seen, infer

_MODELLED_IN_PLACE = (Activation, Add, Affine, Identity, Multiply, Transpose)


class _Dynamic:
    """Stands for an argument that is no tensor and is computed while the model runs."""


class GraphReader:
    """Reads one graph; `known` is what a run has shown of its tensors."""

    def __init__(self, graph: Any, known: Mapping[str, Seen]) -> None:
        self._graph = graph
        self._memory = Memory(graph)
        self.constants: dict[str, aten.Stored] = {}
        """native name -> what is fixed: stored, or computed while reading."""
        self._inputs: list[str] = []
        self._nodes: list[Node] = []
        self._names: dict[str, int] = {}
        self._position = -1
        self._divisions: dict[str, Any] = {}
        """native name of a list -> the node that makes it, where the next one takes it apart."""
        self._versions: dict[str, str] = {}
        """native name -> what it means after a write into its memory."""
        self._shapes: dict[str, Shape | None] = {name: seen.shape for name, seen in known.items()}
        self._dtypes: dict[str, str] = {name: seen.dtype for name, seen in known.items()}
        self._facts = aten.Facts(self._shapes, self._dtypes)
        self.addresses: dict[str, int] = {}
        """neutral node name -> position of the native node in `walk`."""
        self.trained: set[str] = set()
        """What a trace recorded in train mode: "dropout", "batch statistics"."""

    def read(self) -> Graph:
        self._declare(self._graph.inputs())
        self._block(self._graph)
        leaves = [leaf for value in self._graph.outputs() for leaf in self._leaves(value)]
        returned = [self._versions.get(name, name) for name in leaves]
        made = {*self._inputs, *(value for node in self._nodes for value in node.outputs)}
        outputs = tuple(dict.fromkeys(name for name in returned if name in made))
        return Graph(tuple(self._inputs), tuple(self._nodes), outputs, self._shapes)

    def dtype(self, value: str) -> str:
        """The type of a tensor; empty where it is not known."""
        return self._dtypes.get(value, "")

    def _declare(self, values: Any) -> None:
        self._inputs += [value.debugName() for value in values if holds_tensor(value)]

    def _leaves(self, value: Any) -> Iterator[str]:
        """The tensors in the tuples, lists and dicts that are made only to be returned."""
        if _is_returned(value.node(), self._graph):
            for entry in value.node().inputs():
                yield from self._leaves(entry)
        else:
            yield value.debugName()

    def _block(self, block: Any) -> None:
        nodes = list(block.nodes())
        for node, following in zip_longest(nodes, nodes[1:]):
            self._position += 1
            position = self._position
            self._enter(node, self._memory.entering.get(position, []))
            for inner in node.blocks():
                self._declare(inner.inputs())
                self._block(inner)
            if is_divided(node, following):
                self._divisions[node.output().debugName()] = node
            else:
                self._node(node, position)

    def _enter(self, loop: Any, names: list[str]) -> None:
        """Give names whose memory the turns of `loop` overwrite the meaning "as of this turn"."""
        if names:
            inputs = tuple(self._versions.get(name, name) for name in names)
            outputs = tuple(self._new_version(name) for name in names)
            self._nodes.append(Node(self._name(loop), "Loop", Opaque(), inputs, outputs))

    def _new_version(self, name: str) -> str:
        self._versions[name] = f"{name}@{self._position}"
        return self._versions[name]

    def _node(self, node: Any, position: int) -> None:
        kind = node.kind()
        if kind == "prim::Constant":
            self._constant(node, position)
        elif kind in METADATA or is_joined(node) or _is_returned(node, self._graph):
            return
        elif kind.startswith("aten::") and kind not in SAME:
            self._operator(node, node, position)
        elif kind == "prim::ListUnpack" and node.input().debugName() in self._divisions:
            self._operator(self._divisions[node.input().debugName()], node, position)
        else:
            ends = [value for block in node.blocks() for value in block.outputs()]
            values = [*read_by(node), *(v for v in ends if holds_tensor(v))]
            names = [v.debugName() for v in values if v.node().kind() != "prim::Constant"]
            inputs = tuple(self._versions.get(name, name) for name in names)
            op = Identity() if kind in SAME and len(inputs) == 1 else Opaque()
            self._add(node, position, op, inputs, self._name(node), operator_name(node))

    def _constant(self, node: Any, position: int) -> None:
        value, tensor = node.output(), constant_tensor(node)
        if tensor is not None:
            name = value.debugName()
            self.constants[name] = aten.Stored.of(name.removeprefix("self."), tensor)
        elif holds_tensor(value) and value.toIValue() is not None:
            self._add(node, position, Opaque(), (), self._name(node), operator_name(node))

    def _operator(self, operator: Any, node: Any, position: int) -> None:
        """A call of the ATen library, whose results are the outputs of `node`."""
        if self._computed(operator, node):
            return
        outputs = _results(node)
        name, arguments = self._name(operator), self._arguments(operator)
        call = aten.Call(name, operator_name(operator), arguments, outputs, self._facts)
        self._note_training(call)
        nodes: tuple[Node, ...] = (Node(name, call.op, Opaque(), call.values, outputs),)
        if call.values and any(outputs):
            self._learn(call)
            nodes = self._meaning(call, position)
        for each in nodes[:-1]:
            self._nodes.append(each)
            self.addresses[each.name] = position
        self._append(nodes[-1], position)

    def _computed(self, operator: Any, node: Any) -> bool:
        """Compute the node now if all it reads is fixed, and nothing overwrites what it makes."""
        results = list(node.outputs())
        if not all(holds_tensor(value) for value in results) or not results:
            return False
        if any(self._memory.is_written(value) for value in results):
            return False
        made = evaluated(operator, list(self._arguments(operator).values()))
        if made is None or len(made) != len(results):
            return False
        for value, tensor in zip(results, made, strict=True):
            self.constants[value.debugName()] = aten.Stored.of(value.debugName(), tensor)
        return True

    def _meaning(self, call: aten.Call, position: int) -> tuple[Node, ...]:
        """What the call does, if it is sure to do only that."""
        nodes = aten.translate(call)
        if not call.op.endswith("_"):
            return nodes
        safe = position not in self._memory.overwriting
        alone = len(nodes) == 1 and isinstance(nodes[0].op, _MODELLED_IN_PLACE)
        opaque = Node(call.name, call.op, Opaque(), call.values, call.outputs)
        return nodes if safe and alone else (opaque,)

    def _add(
        self, node: Any, position: int, op: Op, inputs: tuple[str, ...], name: str, kind: str
    ) -> None:
        self._append(Node(name, kind, op, inputs, _results(node)), position)

    def _append(self, node: Node, position: int) -> None:
        """Add a node, which also makes the new versions of what it overwrites."""
        overwritten = self._memory.overwriting.get(position, [])
        old = tuple(self._versions.get(name, name) for name in overwritten)
        new = tuple(self._new_version(name) for name in overwritten)
        inputs, outputs = (*node.inputs, *old), (*filter(None, node.outputs), *new)
        if inputs or outputs:
            self._nodes.append(Node(node.name, node.kind, node.op, inputs, outputs))
            self.addresses[node.name] = position

    def _arguments(self, node: Any) -> dict[str, Any]:
        skipped = METADATA_ARGUMENTS.get(node.kind())
        return {
            name: self._argument(value)
            for name, value in zip(argument_names(node), node.inputs(), strict=False)
            if name != skipped
        }

    def _argument(self, value: Any) -> Any:
        name, node = value.debugName(), value.node()
        if name in self.constants:
            return self.constants[name]
        if node.kind() == "prim::Constant" and (
            value.toIValue() is None or not holds_tensor(value)
        ):
            return value.toIValue()
        if node.kind() == "prim::Constant" and isinstance(entries := value.toIValue(), list):
            return [_stored(f"{name}[{i}]", entry) for i, entry in enumerate(entries)]
        if is_joined(node):
            return [self._argument(entry) for entry in node.inputs()]
        if holds_tensor(value):
            return self._facts.tensor(self._versions.get(name, name))
        if node.kind() == "prim::ListConstruct":
            entries = [self._argument(entry) for entry in node.inputs()]
            return _Dynamic() if any(isinstance(e, _Dynamic) for e in entries) else entries
        return _Dynamic()

    def _name(self, node: Any) -> str:
        """The path of the module, where the names of its parameters tell; else op and value."""
        value = next((output.debugName() for output in node.outputs()), "")
        stem = self._path(node) or f"{operator_name(node).removesuffix('_')}_{value}".rstrip("_")
        seen = self._names[stem] = self._names.get(stem, 0) + 1
        return stem if seen == 1 else f"{stem}#{seen}"

    def _path(self, node: Any) -> str:
        """The path of the module that holds the parameters: one that all lie in, else most.

        Freezing makes one constant of equal ones, named after one of the modules that read it.
        """
        names = [value.debugName() for value in node.inputs()]
        stored = [self.constants[name].name for name in names if name in self.constants]
        paths = [path for path in (name.rpartition(".")[0] for name in stored) if path]
        counted = Counter(paths).most_common(1)
        around = (p for p in paths if all(f"{path}.".startswith(f"{p}.") for path in paths))
        return next(around, counted[0][0] if counted else "")

    def _learn(self, call: aten.Call) -> None:
        """Infer what no run has shown."""
        if len(call.outputs) > 1:
            return
        (name,) = call.outputs
        inferred = infer(call)
        if self._shapes.get(name) is None:
            self._shapes[name] = inferred.shape
        if not self._dtypes.get(name):
            self._dtypes[name] = inferred.dtype

    def _note_training(self, call: aten.Call) -> None:
        if "dropout" in call.op and call.get("train") is True:
            self.trained.add("dropout")
        if call.get("training") is True and call.get("running_mean") is not None:
            self.trained.add("batch statistics")


def _stored(name: str, entry: Any) -> Any:
    return aten.Stored.of(name, entry) if isinstance(entry, torch.Tensor) else entry


def _results(node: Any) -> tuple[str, ...]:
    """The tensors that a node makes: of several, the last ones only if something reads them, of
    a list without a name if nothing does."""
    values = [value for value in node.outputs() if holds_tensor(value)]
    while node.kind().startswith("aten::") and len(values) > 1 and not values[-1].uses():
        values.pop()
    listed = node.kind() == "prim::ListUnpack"
    return tuple(v.debugName() if v.uses() or not listed else "" for v in values)


def _is_returned(node: Any, graph: Any) -> bool:
    """Whether a tuple, list or dict is made only to be returned, maybe inside another."""
    if node.kind() not in CONTAINERS:
        return False
    uses = node.output().uses()
    if len(uses) != 1:
        return False
    user = uses[0].user
    if user.kind() == "prim::Return":
        return bool(user == graph.return_node())
    return _is_returned(user, graph)
