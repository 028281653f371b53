"""Where an ONNX model chooses: what it chooses by, what comes after, and what bounds its outputs.

A choice is what jumps where its numbers change a little: an index, a comparison, a rounding to
integers. The model is cut before its first choices: `head` is all that comes before, `tail` the
rest, in which everything that is chosen by goes through a Moved node of domain bnfold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.formats.onnx.values import Values
from bnfold.runtimes import NotComputableError, Outputs, Sample

CHOOSING = frozenset(
    {
        *("ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero", "Unique", "Hardmax"),
        *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Sign", "Mod"),
        *("Round", "Floor", "Ceil", "QuantizeLinear", "DynamicQuantizeLinear"),
    }
)
_SIZES = frozenset({"Shape", "Size"})
"""What depends on no number of what it reads."""

DOMAIN, MOVED = "bnfold", "Moved"
_BOUNDED = {
    "Sigmoid": 1.0,
    "HardSigmoid": 1.0,
    "Softmax": 1.0,
    "Tanh": 1.0,
    "Erf": 1.0,
    "Sin": 1.0,
    "Cos": 1.0,
    "Softsign": 1.0,
}
_INVERTIBLE = frozenset({"Sigmoid", "Tanh", "Erf", "Softsign", "Softmax"})
"""What computes the same only of the same; but for what a Softmax leaves out, a common shift."""

_CARRYING = frozenset(
    {
        *("Cast", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape"),
        *("Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "GatherND"),
        *("GlobalMaxPool", "GlobalAveragePool", "AveragePool", "ReduceMax", "ReduceMean"),
        *("DepthToSpace", "SpaceToDepth", "Upsample"),
    }
)
"""What keeps numbers within the bounds of its first input."""


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """`chosen_by`: the values that choices are made by; `read`: those that the tail reads.

    `positions` are the outputs that come after a choice, which are all that the tail gives.
    """

    chosen_by: tuple[str, ...]
    read: tuple[str, ...]
    tail: ir.Model
    positions: tuple[int, ...]


def bounds(model: ir.Model) -> tuple[float, ...]:
    """Of every output the size of what bounds it last, such as 1 for a sigmoid; 0 for none."""
    return tuple(_bound(value) for value in model.graph.outputs)


def _bound(value: ir.Value | None) -> float:
    bounded = bounding(value)
    node = None if bounded is None else bounded.producer()
    if node is None:
        return 0.0
    return _BOUNDED[node.op_type] if node.op_type in _BOUNDED else max(map(abs, _limits(node)))


def bounding(value: ir.Value | None) -> ir.Value | None:
    """The value that bounds an output: what a bounded operator gives, however it is laid out."""
    while value is not None and (node := value.producer()) is not None and not node.domain:
        if node.op_type in _BOUNDED or (node.op_type == "Clip" and len(_limits(node)) == 2):
            return value
        if node.op_type not in _CARRYING or not node.inputs:
            return None
        value = node.inputs[0]
    return None


def _limits(node: ir.Node) -> list[float]:
    """The finite constants between which a Clip keeps its input."""
    given: list[float] = [
        node.attributes[name].as_float() for name in ("min", "max") if name in node.attributes
    ]
    for value in node.inputs[1:]:
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        given += [] if tensor is None else [float(tensor.numpy().reshape(-1)[0])]
    return [limit for limit in given if abs(limit) < float(np.finfo(np.float32).max)]


def choices(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Every node of the main graph that chooses, with each number that it chooses by."""
    values = Values(model)
    hanging: set[ir.Value] = {v for v in model.graph.inputs if not v.is_initializer()}
    for node in model.graph:
        if node.op_type in _SIZES:
            continue
        read = [value for value in _read(node) if value in hanging]
        if not read:
            continue
        hanging.update(node.outputs)
        if not node.domain and (node.op_type in CHOOSING or _to_integers(node, values)):
            for value in node.inputs:
                if value in hanging and (values.dtype(value) or "float").startswith("float"):
                    yield node, value


def _to_integers(node: ir.Node, values: Values) -> bool:
    if node.op_type != "Cast" or "to" not in node.attributes:
        return False
    return not ir.DataType(node.attributes["to"].as_int()).is_floating_point()


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, in its bodies too."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _read(inner)


@dataclass(frozen=True, slots=True)
class Pair:
    """A value of one model and its counterpart in another, which `what` names."""

    what: str
    one: str
    other: str


def pairs(one: ir.Model, other: ir.Model) -> list[Pair]:
    """What choices and bounds are made of in both models: a choice hides most of its numbers, and a
    bound those that are far beyond it.

    Choices are the same if their outputs have the same name, bounds if they are of the same output.
    """
    found: dict[str, Pair] = {}
    late = _late(one.graph, {node for node, _ in choices(one)})[1]
    values = Values(one)
    for what, value, its in (*_chosen_by(one, other), *_bounded(one, other)):
        if value is None or its is None or value in late:
            continue
        if (values.dtype(value) or "").startswith("float"):
            name = value.name or ""
            found[name] = Pair(f"{name}, {what}", name, its.name or "")
    return list(found.values())


