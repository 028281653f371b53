"""Carry out a plan on a frozen TorchScript graph.

Conv, Linear, .. a new constant in place of the weight or bias argument
kept batch_norm  gamma' = scale * sqrt(var + eps), beta' = shift + mean * scale
kept mul, div    aten::mul by a constant;   kept add, sub   aten::add of a constant
dissolved        its input in place of its output; through aten::clone where either is written
                 to, so that the write stays where it was
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bnfold.algebra.affine import ChannelAffine, to_batchnorm
from bnfold.algebra.graph import Affine, Conv, Layer, Linear, Node, Shape, params
from bnfold.algebra.plan import Plan, Role
from bnfold.algebra.rounding import Native, Weights, rounded
from bnfold.errors import BnfoldError
from bnfold.formats.pytorch import recurrent
from bnfold.formats.pytorch.aten import float64, layer_name
from bnfold.formats.pytorch.tensors import dtype_of
from bnfold.formats.torchscript.memory import Memory
from bnfold.formats.torchscript.nodes import argument_names, operator_name, read_by, walk
from bnfold.formats.torchscript.reader import GraphReader
from bnfold.runtimes.torch_eager import to_tensor


class GraphEditor:
    """Edits `graph`, a copy of the one that `reader` has read."""

    def __init__(self, graph: Any, reader: GraphReader) -> None:
        self._graph = graph
        self._reader = reader
        self._memory = Memory(graph)
        nodes = list(walk(graph))
        self._equal: Mapping[Role, Role] = {}
        self._tensors: dict[Role, torch.Tensor] = {}
        self._native = {name: nodes[i] for name, i in reader.addresses.items() if i < len(nodes)}

    def carry_out(self, plan: Plan, weights: Weights) -> None:
        self._equal = plan.equal
        for _, after in plan.changed():
            if isinstance(after.op, Conv | Linear) and self._is_product(after):
                self._write_layer(after, weights[after.name])
            elif isinstance(after.op, Layer):
                for role, array in weights[after.name].items():
                    self._replace(self._find(after), role, self._tensor(after, role, array))
            elif isinstance(after.op, Affine):
                self._rewrite(after, after.op.affine, plan.before.shapes.get(after.inputs[0]))
        for node in plan.dissolved():
            self._dissolve(node, plan.moved)
        torch._C._jit_pass_dce(self._graph)
        self._graph.lint()

    def _find(self, node: Node) -> Any:
        """The native node, which must make what the neutral one makes."""
        native = self._native.get(node.name)
        found = () if native is None else tuple(v.debugName() for v in native.outputs())
        if found[: len(node.outputs)] != node.outputs:
            raise BnfoldError(
                f"{node.name} is not where it was read: the frozen graph has {found} in its place",
                "this is a bug in bnfold: please report it with the model",
            )
        return native

    def _computed(self, native: Any) -> list[Any]:
        """What the node reads that is not fixed."""
        return [v for v in read_by(native) if v.debugName() not in self._reader.constants]

    def _replace(self, native: Any, role: str, tensor: torch.Tensor) -> None:
        """Pass `tensor` for the argument called `role`, or for that entry of a list."""
        names = argument_names(native)
        if operator_name(native) in recurrent.OPERATORS:
            self._replace_entry(native, names.index(recurrent.LIST), role, tensor)
            return
        if role not in names:
            raise BnfoldError(
                f"{native.kind()} has no argument {role!r} to put new numbers into",
                "this is a bug in bnfold: please report it with the model",
            )
        self._graph.setInsertPoint(native)
        native.replaceInput(names.index(role), self._graph.insertConstant(tensor))

    def _replace_entry(self, native: Any, index: int, role: str, tensor: torch.Tensor) -> None:
        """Another list: the old one may be read elsewhere."""
        given = dict(zip(argument_names(native), native.inputs(), strict=True))
        biased, both = (given[name].toIValue() for name in ("has_biases", "bidirectional"))
        held = given[recurrent.LIST]
        self._graph.setInsertPoint(native)
        fixed = held.toIValue() if held.node().kind() == "prim::Constant" else ()
        entries = list(map(self._graph.insertConstant, fixed)) or list(held.node().inputs())
        depth = given["num_layers"].toIValue()
        place = recurrent.entries(len(entries), depth, biased=biased, both=both)[role]
        entries[place] = self._graph.insertConstant(tensor)
        made = self._graph.create("prim::ListConstruct", entries, 1)
        made.output().setType(held.type())
        self._graph.insertNode(made)
        native.replaceInput(index, made.output())

    def _tensor(self, node: Node, role: str, array: Native) -> torch.Tensor:
        """The new numbers of a parameter; those that are equal are one tensor, saved once."""
        first = self._equal.get((node.name, role))
        tensor = self._tensors.get(first, to_tensor(array)) if first else to_tensor(array)
        if first:
            self._tensors[first] = tensor
        return tensor

    def _is_product(self, node: Node) -> bool:
        return "weight" not in argument_names(self._find(node))

    def _write_layer(self, node: Node, new: Mapping[str, Native]) -> None:
        """A matrix product becomes a layer, which has room for a bias."""
        native = self._find(node)
        self._graph.setInsertPoint(native)
        arguments = self._computed(native)
        for role, param in params(node.op):
            array = new[role] if role in new else rounded(param.load(), param.dtype)
            arguments.append(self._graph.insertConstant(self._tensor(node, role, array)))
        self._stand_in(native, self._graph.insert(f"aten::{layer_name(node.op)}", arguments))

    def _rewrite(self, node: Node, affine: ChannelAffine, shape: Shape | None) -> None:
        """Give an affine that stays its new numbers."""
        native = self._find(node)
        if node.is_batchnorm:
            self._rewrite_batch_norm(native, affine)
            return
        assert isinstance(node.op, Affine)
        scales = node.op.holds == "scale"
        numbers = affine.scale if scales else affine.shift
        if affine.axis is not None:
            assert shape is not None
            numbers = numbers.reshape(-1, *[1] * (len(shape) - affine.axis - 1))
        else:
            numbers = numbers.reshape(())
        tensor = to_tensor(rounded(numbers, self._reader.dtype(node.outputs[0])))
        self._graph.setInsertPoint(native)
        (source,) = self._computed(native)
        operands = [source, self._graph.insertConstant(tensor)]
        made = self._graph.insert("aten::mul" if scales else "aten::add", operands)
        self._stand_in(native, made)

    def _rewrite_batch_norm(self, native: Any, affine: ChannelAffine) -> None:
        given = dict(zip(argument_names(native), native.inputs(), strict=True))
        mean, var = (given[role].toIValue() for role in ("running_mean", "running_var"))
        eps = given["eps"].toIValue()
        made = to_batchnorm(affine, float64(mean), float64(var), eps)
        for role, numbers in zip(("weight", "bias"), made, strict=True):
            self._replace(native, role, to_tensor(rounded(numbers, dtype_of(mean))))

    def _dissolve(self, node: Node, moved: Mapping[str, str]) -> None:
        """Let the input that ends up where the output does be read in its place."""
        native = self._find(node)
        end = moved[node.outputs[0]]
        inputs = zip(node.inputs, self._computed(native), strict=True)
        source = next(value for name, value in inputs if moved.get(name, name) == end)
        if self._memory.must_copy(source, native):
            self._graph.setInsertPoint(native)
            source = self._graph.insert("aten::clone", [source])
        self._stand_in(native, source)

    def _stand_in(self, native: Any, value: Any) -> None:
        """Let `value` be read wherever the output of `native` was, and drop `native`."""
        self._memory.substitute(native.output(), value)
        native.output().replaceAllUsesWith(value)
        native.destroy()
