"""Carry out a plan on a copy of an ONNX model.

A changed parameter is written in its native layout and type: in place where every reader takes the
same new numbers, else beside the old one under a new name; numbers that are equal, once. A
dissolved affine's readers read its input; where its output leaves the graph, that input takes its
name, or an Identity stays. Constants that nothing reads any more are removed. Everything else is as
it was, and shares its tensors.

An affine that stays and took another in is written as it was, if a BatchNormalization (gamma and
beta change), else as a Mul or an Add:

    gamma' [C] = scale * sqrt(var + eps)        beta' [C] = shift + mean * scale
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from bnfold.algebra.affine import Array, to_batchnorm
from bnfold.algebra.graph import Affine, Conv, Layer, Linear, Node, Norm, Param
from bnfold.algebra.plan import Plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rounding import EPSILON, Weights, rounded
from bnfold.formats.meaning.operands import constant
from bnfold.formats.onnx.call import Call
from bnfold.formats.onnx.constants import DEFAULT_EPSILON, attribute
from bnfold.formats.onnx.later import Later
from bnfold.formats.onnx.making import Making, measures
from bnfold.formats.onnx.reader import Address, Reading
from bnfold.formats.onnx.values import given_of, values_of
from bnfold.naming import claim


def write(model: ir.Model, reading: Reading, plan: Plan, weights: Weights) -> ir.Model:
    """A copy of `model`, of which `reading` was made, with `plan` carried out."""
    writer = _Writer(model, reading, plan)
    writer.make(plan, weights)
    for node in plan.dissolved():
        writer.dissolve(node, plan.moved[node.outputs[0]])
    writer.sweep()
    for before, after in plan.changed():
        if isinstance(after.op, Layer):
            writer.name_layer(before)
            for role in weights[after.name]:
                param: Param = getattr(after.op, role)
                load = partial(weights[after.name].__getitem__, role)
                values = Later(param.shape, param.dtype, load, plan.equal.get((after.name, role)))
                writer.write_parameter(before, role, values)
        elif isinstance(after.op, Affine):
            writer.write_affine(before, after.op)
    writer.sweep()
    return writer.copy


def veto(reading: Reading, plan: Plan) -> dict[str, Refusal]:
    """The affines that took others in and whose new numbers their native type cannot hold."""
    found: dict[str, Refusal] = {}
    for _, after in plan.changed():
        if isinstance(after.op, Affine):
            for role, _, exact, dtype in _constants(reading, after, after.op):
                back = rounded(exact, dtype).astype(np.float64)
                error = np.abs(back - exact) > EPSILON[dtype] * np.abs(exact).max(initial=0)
                if not np.all(np.isfinite(back)) or np.any(error):
                    why = f"{after.name} ({after.kind}): its {role} does not fit {dtype}"
                    found[after.name] = Refusal(Reason.PRECISION, why, after.name)
    return found


def _constants(reading: Reading, node: Node, op: Affine) -> Iterator[tuple[str, int, Array, str]]:
    """Role, input index, new value and type of the constants that hold `op` in the native node."""
    address = reading.addresses[node.name]
    call = Call(address.node, node.name, 0, reading.values)
    a = op.affine
    if address.node.op_type == "BatchNormalization":
        mean, var = (constant(call.operand(i), "statistics").numbers() for i in (3, 4))
        eps = attribute(address.node, "epsilon", DEFAULT_EPSILON)
        gamma, beta = to_batchnorm(a, mean, var, eps)
        yield "scale", 1, gamma, _dtype(call, 1)
        yield "B", 2, beta, _dtype(call, 2)
        return
    index = 1 - address.data
    values = a.scale if op.holds == "scale" else a.shift
    shape = call.operand(address.data).shape
    if a.axis is None:
        values = values.reshape(())
    else:
        assert shape is not None
        values = values.reshape(-1, *[1] * (len(shape) - a.axis - 1))
    yield op.holds, index, values, _dtype(call, index)


def _dtype(call: Call, index: int) -> str:
    """The type of a constant input; that of the data where there is none yet, as in a Neg."""
    found = call.array(index)
    if found is not None:
        return str(found.dtype.name)
    (data,) = call.node.inputs
    assert data is not None
    return call.values.dtype(data) or "float32"


class _Writer:
    """The copy while it changes; `unread` are values that lost a reader, `replaced` all of them.

    `written` are constants by graph and key of their numbers; `heirs` take the names of what goes.
    """

    def __init__(self, model: ir.Model, reading: Reading, plan: Plan) -> None:
        self.copy = model.clone()
        self.reading = reading
        pairs = zip(model.graph.all_nodes(), self.copy.graph.all_nodes(), strict=True)
        self.twin = dict(pairs)
        self.inputs: dict[ir.Value, ir.Value] = {}
        for ours, theirs in zip(model.graphs(), self.copy.graphs(), strict=True):
            self.inputs.update(zip(given_of(ours), given_of(theirs), strict=True))
        names = (node.name for node in plan.after.nodes if node.name not in plan.made)
        stay = map(reading.addresses.get, names)
        self.kept = {self.twin[node] for address in stay if address for node in address.nodes}
        self.names = {v.name for graph in self.copy.graphs() for v in values_of(graph)}
        self.unread: list[ir.Value] = []
        self.replaced: dict[ir.Value, ir.Value] = {}
        self.new: dict[str, ir.Value] = {}
        self.written: dict[Hashable, ir.Value] = {}
        self.heirs: dict[ir.Value, ir.Value] = {}

    def make(self, plan: Plan, weights: Weights) -> None:
        """Add the nodes that are made anew."""
        making = Making(self.reading, plan, weights, self.twin, self._constant)
        for gone in plan.unread() if plan.made else ():
            self._tell_sizes(gone)
        for node in plan.made_nodes():
            natives = making.natives(node, [self._value(name) for name in node.inputs])
            for value in (value for native in natives for value in native.outputs):
                value.name = claim(node.name, self.names, "_")
            place = self.reading.addresses[plan.made[node.name].at].nodes[-1]
            self.copy.graph.insert_before(self.twin[place], natives)
            self._name_result(node, natives[-1].outputs[0], plan)

    def _tell_sizes(self, gone: Node) -> None:
        """Let what has read the sizes of a value that goes read them as constants."""
        address = self.reading.addresses.get(gone.name)
        for value in measures(address.nodes[-1]) if address is not None else ():
            sizes = self.reading.values.array(value)
            maker = value.producer()
            assert sizes is not None
            assert maker is not None
            (old,) = self.twin[maker].outputs
            name = f"{old.name}.known"
            old.replace_all_uses_with(
                self._constant(name, Later.of(sizes)), replace_graph_outputs=False
            )
            self.unread.append(old)

    def _name_result(self, node: Node, result: ir.Value, plan: Plan) -> None:
        """Let a new value stand in the place, and under the name, of the one that it is."""
        (name,) = node.outputs
        shape = plan.after.shapes[name]
        result.shape = None if shape is None else ir.Shape(shape)
        if name not in self.reading.natives:
            self.new[name] = result
            return
        old = self._value(name)
        result.type, result.shape, result.doc_string = old.type, old.shape, old.doc_string
        result.metadata_props.update(old.metadata_props)
        result.meta.update(old.meta)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        result.name, old.name = old.name, claim(f"{old.name}.before", self.names, "_")
        self.replaced[old] = result
        self.unread.append(old)

    def _constant(self, name: str, values: Later, graph: ir.Graph | None = None) -> ir.Value:
        """A new initializer, of the main graph if no other is given."""
        new = ir.Value(name=claim(name, self.names, "_"))
        self._store(new, values)
        graph = graph or self.copy.graph
        graph.register_initializer(new)
        if self.copy.ir_version < 4 and graph is self.copy.graph:
            graph.inputs.append(new)
        return new

    def name_layer(self, node: Node) -> None:
        """An Einsum becomes the layer that it is, which has a place for a bias."""
        native = self.twin[self.reading.addresses[node.name].node]
        if native.op_type != "Einsum":
            return
        assert isinstance(node.op, Conv | Linear)
        native.op_type = "Conv" if isinstance(node.op, Conv) else "MatMul"
        native.attributes.clear()
        if self.reading.addresses[node.name].data == 1:
            value, matrix = native.inputs[1], native.inputs[0]
            native.replace_input_with(0, value)
            native.replace_input_with(1, matrix)
        weight = node.op.weight
        self.write_parameter(
            node,
            "weight",
            Later(weight.shape, weight.dtype, lambda: rounded(weight.load(), weight.dtype)),
        )

    def write_parameter(self, node: Node, role: str, values: Later) -> None:
        address = self.reading.addresses[node.name]
        native = self.twin[address.node]
        match native.op_type, role:
            case "Gemm", "weight":
                flip = not attribute(native, "transB", 0)
                native.attributes.pop("alpha", None)
                self.set_constant(
                    native, 1, values.flipped if flip else values, f"{node.name}.weight"
                )
            case "Gemm", "bias":
                native.attributes.pop("beta", None)
                self.set_constant(native, 2, values, f"{node.name}.bias")
            case "MatMul", "weight":
                self.set_constant(native, 1, values.flipped, f"{node.name}.weight")
            case "MatMul", "bias":
                self._add_bias(node, address, native, values)
            case "LSTM" | "GRU" | "RNN", _:
                self._write_recurrent(node, native, role, values)
            case "Gather", "weight":
                self.set_constant(native, 0, values, f"{node.name}.weight")
            case _, "weight":
                assert isinstance(node.op, Conv | Norm)
                if values.shape != node.op.weight.shape and not native.outputs[0].is_graph_output():
                    native.outputs[0].shape = None
                self.set_constant(native, 1, values, f"{node.name}.weight")
            case _:
                self.set_constant(native, 2, values, f"{node.name}.bias")

    def _write_recurrent(self, node: Node, native: ir.Node, role: str, values: Later) -> None:
        """W, and the first half of B; the other one is added to what comes from the states."""
        call = Call(self.reading.addresses[node.name].node, node.name, 0, self.reading.values)
        directions, rows, size = call.parameter(1, "weight").shape
        if role == "weight":
            self.set_constant(
                native, 1, values.reshaped(directions, rows, size), f"{node.name}.weight"
            )
            return
        old = call.array(3)

        def both() -> Array:
            first = values.load().reshape(directions, rows)
            rest = np.zeros_like(first) if old is None else old[:, rows:]
            return np.concatenate((first, rest), 1)

        shape = (directions, 2 * rows)
        self.set_constant(native, 3, Later(shape, values.dtype, both), f"{node.name}.bias")

    def write_affine(self, before: Node, op: Affine) -> None:
        native = self.twin[self.reading.addresses[before.name].node]
        for role, index, exact, dtype in _constants(self.reading, before, op):
            self.set_constant(
                native, index, Later.of(rounded(exact, dtype)), f"{before.name}.{role}"
            )
            if native.op_type != "BatchNormalization":
                native.op_type = "Mul" if role == "scale" else "Add"

    def set_constant(self, node: ir.Node, index: int, values: Later, name: str) -> None:
        """Give `node` a constant input: in place of an initializer of its own, else a new one."""
        old = node.inputs[index] if index < len(node.inputs) else None
        key = None if values.key is None else (node.graph, values.key)
        new = self.written.get(key)
        own = old is not None and old.is_initializer() and not old.is_graph_output()
        if new is None and own and old is not None and tuple(old.uses()) == ((node, index),):
            self._store(old, values)
            self._remember(key, old)
            return
        assert node.graph is not None
        if new is None:
            new = self._constant(name, values, node.graph)
            self._remember(key, new)
            if key is not None and old is not None:
                self.heirs.setdefault(old, new)
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, new)
        if old is not None:
            self.unread.append(old)

    def _remember(self, key: Hashable, value: ir.Value) -> None:
        if key is not None:
            self.written[key] = value

    def dissolve(self, gone: Node, value: str) -> None:
        """Let what reads the output of `gone` read `value` instead."""
        node, source = self.twin[self.reading.addresses[gone.name].nodes[-1]], self._value(value)
        result = node.outputs[0]
        assert node.graph is not None
        if result.is_graph_output() and not _leave(node.graph, source, result):
            self.unread += [v for v in node.inputs if v is not None and v is not source]
            node.replace_input_with(0, source)
            node.resize_inputs(1)
            node.attributes.clear()
            node.op_type = "Identity"
            return
        result.replace_all_uses_with(source)
        self.replaced[result] = source
        self.unread += [value for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)

    def sweep(self) -> None:
        """Remove what lost its last reader, and so on upwards; what the plan keeps stays."""
        while self.unread:
            value = self.unread.pop()
            if value.uses() or value.is_graph_output():
                continue
            node = value.producer()
            if node is not None:
                self._remove_unread(node)
            elif value.is_initializer():
                self._remove_initializer(value)

    def _remove_unread(self, node: ir.Node) -> None:
        if (
            node.graph is None
            or node in self.kept
            or any(v.uses() or v.is_graph_output() for v in node.outputs)
        ):
            return
        self.unread += [value for value in node.inputs if value is not None]
        node.graph.remove(node, safe=True)

    def _remove_initializer(self, value: ir.Value) -> None:
        graph = value.graph
        assert graph is not None
        assert value.name is not None
        if value.is_graph_input():
            if self.copy.ir_version >= 4:
                return
            graph.inputs.remove(value)
        graph.initializers.pop(value.name, None)
        heir = self.heirs.get(value)
        if heir is not None and heir.graph is graph:
            heir.name = value.name

    def _add_bias(self, node: Node, address: Address, native: ir.Node, values: Later) -> None:
        """To its Add if the MatMul has one; else it becomes a Gemm (rank 2) or gets an Add."""
        name = f"{node.name}.bias"
        if address.bias is not None:
            add, index = address.bias
            self.set_constant(self.twin[add], index, values, name)
            return
        shape = self.reading.graph.shapes.get(node.inputs[0])
        if shape is not None and len(shape) == 2:
            native.op_type = "Gemm"
            self.set_constant(native, 2, values, name)
            return
        product = native.outputs[0]
        add = ir.Node("", "Add", [product, None], name=f"{node.name}.add_bias")
        (total,) = add.outputs
        assert native.graph is not None
        native.graph.insert_after(native, add)
        product.replace_all_uses_with(total, replace_graph_outputs=True)
        add.replace_input_with(0, product)
        total.name, product.name = product.name, claim(f"{product.name}.unbiased", self.names, "_")
        total.type, total.shape = product.type, product.shape
        self.set_constant(add, 1, values, name)

    def _value(self, name: str) -> ir.Value:
        """The value of the copy that the neutral graph calls `name`."""
        if name in self.new:
            return self.new[name]
        native = self.reading.natives[name]
        node = native.producer()
        if node is None:
            return self.inputs[native]
        value = self.twin[node].outputs[[*node.outputs].index(native)]
        while value in self.replaced:
            value = self.replaced[value]
        return value

    def _store(self, value: ir.Value, values: Later) -> None:
        value.const_value = values.tensor(value.name)
        value.shape = ir.Shape(values.shape)
        value.type = ir.TensorType(value.const_value.dtype)


def _leave(graph: ir.Graph, source: ir.Value, result: ir.Value) -> bool:
    """Let `source` leave the graph in place of `result`, under its name; whether it can."""
    maker = source.producer()
    where = [i for i, value in enumerate(graph.outputs) if value is result]
    if maker is None or maker.graph is not graph or source.is_graph_output() or len(where) != 1:
        return False
    name, source_type, shape = result.name, result.type, result.shape
    result.name = None
    source.name, source.type, source.shape = name, source_type, shape
    source.doc_string = result.doc_string
    source.metadata_props.clear()
    source.metadata_props.update(result.metadata_props)
    source.meta.update(result.meta)
    graph.outputs[where[0]] = source
    return True
