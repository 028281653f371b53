"""Every small change of an ONNX model, one at a time: a number, an attribute, an operator, a wire.

Some change nothing that can be seen, such as the dilation of a kernel of one tap; whoever uses them
has to ask the models themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

Change = tuple[str, Callable[[onnx.ModelProto], None]]

PLACES = 2
"""Units in the last place by which a number is changed."""

OTHERS = {
    "Relu": ("Identity", "Sigmoid", "Abs", "LeakyRelu"),
    "LeakyRelu": ("Relu", "Identity"),
    "Sigmoid": ("Tanh", "HardSigmoid"),
    "Add": ("Sub", "Mul", "Max"),
    "Mul": ("Add", "Div"),
    "Sub": ("Add",),
    "Div": ("Mul",),
    "MaxPool": ("AveragePool",),
    "AveragePool": ("MaxPool",),
    "GlobalAveragePool": ("GlobalMaxPool",),
    "ReduceMean": ("ReduceMax", "ReduceSum"),
    "Softmax": ("LogSoftmax", "Hardmax"),
    "Greater": ("GreaterOrEqual", "Less"),
    "Max": ("Min",),
    "Conv": ("ConvTranspose",),
    "DepthToSpace": ("SpaceToDepth",),
}
"""Operators that an operator may be taken for."""


def mutants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """What is changed, and the model with the change."""
    for name, change in _changes(model.graph):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        change(copy)
        yield name, copy


def _changes(graph: GraphProto) -> Iterator[Change]:
    for index, tensor in enumerate(graph.initializer):
        yield from _numbers(index, tensor)
    for index, node in enumerate(graph.node):
        label = f"{node.op_type} {node.output[0]}"
        for other in OTHERS.get(node.op_type, ()):
            yield f"{label}: {other}", _set_type(index, other)
        for place, attribute in enumerate(node.attribute):
            yield from _attributes(label, index, place, attribute)
        yield from _wires(label, index, node, graph)


def _numbers(index: int, tensor: TensorProto) -> Iterator[Change]:
    array = numpy_helper.to_array(tensor)
    flat = array.reshape(-1)
    if array.dtype.kind == "f" and flat.any():
        for place in {int(np.flatnonzero(flat)[0]), int(np.abs(flat).argmax())}:
            yield f"{tensor.name}[{place}] off", _store(index, _off(array, place))
        yield f"{tensor.name} negated", _store(index, -array)
        if array.ndim and len(array) > 1:
            yield f"{tensor.name} turned around", _store(index, array[::-1].copy())
        if array.ndim > 3 and array.shape[-1] == array.shape[-2] > 1:
            yield f"{tensor.name} transposed", _store(index, array.swapaxes(-1, -2).copy())
    if array.dtype.kind == "i" and flat.size:
        changed = array.copy()
        changed.reshape(-1)[-1] += 1
        yield f"{tensor.name} one more", _store(index, changed)


def _off(array: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    changed = array.copy()
    flat = changed.reshape(-1)
    for _ in range(PLACES):
        flat[place] = np.nextafter(flat[place], np.sign(flat[place]) * np.inf, dtype=array.dtype)
    return changed


def _store(index: int, array: NDArray[np.generic]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[index]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return change


def _set_type(index: int, op_type: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[index].op_type = op_type

    return change


def _attributes(label: str, index: int, place: int, found: AttributeProto) -> Iterator[Change]:
    def on(edit: Callable[[AttributeProto], None]) -> Callable[[onnx.ModelProto], None]:
        return lambda model: edit(model.graph.node[index].attribute[place])

    match found.type:
        case AttributeProto.INT:
            yield f"{label}: {found.name} one more", on(lambda a: setattr(a, "i", a.i + 1))
        case AttributeProto.FLOAT:
            yield f"{label}: {found.name} larger", on(lambda a: setattr(a, "f", a.f * 1.001))
        case AttributeProto.INTS:
            for k in range(len(found.ints)):
                yield f"{label}: {found.name}[{k}] one more", on(_one_more(k))
            if len(set(found.ints)) > 1:
                yield f"{label}: {found.name} turned around", on(_turned)


def _one_more(k: int) -> Callable[[AttributeProto], None]:
    def edit(attribute: AttributeProto) -> None:
        attribute.ints[k] += 1

    return edit


def _turned(attribute: AttributeProto) -> None:
    attribute.ints[:] = list(attribute.ints)[::-1]


def _wires(label: str, index: int, node: NodeProto, graph: GraphProto) -> Iterator[Change]:
    """Past the node; inputs in another order; another value in the place of an input."""
    made = {name for each in graph.node for name in each.output} | {v.name for v in graph.input}
    if node.input and node.input[0] in made:
        yield f"{label}: left out", _bypass(index)
    if len(node.input) > 1:
        yield f"{label}: inputs turned around", _turn_inputs(index)
    for port, name in enumerate(node.input):
        before = [*(v.name for v in graph.input), *(n.output[0] for n in graph.node[:index])]
        others = [each for each in before if each != name] if name in made else []
        for other in others[-2:]:
            yield f"{label}: {other} for {name}", _rewire(index, port, other)
        alike = [
            each.name
            for each in graph.initializer
            if each.name != name and name not in made and _is_alike(each, name, graph)
        ]
        for other in alike[:2]:
            yield f"{label}: {other} for {name}", _rewire(index, port, other)


def _is_alike(tensor: TensorProto, name: str, graph: GraphProto) -> bool:
    own = next((each for each in graph.initializer if each.name == name), None)
    return own is not None and (own.dims, own.data_type) == (tensor.dims, tensor.data_type)


def _rewire(index: int, port: int, name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[index].input[port] = name

    return change


def _turn_inputs(index: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        inputs = model.graph.node[index].input
        inputs[:2] = [inputs[1], inputs[0]]

    return change


def _bypass(index: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = model.graph.node[index]
        source = node.input[0]
        del node.input[1:]
        del node.attribute[:]
        node.op_type, node.domain = "Identity", ""
        node.input[0] = source

    return change
