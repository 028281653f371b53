"""What ONNX operators make of constants: ONNX Runtime computes them, one node at a time.

Whatever the operator, a node of constants is a constant. It is computed only when asked for, and
only if that is sure to stay within bounds.

Exact when   DETERMINISTIC  no random operator, and none that holds a graph
             SIZE           onnx infers the shape of the result beforehand, and it is not too large
             WORK           of a product or convolution, so is the number of multiply-adds
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

Native = NDArray[Any]

DEFAULT_EPSILON = float(np.float32(1e-5))
"""Of a BatchNormalization; attributes are float32, and so are their defaults."""

MOST_ELEMENTS = 1 << 26
"""A constant with more elements than this, and than those it is made of, is not computed."""

MOST_WORK = 1 << 34
"""Multiply-adds that one node may take."""

SMALL = 1 << 10
"""Up to so many elements, a constant may be a shape, and is shown to shape inference."""

RANDOM = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
        *("RandomUniformLike", "Dropout"),
    }
)
"""Operators that give another result each time, or may."""

SELECTING = frozenset({"NonZero", "Compress", "Unique"})
"""Operators whose result has no more elements than their inputs, times the rank."""


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute; a list becomes a tuple."""
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    return tuple(found.value) if isinstance(found.value, list | tuple) else found.value


def constant_of(node: ir.Node) -> Native | None:
    """The value of a Constant node; None if it is sparse, absent, or a function's attribute."""
    found = next(iter(node.attributes.values()), None)
    if found is None or found.is_ref():
        return None
    match found.type:
        case ir.AttributeType.TENSOR:
            return np.asarray(found.as_tensor().numpy())
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
            return np.array(found.value, np.float32)
        case ir.AttributeType.INT | ir.AttributeType.INTS:
            return np.array(found.value, np.int64)
    return None


def cast(x: Native, dtype: ir.DataType | int | None) -> Native | None:
    return None if dtype is None else x.astype(ir.DataType(dtype).numpy())


def is_deterministic(node: ir.Node) -> bool:
    """DETERMINISTIC"""
    plain = all(
        not a.is_ref() and a.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    )
    return plain and node.op_type not in RANDOM


def evaluated(
    node: ir.Node, opset: int, arguments: Sequence[Native | None]
) -> list[Native | None] | None:
    """The outputs of `node` for its inputs; None if they are out of bounds or cannot be computed.

    An output without a name is None.
    """
    proto = ir.to_proto(node)
    given = {n: a for n, a in zip(proto.input, arguments, strict=True) if a is not None}
    results = [name for name in proto.output if name]
    try:
        model = _model(proto, opset, given)
        if not _is_affordable(model, node, given):
            return None
        made = dict(zip(results, _run(model, given), strict=True))
    except Exception:  # whatever onnx or a runtime raises for what it is given
        return None
    return [made.get(name) for name in proto.output]


def _model(proto: onnx.NodeProto, opset: int, given: dict[str, Native]) -> onnx.ModelProto:
    inputs = [
        onnx.helper.make_tensor_value_info(name, ir.DataType.from_numpy(a.dtype).value, a.shape)
        for name, a in given.items()
    ]
    outputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output if name]
    shapes = [
        onnx.numpy_helper.from_array(a, name)
        for name, a in given.items()
        if a.size <= SMALL and a.dtype.kind in "iufb"
    ]
    graph = onnx.helper.make_graph([proto], "constant", inputs, outputs, shapes)
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _is_affordable(model: onnx.ModelProto, node: ir.Node, given: dict[str, Native]) -> bool:
    """SIZE and WORK."""
    before = sum(a.size for a in given.values())
    if node.op_type in SELECTING:
        return before <= MOST_ELEMENTS
    shown = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    after = [_elements(value.type) for value in shown]
    if any(n is None or n > max(MOST_ELEMENTS, before) for n in after):
        return False
    return max((n or 0 for n in after), default=0) * _terms(node, list(given.values())) <= MOST_WORK


def _elements(made: onnx.TypeProto) -> int | None:
    """How many elements a tensor of that type has, if that is known."""
    tensor = made.tensor_type
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return math.prod(int(d.dim_value) for d in tensor.shape.dim)


def _terms(node: ir.Node, given: list[Native]) -> int:
    """How many products each element of the result is the sum of."""
    match node.op_type:
        case "Conv" | "ConvTranspose" | "ConvInteger" | "QLinearConv":
            return max(a.size for a in given)
        case "MatMul" | "Gemm" | "MatMulInteger" | "QLinearMatMul":
            return max(max(a.shape, default=1) for a in given)
        case "Einsum":
            return math.prod(a.size for a in given)
    return 1


def _run(model: onnx.ModelProto, given: dict[str, Native]) -> list[Native]:
    """By ONNX Runtime; by onnx's own evaluator for a type that numpy has not, such as bfloat16."""
    if any(a.dtype.kind == "V" for a in given.values()):
        from onnx.reference import ReferenceEvaluator

        return [np.asarray(a) for a in ReferenceEvaluator(model).run(None, given)]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    needed = {value.name for value in session.get_inputs()}
    feeds = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in given.items()}
    return [np.asarray(a) for a in session.run(None, {n: feeds[n] for n in needed})]
