"""Shape inference by onnx, for the main graph and for the bodies of If, Loop and Scan.

onnx infers bodies only on the way to the outputs of their node, and does not say what it found
inside: each is inferred again as a graph of its own, the values that it captures as inputs. The
model itself is left as it is, and no large weight is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from bnfold.formats.onnx.wire import without_weights


@dataclass(frozen=True, eq=False, slots=True)
class Known:
    """Shape and type of a value, as far as they are known."""

    shape: ir.Shape | None
    type: ir.TypeProtocol | None

    @property
    def dtype(self) -> ir.DataType | None:
        return None if self.type is None else self.type.dtype


def inferred(model: ir.Model, *, numbers: bool = True) -> Mapping[ir.Value, Known]:
    """What inference adds to the values whose shape or type the model does not say in full.

    With `numbers` it follows those that shapes are computed from.
    """
    functions = [ir.to_proto(function) for function in model.functions.values()]
    found: dict[ir.Value, Known] = {}
    for graph in (model.graph, *model.graph.subgraphs()):
        _infer(graph, model, functions, found, numbers)
    return found


def is_vague(value: ir.Value) -> bool:
    """Whether the model leaves the type, the rank or a size of the value open."""
    if value.shape is None or value.dtype is None:
        return True
    return any(size is None or getattr(size, "value", size) is None for size in value.shape)


def _infer(
    graph: ir.Graph,
    model: ir.Model,
    functions: Iterable[onnx.FunctionProto],
    found: dict[ir.Value, Known],
    numbers: bool,
) -> None:
    """Add to `found` what onnx says about the values that the nodes of `graph` itself make."""
    proto, left_out = without_weights(graph)
    for value in (*_captured(graph), *left_out):
        known = found.get(value, value)
        twin = ir.Value(name=value.name, shape=known.shape, type=known.type)
        proto.input.append(ir.to_proto(twin))
    proto.value_info.extend(_of_convolutions(graph, {entry.name for entry in proto.value_info}))
    opsets = [onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()]
    whole = onnx.helper.make_model(
        proto, opset_imports=opsets, ir_version=model.ir_version, functions=functions
    )
    try:
        results = onnx.shape_inference.infer_shapes(whole, data_prop=numbers).graph
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        return
    types = {entry.name: entry.type for entry in (*results.value_info, *results.output)}
    for value in (value for node in graph for value in node.outputs):
        known_type = types.get(value.name or "")
        if known_type is not None and (is_vague(value) or not _is_fixed(value)):
            found[value] = Known(
                ir.serde.deserialize_type_proto_for_shape(known_type) or value.shape,
                ir.serde.deserialize_type_proto_for_type(known_type) or value.type,
            )


def _of_convolutions(graph: ir.Graph, told: Collection[str]) -> Iterator[onnx.ValueInfoProto]:
    """What the weight of a convolution tells, where its input is what an unknown operator made."""
    for node in graph:
        if node.domain or node.op_type not in ("Conv", "ConvTranspose") or len(node.inputs) < 2:
            continue
        weight, made = node.inputs[1], node.outputs[0]
        if weight is None or weight.shape is None or weight.dtype is None:
            continue
        if made.name is None or made.name in told or made.is_graph_output():
            continue
        if not weight.shape.is_static() or weight.shape.rank() < 2:
            continue
        outer, inner, *kernel = weight.shape.numpy()
        wide = node.op_type == "ConvTranspose"
        channels = inner * node.attributes.get_int("group", 1) if wide else outer
        shape = [None, channels, *[None for _ in kernel]]
        yield onnx.helper.make_tensor_value_info(made.name, weight.dtype.value, shape)


def _is_fixed(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def _captured(graph: ir.Graph) -> list[ir.Value]:
    """The values of outer graphs that the body reads, in order."""
    inner = {value for node in graph.all_nodes() for value in node.outputs}
    for body in (graph, *graph.subgraphs()):
        inner.update(body.inputs)
        inner.update(body.initializers.values())
    read = (value for node in graph.all_nodes() for value in node.inputs)
    return list(dict.fromkeys(v for v in read if v is not None and v.name and v not in inner))
