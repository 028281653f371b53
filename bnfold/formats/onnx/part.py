"""Cut out the part of an ONNX model that computes one value from others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx
from onnx import helper
from onnx.helper import np_dtype_to_tensor_dtype


def part(
    model: onnx.ModelProto, values: Mapping[str, Any], output: str
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model of the nodes between, and those of `values` that are its inputs."""
    makers = {name: node for node in model.graph.node for name in node.output}
    needed: set[str] = set()
    read: dict[str, Any] = {}
    waiting = list(_reads([makers[output]]))
    nodes = {id(makers[output])}
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in values:
            read[name] = values[name]
        elif name in makers:
            nodes.add(id(makers[name]))
            waiting += _reads([makers[name]])
    graph = helper.make_graph(
        [node for node in model.graph.node if id(node) in nodes],
        "failing",
        [_info(name, array) for name, array in read.items()],
        [_info(output, values[output])],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    cut.graph.CopyFrom(graph)
    return cut, read


def _reads(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """What the nodes read, in their bodies too."""
    for node in nodes:
        yield from (name for name in node.input if name)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _reads(graph.node)


def _info(name: str, array: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, np_dtype_to_tensor_dtype(array.dtype), list(array.shape)
    )
