"""An ONNX model as a proof is told of it: read anew, with marks for what each operator is.

A mark is a digest of what an operator is but for the values that it reads: its type and since when
it is what it is, its attributes, its constant inputs, which outputs it has, and the functions that
it calls. Of the graphs that it runs it holds nothing, because their nodes are in the neutral graph.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import Node
from bnfold.formats.onnx.constants import DEFAULT_EPSILON, RANDOM, attribute
from bnfold.formats.onnx.functions import inlined
from bnfold.formats.onnx.reader import Reading, read
from bnfold.formats.onnx.values import bodies_of, dtype_name, sizes
from bnfold.proof.ball import half_a_place
from bnfold.proof.written import Mark, Port, Written


def written(model: ir.Model) -> Written:
    """What `model` is, by a reading of its own.

    Where it computes with shapes, what it declares of them on the way is not believed.
    """
    whole = inlined(model)
    outputs = tuple(_port(value) for value in whole.graph.outputs)
    nodes = whole.graph.all_nodes()
    if any(node.op_type in ("Shape", "Size") for node in nodes):
        whole = whole.clone()
        for node in whole.graph.all_nodes():
            for value in node.outputs:
                value.shape = None
    reading = read(whole)
    marks = _Marks(whole, reading)
    graph = reading.graph
    return Written(
        graph,
        tuple(
            _port(value) for value in whole.graph.inputs if not reading.values.is_constant(value)
        ),
        outputs,
        cache(marks.mark),
        lambda value: reading.values.dtype(reading.natives[value]) or "float32",
        marks.radii,
    )


def _port(value: ir.Value) -> Port:
    return Port(value.name or "", dtype_name(value.dtype) or "", sizes(value.shape))


class _Marks:
    """The marks of one model."""

    def __init__(self, model: ir.Model, reading: Reading) -> None:
        self.model = model
        self.reading = reading
        self.names = {value: name for name, value in reading.natives.items()}
        self.steps: dict[str, int] = {}
        count: dict[ir.Node, int] = {}
        for node in reading.graph.nodes:
            if (address := reading.addresses.get(node.name)) is not None:
                self.steps[node.name] = count[address.node] = count.get(address.node, 0) + 1

    def mark(self, node: Node) -> Mark:
        address = self.reading.addresses.get(node.name)
        if address is None:
            digest = self._constant(self.reading.natives[node.outputs[0]])
            return Mark(None if digest is None else f"constant {digest}")
        read = [str(self.names.get(v) in node.outputs) for v in address.node.outputs]
        parts = [str(self.steps[node.name]), ",".join(read)]
        for native in address.nodes:
            found = self._native(native)
            if found is None:
                return Mark(None)
            parts += found
        native = address.node
        shaped = [native.inputs[0]] if native.op_type in ("Shape", "Size") else []
        sized = tuple(self.names[v] for v in shaped if v is not None and v in self.names)
        if len(sized) < len(shaped) or native.domain != "":
            sized = ()
        bodies = [value for body in bodies_of(native) for value in body.inputs]
        named = tuple(self.names[v] for v in bodies if v in self.names)
        return Mark(_digest("\n".join(parts).encode()), sized, named)

    def _native(self, node: ir.Node) -> list[str] | None:
        """What the operator is; None if it may give another result each time."""
        if not self._is_deterministic(node):
            return None
        called = node.op_identifier()
        outputs = ["" if not value.name else "made" for value in node.outputs]
        parts = ["::".join(called), str(self._since(node)), ",".join(outputs)]
        parts += sorted(_told(each) for each in node.attributes.values())
        for value in node.inputs:
            found = self._input(node, value)
            if found is None:
                return None
            parts.append(found)
        return parts

    def _input(self, node: ir.Node, value: ir.Value | None) -> str | None:
        if value is None:
            return "none"
        if node.op_type == "CastLike" and value is node.inputs[-1]:
            return f"type {self.reading.values.dtype(value)}"
        return self._constant(value) if self.reading.values.is_constant(value) else "computed"

    def _constant(self, value: ir.Value) -> str | None:
        """A digest of a constant; None if it is too large to be computed."""
        array = self.reading.values.array(value)
        if array is None:
            return None
        if array.dtype.kind == "O":
            return _digest(repr(array.tolist()).encode() + str(array.shape).encode())
        return _digest(
            np.ascontiguousarray(array).tobytes(), f"{array.dtype}{array.shape}".encode()
        )

    def _is_deterministic(self, node: ir.Node) -> bool:
        inside = (n for name in self._calls(node) for n in self.model.functions[name].all_nodes())
        return not any(each.op_type in RANDOM for each in (node, *inside))

    def _calls(self, node: ir.Node) -> list[ir.OperatorIdentifier]:
        """The functions that a node calls, itself or through others, each once."""
        found: list[ir.OperatorIdentifier] = []
        waiting = [node.op_identifier()]
        while waiting:
            called = waiting.pop()
            if called in self.model.functions and called not in found:
                found.append(called)
                waiting += [n.op_identifier() for n in self.model.functions[called].all_nodes()]
        return found

    def _since(self, node: ir.Node) -> str:
        """Since when the operator is what it is; or what it calls."""
        if calls := self._calls(node):
            return _digest(*(_body(self.model.functions[name]) for name in calls))
        version = self.model.opset_imports.get(node.domain)
        try:
            schema = onnx.defs.get_schema(node.op_type, version or 1, node.domain)
            return f"since {schema.since_version}"
        except onnx.defs.SchemaError:
            return f"opset {version}"

    def radii(self, node: Node) -> tuple[Array, Array] | None:
        """Of a BatchNormalization, whose scale and shift are made of several constants."""
        native = self.reading.addresses[node.name].node
        if native.op_type != "BatchNormalization":
            return None
        arrays = [self.reading.values.array(v) for v in native.inputs[1:5] if v is not None]
        if any(array is None for array in arrays) or len(arrays) != 4:
            return None
        dtypes = [str(array.dtype.name) for array in arrays if array is not None]
        gamma, beta, mean, var = (np.asarray(array, np.float64) for array in arrays)
        spread = np.sqrt(var + attribute(native, "epsilon", DEFAULT_EPSILON))
        scale = half_a_place(gamma, dtypes[0]) / spread
        return scale, half_a_place(beta, dtypes[1]) + np.abs(mean) * scale


def _told(found: ir.Attr) -> str:
    """An attribute without its documentation, and without the graphs that it holds."""
    if found.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return f"{found.name}: graph"
    proto = ir.to_proto(found)
    proto.doc_string = ""
    if found.type == ir.AttributeType.TENSOR:
        array = found.as_tensor().numpy()
        return f"{found.name}: {array.dtype}{array.shape} {_digest(array.tobytes())}"
    return f"{found.name}: {_digest(proto.SerializeToString(deterministic=True))}"


def _body(function: ir.Function) -> bytes:
    proto = ir.to_proto(function)
    proto.doc_string = ""
    return bytes(proto.SerializeToString(deterministic=True))


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()
