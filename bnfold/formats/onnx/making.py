"""Makes the ONNX nodes of maps that are carried to other places, and says which can be made anew.

A layer is made from its op. Everything else is a copy of the node that it was; where that is told
the sizes of its result, as a Reshape is, the entry of the channels is replaced.

Free are   MAIN    nodes of the main graph, not of bodies, that are one node of the neutral graph
           KNOWN   whose operator says nothing of the channels but in its sizes
           UNSEEN  whose sizes nothing reads but as constants, which are written as such: a Shape
                   would tell another number of channels
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from bnfold.algebra.graph import Add, Concat, Conv, Linear, Node, params
from bnfold.algebra.plan import Plan
from bnfold.algebra.rounding import Weights
from bnfold.formats.onnx.later import Later
from bnfold.formats.onnx.reader import Reading

FIRST_OPSET = 11
"""From here on sizes are inputs of all operators that have them, and a sum is broadcast."""

LAYERS = frozenset({"Conv", "Gemm", "MatMul", "Einsum", "Concat"})
COPIED = frozenset(
    {
        *("Identity", "Dropout", "Cast", "Transpose", "Squeeze", "Unsqueeze", "Flatten"),
        *("Slice", "Gather", "Tile", "AveragePool", "GlobalAveragePool", "ReduceMean"),
        *("Reshape", "Resize", "Expand"),
    }
)
SIZES = {"Reshape": 1, "Expand": 1, "Resize": 3}
"""Which input has the sizes of the result."""


def free_nodes(reading: Reading) -> frozenset[str]:
    """The nodes of the neutral graph that can be made anew for other numbers of channels."""
    if reading.values.opset < FIRST_OPSET:
        return frozenset()
    main = reading.values.model.graph
    parts = Counter(address.node for address in reading.addresses.values())
    return frozenset(
        name
        for name, address in reading.addresses.items()
        if parts[address.node] == 1
        and address.node.graph is main
        and reading.values.is_standard(address.node)
        and address.node.op_type in LAYERS | COPIED
        and all(map(reading.values.is_constant, measures(address.nodes[-1])))
    )


def measures(node: ir.Node) -> list[ir.Value]:
    """What Shape and Size make of the results of a node."""
    readers = (reader for value in node.outputs for reader, _ in value.uses())
    return [reader.outputs[0] for reader in readers if reader.op_type in ("Shape", "Size")]


class Making:
    """Makes the new nodes of a plan. `constant` stores numbers in the model under a name.

    `twin` has the native nodes of the model that is written by those that were read.
    """

    def __init__(
        self,
        reading: Reading,
        plan: Plan,
        weights: Weights,
        twin: Mapping[ir.Node, ir.Node],
        constant: Callable[[str, Later], ir.Value],
    ) -> None:
        self.reading = reading
        self.plan = plan
        self.weights = weights
        self.twin = twin
        self.constant = constant
        self.before = {node.name: node for node in plan.before.nodes}

    def natives(self, node: Node, inputs: list[ir.Value]) -> list[ir.Node]:
        """The native nodes of a new node, of which the last makes its result."""
        like = self.plan.made[node.name].like
        if like is not None:
            return self._copy(node, self.before[like], inputs[0])
        match node.op:
            case Conv():
                return [self._conv(node, inputs[0])]
            case Linear():
                return self._product(node, inputs[0])
            case Concat(axis=axis):
                return [ir.node("Concat", inputs, {"axis": axis}, name=node.name)]
            case Add():
                return [ir.node("Add", inputs, name=node.name)]
        raise AssertionError(f"{node.name} can only be copied")

    def _stored(self, node: Node) -> dict[str, Later]:
        """The parameters of a layer, computed when they are written."""
        loaders = self.weights[node.name]
        return {
            role: Later(param.shape, param.dtype, partial(loaders.__getitem__, role))
            for role, param in params(node.op)
        }

    def _conv(self, node: Node, data: ir.Value) -> ir.Node:
        op = node.op
        assert isinstance(op, Conv)
        attributes: dict[str, int | Sequence[int]] = {
            "kernel_shape": op.kernel,
            "strides": op.stride,
            "dilations": op.dilation,
            "pads": [lo for lo, _ in op.pads] + [hi for _, hi in op.pads],
            "group": op.groups,
        }
        stored = self._stored(node).items()
        given = [self.constant(f"{node.name}.{role}", values) for role, values in stored]
        return ir.node("Conv", [data, *given], attributes, name=node.name)

    def _product(self, node: Node, data: ir.Value) -> list[ir.Node]:
        """A Gemm of two axes, else a MatMul with an Add for the bias."""
        stored, name = self._stored(node), node.name
        shape = self.plan.after.shapes[node.inputs[0]]
        if shape is not None and len(shape) == 2:
            given = [self.constant(f"{name}.{role}", values) for role, values in stored.items()]
            return [ir.node("Gemm", [data, *given], {"transB": 1}, name=name)]
        weight = self.constant(f"{name}.weight", stored["weight"].flipped)
        product = ir.node("MatMul", [data, weight], name=name)
        if "bias" not in stored:
            return [product]
        bias = self.constant(f"{name}.bias", stored["bias"])
        return [product, ir.node("Add", [product.outputs[0], bias], name=f"{name}.add_bias")]

    def _copy(self, node: Node, old: Node, data: ir.Value) -> list[ir.Node]:
        """The operator that `old` is, on other data."""
        address = self.reading.addresses[old.name]
        native = self.twin[address.node]
        inputs = [data if i == address.data else v for i, v in enumerate(native.inputs)]
        more = self._resized(node, old, native, inputs)
        copy = ir.node(native.op_type, inputs, name=node.name)
        for attribute in native.attributes.values():
            copy.attributes.add(attribute)
        return [*more, copy]

    def _resized(
        self, node: Node, old: Node, native: ir.Node, inputs: list[ir.Value | None]
    ) -> list[ir.Node]:
        """Give a copy the new sizes of its result, if it is told them; nodes that compute these."""
        index = SIZES.get(native.op_type)
        sizes = inputs[index] if index is not None and index < len(inputs) else None
        before = self.plan.before.shapes[old.outputs[0]] or ()
        after = self.plan.after.shapes[node.outputs[0]] or ()
        changed = [i for i, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1]
        if index is None or sizes is None or not changed or "axes" in native.attributes:
            return []
        (axis,) = changed
        size = np.array([after[axis]], np.int64)
        address = self.reading.addresses[old.name]
        source = address.node.inputs[index]
        known = None if source is None else self.reading.values.array(source)
        if known is not None:
            entries = known.copy()
            entries[axis - len(before)] = size[0]
            inputs[index] = self.constant(f"{node.name}.sizes", Later.of(entries))
            return []
        return self._replaced(node.name, inputs, index, axis, size)

    def _replaced(
        self, name: str, inputs: list[ir.Value | None], index: int, axis: int, size: np.ndarray
    ) -> list[ir.Node]:
        """Sizes that are computed, with another entry for one axis."""
        sizes = inputs[index]

        def bound(what: str, number: int) -> ir.Value:
            return self.constant(f"{name}.{what}", Later.of(np.array([number], np.int64)))

        start, here, end = bound("first", 0), bound("axis", axis), bound("next", axis + 1)
        head = ir.node("Slice", [sizes, start, here], name=f"{name}.head")
        tail = ir.node("Slice", [sizes, end, bound("last", 2**31 - 1)], name=f"{name}.tail")
        entry = self.constant(f"{name}.channels", Later.of(size))
        parts = [head.outputs[0], entry, tail.outputs[0]]
        joined = ir.node("Concat", parts, {"axis": 0}, name=f"{name}.sizes")
        inputs[index] = joined.outputs[0]
        return [head, tail, joined]
