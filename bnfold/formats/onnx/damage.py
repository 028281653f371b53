"""An ONNX model with one number of it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from bnfold.formats.model import off
from bnfold.formats.onnx.constants import DEFAULT_EPSILON

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_EPSILONS = (
    *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
    *("LpNormalization", "RMSNormalization", "SkipLayerNormalization"),
)


def damages(model: ir.Model) -> Iterator[tuple[str, str, Callable[[float], ir.Model]]]:
    """Kind, place and maker of every damage to the main graph."""
    for position, node in enumerate(model.graph):
        if node.op_type in _PRODUCTS:
            for value in node.inputs[:2]:
                if _floating(value, at_least=2):
                    assert value is not None
                    yield (
                        "weight",
                        f"the weight {value.name}",
                        partial(_weight, model, value.name or ""),
                    )
        if node.op_type in _PRODUCTS[:3] and len(node.inputs) > 2 and _floating(node.inputs[2]):
            bias = node.inputs[2]
            assert bias is not None
            yield "bias", f"the bias {bias.name}", partial(_weight, model, bias.name or "")
        if node.op_type in _EPSILONS:
            where = f"the epsilon of {node.name or node.outputs[0].name} ({node.op_type})"
            yield "epsilon", where, partial(_epsilon, model, position)


def _floating(value: ir.Value | None, at_least: int = 1) -> bool:
    tensor = None if value is None else value.const_value
    return (
        value is not None
        and value.is_initializer()
        and tensor is not None
        and tensor.dtype.is_floating_point()
        and len(tensor.shape) >= at_least
        and tensor.size > 0
    )


def _weight(model: ir.Model, name: str, size: float) -> ir.Model:
    copy = model.clone()
    value = copy.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    where = int(np.argmax(np.abs(array.astype(np.float64))))
    array.flat[where] = off(float(array.flat[where]), size)
    value.const_value = ir.tensor(array, name=name)
    return copy


def _epsilon(model: ir.Model, position: int, size: float) -> ir.Model:
    copy = model.clone()
    node = copy.graph[position]
    epsilon = node.attributes.get_float("epsilon", DEFAULT_EPSILON)
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon * (1 + 1000 * size))
    return copy