def _chosen_by(
    one: ir.Model, other: ir.Model
) -> Iterator[tuple[str, ir.Value | None, ir.Value | None]]:
    named = {node.outputs[0].name: node for node in other.graph if node.outputs}
    for node in dict.fromkeys(node for node, _ in choices(one)):
        twin = named.get(node.outputs[0].name)
        if twin is not None and twin.op_type == node.op_type:
            for value, its in zip(node.inputs, twin.inputs, strict=False):
                yield f"by which {_title(node)} chooses", value, its


def _bounded(
    one: ir.Model, other: ir.Model
) -> Iterator[tuple[str, ir.Value | None, ir.Value | None]]:
    for value, its in zip(one.graph.outputs, other.graph.outputs, strict=False):
        bounds = bounding(value), bounding(its)
        node, twin = (None if bound is None else bound.producer() for bound in bounds)
        if node and twin and node.op_type in _INVERTIBLE and node.op_type == twin.op_type:
            yield f"before {_title(node)}", node.inputs[0], twin.inputs[0]


def _late(graph: ir.Graph, choosing: set[ir.Node]) -> tuple[set[ir.Node], set[ir.Value]]:
    """The nodes that choose and all that come after them, and what they give."""
    after, late = set(choosing), set[ir.Value]()
    for node in graph:
        if node in after or any(value in late for value in _read(node)):
            after.add(node)
            late.update(node.outputs)
    return after, late


def _title(node: ir.Node) -> str:
    return f"{node.name or node.outputs[0].name} ({node.op_type})"


def cut(model: ir.Model) -> Cut | None:
    """The model cut where it chooses; None if no output comes after a choice."""
    copy = model.clone()
    graph, found = copy.graph, list(choices(copy))
    after, late = _late(graph, {node for node, _ in found})
    positions = tuple(i for i, value in enumerate(graph.outputs) if value in late)
    if not positions:
        return None
    constant = set(graph.initializers.values()) - set(graph.inputs)
    crossing = dict.fromkeys(
        value
        for node in graph
        if node in after
        for value in _read(node)
        if value not in late and value not in constant and value.graph in (None, graph)
    )
    chosen_by = tuple(dict.fromkeys(value.name or "" for _, value in found))
    for node, value in found:
        moved = ir.Node(DOMAIN, MOVED, [value], [ir.AttrString("name", value.name or "")])
        moved.outputs[0].name = f"{value.name}.moved.{node.name or node.outputs[0].name}"
        graph.insert_before(node, moved)
        after.add(moved)
        for position, given in enumerate(node.inputs):
            if given is value:
                node.replace_input_with(position, moved.outputs[0])
    copy.opset_imports[DOMAIN] = 1
    read = [_detached(value) for value in crossing]
    graph.outputs[:] = [graph.outputs[i] for i in positions]
    graph.remove([node for node in graph if node not in after], safe=True)
    graph.inputs[:] = read
    return Cut(chosen_by, tuple(v.name or "" for v in read), copy, positions)


def _detached(value: ir.Value) -> ir.Value:
    """The value as an input of the graph."""
    if value.is_graph_input():
        return value
    given = ir.Value(name=value.name, type=value.type)
    value.replace_all_uses_with(given)
    return given


@dataclass(eq=False, slots=True)
class Tail:
    """The tail of a cut in float64; what it chooses by is moved by what `rooms` has for it."""

    cut: Cut
    _rooms: Mapping[str, Any] = field(default_factory=dict)
    _random: Any = None
    _runner: Any = None

    def __call__(self, values: Sample, rooms: Mapping[str, Any], seed: int) -> Outputs:
        if self._runner is None:
            self._runner = _runner(self)
        self._rooms, self._random = rooms, np.random.default_rng(seed)
        try:
            outputs: Outputs = self._runner({name: values[name] for name in self.cut.read})
        except NotComputableError:  # moved numbers may be out of what an operator takes
            return {}
        return outputs

    def move(self, name: str, values: Any) -> Any:
        """The numbers, each by up to its room off."""
        if values.dtype != np.float64 or name not in self._rooms:
            return values
        room = self._rooms[name]
        if room.shape != values.shape:  # as many as another choice before left
            room = room.max(initial=0.0)
        return values + room * self._random.uniform(-1, 1, values.shape)


def _runner(tail: Tail) -> Any:
    from onnx.reference.op_run import OpRun

    from bnfold.formats.onnx.float64 import Float64Runner

    class Moved(OpRun):
        op_domain = DOMAIN

        def _run(self, x: Any, name: str | None = None) -> tuple[Any, ...]:
            return (tail.move(name or "", x),)

    return Float64Runner(tail.cut.tail, (Moved,))
