"""Shape inference by onnx, for the main graph and for the bodies of If, Loop and Scan.

onnx infers bodies only on the way to the outputs of their node, and does not say what it found
inside: each is inferred again as a graph of its own, the values that it captures as inputs. The
model itself is left as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

_LARGE = 1024
"""Bytes of an initializer from which on its content is no shape, and is left out."""


def inferred(model: ir.Model) -> Mapping[ir.Value, ir.Value]:
    """For every value, its twin in a copy with shapes and types (none where nothing is missing)."""
    made = (value for node in model.graph.all_nodes() for value in node.outputs if value.uses())
    if all(value.shape is not None and value.dtype is not None for value in made):
        return {}
    copy = model.clone()
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    was, logger.disabled = logger.disabled, True
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    finally:
        logger.disabled = was
    for graph in copy.graph.subgraphs():
        _infer_body(graph, copy)
    twins: dict[ir.Value, ir.Value] = {}
    for ours, theirs in zip(model.graphs(), copy.graphs(), strict=True):
        twins.update(zip(ours.inputs, theirs.inputs, strict=True))
    nodes = zip(model.graph.all_nodes(), copy.graph.all_nodes(), strict=True)
    for mine, other in nodes:
        twins.update(zip(mine.outputs, other.outputs, strict=True))
    return twins


def _infer_body(graph: ir.Graph, model: ir.Model) -> None:
    proto: onnx.GraphProto = ir.to_proto(graph)
    large = [
        v
        for v in graph.initializers.values()
        if v.const_value is not None and v.const_value.nbytes > _LARGE
    ]
    for value in (*_captured(graph), *large):
        proto.input.append(ir.to_proto(value))
    names = {value.name for value in large}
    small = [tensor for tensor in proto.initializer if tensor.name not in names]
    del proto.initializer[:]
    proto.initializer.extend(small)
    opsets = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    whole = onnx.helper.make_model(proto, opset_imports=opsets, ir_version=model.ir_version)
    try:
        found = onnx.shape_inference.infer_shapes(whole, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return
    types = {entry.name: entry.type for entry in (*found.value_info, *found.output)}
    for node in graph:
        for value in node.outputs:
            known = types.get(value.name or "")
            if known is not None and value.shape is None:
                value.shape = ir.serde.deserialize_type_proto_for_shape(known)
                value.type = value.type or ir.serde.deserialize_type_proto_for_type(known)


def _captured(graph: ir.Graph) -> list[ir.Value]:
    """The values of outer graphs that the body reads, in order."""
    inner = {value for node in graph.all_nodes() for value in node.outputs}
    for body in (graph, *graph.subgraphs()):
        inner.update(body.inputs)
        inner.update(body.initializers.values())
    read = (value for node in graph.all_nodes() for value in node.inputs)
    return list(dict.fromkeys(v for v in read if v is not None and v.name and v not in inner))
