"""What an ONNX model would take to run, told from the file, before memory or time is taken.

A file of a kilobyte can ask for anything: functions that call each other, a loop of 10^15 rounds, a
constant of gigabytes. What no real network comes near is refused.

CALLS   with all its functions in place of their calls, a model has at most MOST_NODES nodes, and
        functions nest at most MOST_NESTED deep
ROUNDS  a loop that nothing but its count ends has at most MOST_ROUNDS
SIZES   what its values take is explained by its inputs and weights (sizes.py)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from bnfold.errors import ModelError
from bnfold.formats.onnx.shapes import Known, inferred
from bnfold.formats.sizes import Sizes

MOST_NODES = 200_000
MOST_NESTED = 100
MOST_ROUNDS = 10_000_000

_WHY = "no network needs that: the file is damaged, or made to do harm"


def require_few_nodes(model: ir.Model) -> None:
    """CALLS. Raises ModelError."""
    sizes: dict[ir.OperatorIdentifier, tuple[int, int]] = {}
    open_: dict[ir.OperatorIdentifier, None] = {}
    waiting = list(model.functions)
    while waiting:
        name = waiting[-1]
        called = [c for c in _called(model, model.functions[name].all_nodes()) if c not in sizes]
        left = [other for other in called if other not in open_]
        if name in sizes or not left:
            waiting.pop()
            open_.pop(name, None)
            sizes.setdefault(name, _size(model, model.functions[name].all_nodes(), sizes))
        else:
            open_[name] = None
            waiting += left
    nodes, levels = _size(model, model.graph.all_nodes(), sizes)
    if nodes > MOST_NODES:
        many = f"{nodes:,}" if nodes < 10**12 else f"10^{len(str(nodes)) - 1}"
        raise ModelError(f"its functions call each other so often that it has {many} nodes", _WHY)
    if levels - 1 > MOST_NESTED:
        raise ModelError(f"its functions call each other {levels - 1} levels deep", _WHY)


def _size(
    model: ir.Model,
    nodes: Iterator[ir.Node],
    sizes: dict[ir.OperatorIdentifier, tuple[int, int]],
) -> tuple[int, int]:
    """How many nodes these are with all that they call, and how many levels, with their own.

    A function that calls itself, which no runtime takes, counts as one node there.
    """
    found = [sizes.get(node.op_identifier(), (1, 0)) for node in nodes]
    return sum(count for count, _ in found), 1 + max((depth for _, depth in found), default=0)


def _called(model: ir.Model, nodes: Iterator[ir.Node]) -> list[ir.OperatorIdentifier]:
    found = dict.fromkeys(node.op_identifier() for node in nodes)
    return [name for name in found if name in model.functions]


def require_few_rounds(model: ir.Model) -> None:
    """ROUNDS. Raises ModelError."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for node in graph.all_nodes():
            if node.op_type != "Loop" or node.domain or not _only_counts(node):
                continue
            most = _number(node.inputs[0]) if node.inputs and node.inputs[0] else math.inf
            if most is not None and most > MOST_ROUNDS:
                name = node.name or node.outputs[0].name
                rounds = "never ends" if most == math.inf else f"goes round {int(most):,} times"
                raise ModelError(f"the loop {name} {rounds}", _WHY)


def _only_counts(loop: ir.Node) -> bool:
    """Whether the condition of a loop is true at first, and its body leaves it so."""
    first = loop.inputs[1] if len(loop.inputs) > 1 else None
    if first is not None and not _number(first):
        return False
    body = loop.attributes.get("body")
    if body is None or body.type is not ir.AttributeType.GRAPH:
        return False
    graph = body.as_graph()
    if len(graph.inputs) < 2 or not graph.outputs:
        return False
    value = graph.outputs[0]
    while (node := value.producer()) is not None and node.op_type in ("Identity", "Cast"):
        if node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return value is graph.inputs[1] or bool(_number(value))


def _number(value: ir.Value | None) -> int | float | bool | None:
    """The value of a constant that is one number."""
    found = None if value is None else ir.convenience.get_const_tensor(value)
    if found is None or math.prod(found.shape.numpy()) != 1:
        return None
    number: int | float | bool = found.numpy().item()
    return number


def require_small_values(model: ir.Model) -> None:
    """SIZES. Raises ModelError; the largest value is named.

    First without the numbers in shapes, for following those can itself take all memory; then with
    them, if they may tell more.
    """
    for numbers in (False, True):
        known = inferred(model, numbers=numbers)
        _require_small_values(model, known)
        made = (value for graph in model.graphs() for node in graph for value in node.outputs)
        if all(_is_told(known.get(value, value)) for value in made):
            break


def _is_told(value: ir.Value | Known) -> bool:
    return value.shape is not None and value.shape.is_static()


def _require_small_values(model: ir.Model, known: Mapping[ir.Value, Known]) -> None:
    sizes = Sizes()
    for graph in model.graphs():
        sizes.taken += sum(_bytes(value) for value in graph.inputs if not value.is_initializer())
        for value in graph.initializers.values():
            sizes.taken += 0 if value.const_value is None else value.const_value.nbytes
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type is ir.AttributeType.TENSOR and not attribute.is_ref():
                    sizes.taken += attribute.as_tensor().nbytes
            for value in node.outputs:
                sizes.make(_bytes(known.get(value, value)), f"{value.name} ({node.op_type})")
    sizes.require_explained()


def _bytes(value: object) -> int:
    """What a value takes as far as its sizes are told: those that are free count as 1."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None:
        return 0
    sizes = [size for size in shape if isinstance(size, int)]
    width = 4 if dtype is None or dtype == ir.DataType.STRING else max(1, int(dtype.itemsize))
    return max(0, math.prod(sizes)) * width
