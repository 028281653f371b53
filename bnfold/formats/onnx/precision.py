"""An ONNX model with its floats in another type: weights, values, and what it takes and gives.

An operator that has no such type at the model's opset is computed in its own, between two casts;
one that holds weights, and would gain nothing so, is refused. A number that an operator takes in
one type alone, such as the scales of Resize, stays in it.

Exact when   ROOM     every weight lies in the range of the type; a single number beyond it, such as
                      the fill value of a mask, becomes the largest that there is
Source       the schemas in onnx.defs (ONNX, Operators.md)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from bnfold.algebra.rounding import EPSILON, numpy_dtype, rounded
from bnfold.errors import UsageError
from bnfold.formats.onnx.constants import Native
from bnfold.formats.onnx.functions import LINEAR, inlined
from bnfold.formats.onnx.later import Later
from bnfold.formats.onnx.values import Values, dtype_name, values_of
from bnfold.naming import claim

LARGEST = {
    "float32": (2 - 2.0**-23) * 2.0**127,
    "float16": 65504.0,
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
}
"""The largest number of each type."""

_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")


def in_precision(model: ir.Model, dtype: str) -> ir.Model:
    """A copy with every float in `dtype`; `model` itself if none is in another.

    Raises UsageError for a weight or an operator that has no place for that type.
    """
    flat = inlined(model)
    if flat.functions:
        name = next(iter(flat.functions))[1]
        raise UsageError(
            f"the function {name} cannot be put in place, so its types stay",
            "export the model without functions, or start from the PyTorch model",
        )
    copy = flat.clone() if flat is model else flat
    found = _Types(copy)
    if all(each in (None, dtype) for each in found.floats()):
        return model
    _Cast(copy, dtype, found).run()
    return copy


def _is_float(dtype: ir.DataType | None) -> bool:
    return dtype_name(dtype) in EPSILON


class _Types:
    """The type of every value of floats, before anything is cast."""

    def __init__(self, model: ir.Model) -> None:
        values = Values(model)
        for node in model.graph.all_nodes():
            values.visit(node)
        self._known: dict[ir.Value, str | None] = {}
        for graph in model.graphs():
            made = [value for node in graph for value in node.outputs]
            for value in (*graph.inputs, *graph.initializers.values(), *made):
                if isinstance(value.type, ir.SequenceType | ir.OptionalType):
                    raise UsageError(
                        f"{value.name} is a sequence of tensors, whose type cannot be changed",
                        "start from the PyTorch model",
                    )
                self._known[value] = values.dtype(value)

    def floats(self) -> Iterator[str | None]:
        return (dtype for dtype in self._known.values() if dtype in EPSILON)

    def of(self, value: ir.Value) -> str | None:
        """The type of a value if it holds floats."""
        dtype = self._known.get(value)
        return dtype if dtype in EPSILON else None


@dataclass(frozen=True, slots=True)
class _Own:
    """What of a node stays in its type: inputs by position, with that type, and outputs."""

    inputs: Mapping[int, str]
    outputs: Sequence[int]


class _Cast:
    def __init__(self, model: ir.Model, dtype: str, types: _Types) -> None:
        self._model, self._dtype, self._types = model, dtype, types
        self._type = ir.DataType.from_numpy(numpy_dtype(dtype))
        self._taken = {v.name or "" for graph in model.graphs() for v in values_of(graph)}
        self._opset = model.opset_imports.get("", 1)

    def run(self) -> None:
        nodes = [node for graph in self._model.graphs() for node in graph]
        kept = {node: self._in_its_own(node) for node in nodes}
        stays = self._constants_that_stay(kept)
        raw: dict[ir.Value, ir.Value] = {}  # the result of a cast after a node -> what that makes
        for node, own in kept.items():
            for index in own.outputs:
                value = node.outputs[index]
                raw[self._cast_after(node, value)] = value
        stays.update(raw.values())
        for node, own in kept.items():
            for index, dtype in own.inputs.items():
                read = node.inputs[index]
                if read is not None and read not in stays:
                    node.replace_input_with(index, self._cast_before(node, read, dtype, raw))
            if not any(value in stays for value in node.outputs):
                self._attributes(node)
        for made in raw:
            _drop_unread(made)
        for graph in self._model.graphs():
            for value in graph.initializers.values():
                if value not in stays:
                    self._weight(value)
            for value in values_of(graph):
                if value not in stays and self._types.of(value) is not None:
                    value.type = ir.TensorType(self._type)

    def _in_its_own(self, node: ir.Node) -> _Own:
        """The inputs and outputs of a node that stay in the type that they are in."""
        schema = self._schema(node)
        inputs = {i: own for i, v in enumerate(node.inputs) if v and (own := self._types.of(v))}
        outputs = [i for i, v in enumerate(node.outputs) if self._types.of(v)]
        if schema is None:
            return _Own(inputs, outputs)
        inputs = {i: t for i, t in inputs.items() if not self._admits(schema, schema.inputs, i)}
        outputs = [i for i in outputs if not self._admits(schema, schema.outputs, i)]
        if (inputs or outputs) and node.op_type in LINEAR:
            raise UsageError(
                f"{node.name} ({node.op_type}) has no {self._dtype} in opset {self._opset}",
                "bring the model to a later one first: bnfold export --to onnx --opset 22",
            )
        return _Own(inputs, outputs)

    def _schema(self, node: ir.Node) -> OpSchema | None:
        if node.domain or not onnx.defs.has(node.op_type, self._opset, ""):
            return None
        return onnx.defs.get_schema(node.op_type, self._opset, "")

    def _admits(self, schema: OpSchema, declared: Sequence[Any], index: int) -> bool:
        kind = declared[min(index, len(declared) - 1)].type_str
        types = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
        return f"tensor({self._type.name.lower()})" in types.get(kind, [kind])

    def _constants_that_stay(self, kept: Mapping[ir.Node, _Own]) -> set[ir.Value]:
        """Constants that nothing reads but operators that take their type alone."""

        def only(value: ir.Value) -> bool:
            uses = value.uses()
            return bool(uses) and all(use.idx in kept[use.node].inputs for use in uses)

        found = {v for g in self._model.graphs() for v in g.initializers.values() if only(v)}
        made = (v for node in kept if node.op_type == "Constant" for v in node.outputs)
        return found | {value for value in made if only(value)}

    def _cast_before(
        self, node: ir.Node, value: ir.Value, dtype: str, raw: Mapping[ir.Value, ir.Value]
    ) -> ir.Value:
        """`value` in the type that it had, for one node."""
        if value in raw and self._types.of(raw[value]) == dtype:
            return raw[value]
        cast = self._new(value, ir.DataType.from_numpy(numpy_dtype(dtype)))
        assert node.graph is not None
        node.graph.insert_before(node, cast)
        return cast.outputs[0]

    def _cast_after(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """The result of a node in the type of all others, under its name."""
        cast = self._new(value, self._type)
        made = cast.outputs[0]
        for use in list(value.uses()):
            if use.node is not cast:
                use.node.replace_input_with(use.idx, made)
        graph = node.graph
        assert graph is not None
        graph.outputs[:] = [made if each is value else each for each in graph.outputs]
        made.name, value.name = value.name, made.name
        graph.insert_after(node, cast)
        return made

    def _new(self, value: ir.Value, to: ir.DataType) -> ir.Node:
        name = claim(f"{value.name}.{to.name.lower()}", self._taken, "_")
        node = ir.node("Cast", [value], {"to": int(to)}, name=name)
        node.outputs[0].name = name
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(to), value.shape
        return node

    def _attributes(self, node: ir.Node) -> None:
        """What a node says of types, and the numbers that it holds."""
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, np.float32)))
        for name, held in list(node.attributes.items()):
            if held.is_ref():
                continue
            if held.type == ir.AttributeType.TENSOR and _is_float(held.as_tensor().dtype):
                cast = self._numbers(node.name or "", held.as_tensor())
                node.attributes[name] = ir.AttrTensor(name, cast)
            elif node.op_type == "Constant" and name in ("value_float", "value_floats"):
                values = np.array(held.value, np.float32)
                del node.attributes[name]
                cast = self._numbers(node.name or "", ir.tensor(values))
                node.attributes["value"] = ir.AttrTensor("value", cast)
            elif (
                name in _TYPE_ATTRIBUTES
                and held.type == ir.AttributeType.INT
                and _is_float(ir.DataType(held.as_int()))
            ):
                node.attributes[name] = ir.AttrInt64(name, int(self._type))

    def _weight(self, value: ir.Value) -> None:
        tensor = value.const_value
        if tensor is None or not _is_float(tensor.dtype) or tensor.dtype == self._type:
            return
        value.const_value = self._numbers(value.name or "", tensor)

    def _numbers(self, name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        shape = tuple(tensor.shape.numpy())
        self._require_room(name, tensor)
        load = partial(_rounded, tensor, self._dtype)
        return Later(shape, self._dtype, load).tensor(tensor.name)

    def _require_room(self, name: str, tensor: ir.TensorProtocol) -> None:
        """ROOM"""
        exact = tensor.numpy().astype(np.float64)
        beyond = np.isfinite(exact) & ~np.isfinite(rounded(exact, self._dtype).astype(np.float64))
        if exact.size > 1 and beyond.any():
            raise UsageError(
                f"{name} has numbers up to {np.abs(exact[beyond]).max():.3g}, which {self._dtype} "
                "cannot hold",
                "use --bfloat16" if self._dtype == "float16" else "leave the model in its own type",
            )


def _drop_unread(value: ir.Value) -> None:
    cast = value.producer()
    assert cast is not None
    assert cast.graph is not None
    if not value.uses() and not any(value is each for each in cast.graph.outputs):
        cast.graph.remove(cast, safe=True)


def _rounded(tensor: ir.TensorProtocol, dtype: str) -> Native:
    exact = tensor.numpy().astype(np.float64)
    near = rounded(exact, dtype)
    if exact.size == 1 and np.isfinite(exact).all() and not np.isfinite(near.astype(float)).all():
        largest = np.full(exact.shape, LARGEST[dtype]) * np.sign(exact)
        return rounded(largest, dtype)
    return near
