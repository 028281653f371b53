"""Whether the tensors in an ONNX message hold as many numbers as their shapes say."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
import onnx_ir as ir

_REPEATED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_PAIRS = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
"""Types of which a number is two entries."""


def misfit(model: onnx.ModelProto) -> str | None:
    """What is wrong with the first tensor whose data do not fit; None if all do."""
    nodes = [*graph_tensors(model.graph)]
    for function in model.functions:
        nodes += [tensor for node in function.node for tensor in _node_tensors(node)]
    return next((why for tensor in nodes if (why := _wrong(tensor)) is not None), None)


def graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The tensors of a graph, of its nodes and of the bodies in it."""
    waiting = [graph]
    while waiting:
        each = waiting.pop()
        yield from each.initializer
        for node in each.node:
            for attribute in node.attribute:
                yield from _attribute_tensors(attribute)
                waiting += [g for g in (attribute.g, *attribute.graphs) if g.node or g.initializer]


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from _attribute_tensors(attribute)
        for graph in (attribute.g, *attribute.graphs):
            yield from graph_tensors(graph)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _wrong(tensor: onnx.TensorProto) -> str | None:
    """Lengths are compared, not data read: of a shape nothing is believed."""
    what = f"the tensor {tensor.name!r} of shape {list(tensor.dims)[:8]}"
    if any(size < 0 for size in tensor.dims):
        return f"{what} has a size below zero"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None  # compared with the file when that is opened
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        return f"{what} is of a type that ONNX does not have, {tensor.data_type}"
    if dtype == ir.DataType.UNDEFINED:
        return f"{what} does not say of what type it is"
    count = math.prod(tensor.dims)
    if dtype == ir.DataType.STRING:
        held, wanted, unit = len(tensor.string_data), count, "texts"
    elif tensor.HasField("raw_data"):
        held, wanted, unit = len(tensor.raw_data), -(-count * dtype.bitwidth // 8), "bytes"
    else:
        held, unit = sum(len(getattr(tensor, name)) for name in _REPEATED), "numbers"
        wanted = count * 2 if tensor.data_type in _PAIRS else count
        if dtype.bitwidth < 8:
            wanted = -(-count * dtype.bitwidth // 8)
    return None if held == wanted else f"{what} takes {wanted} {unit}, and has {held}"
