"""Write a new ExportedProgram in which a plan has been carried out.

The functional graph is copied and edited; tensors that stay are shared with the original program,
new ones become parameters. What nothing reads any more is left out, what nothing ever read stays.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.utils._pytree import tree_leaves

from bnfold.algebra.affine import to_batchnorm
from bnfold.algebra.graph import Affine, Conv, Identity, Linear, Node, params
from bnfold.algebra.plan import Plan, Role
from bnfold.algebra.rounding import Native, Weights, rounded
from bnfold.formats.pytorch import aten, recurrent
from bnfold.formats.pytorch.identifiers import Identifiers
from bnfold.formats.pytorch.program_making import Making
from bnfold.formats.pytorch.program_names import STORED, copied_graph
from bnfold.formats.pytorch.program_reader import ProgramReader, value_name
from bnfold.naming import unique
from bnfold.runtimes.torch_eager import to_tensor


class ProgramWriter:
    """Carries a plan out on a copy of a functional program; tensors are shared, not copied."""

    def __init__(self, program: ExportedProgram, names: Identifiers) -> None:
        self._program = program
        self._identifiers = names
        self._reader = ProgramReader(program, names)
        self._reader.graph()
        self._graph, copied = copied_graph(program.graph)
        self._nodes = {old.name: new for old, new in copied.items()}
        self._specs = list(program.graph_signature.input_specs)
        self._state = dict(program.state_dict)
        self._constants = dict(program.constants)
        self._made: dict[str, torch.fx.Node] = {}
        self._equal: Mapping[Role, Role] = {}
        self._written: dict[Role, torch.fx.Node] = {}

    def write(self, plan: Plan, weights: Weights) -> ExportedProgram:
        self._equal = plan.equal
        self._make(plan, weights)
        for _, after in plan.changed():
            fx_node = self._nodes[self._reader.native[after.name]]
            if isinstance(after.op, Conv | Linear) and self._is_product(fx_node):
                self._write_layer(fx_node, after, weights[after.name])
            elif after.name in weights:
                for role, array in weights[after.name].items():
                    self._replace(fx_node, after, role, to_tensor(array))
            elif isinstance(after.op, Affine):
                self._rewrite_affine(fx_node, after)
        passed = passes(plan)
        for node in plan.dissolved():
            fx_node = self._nodes[self._reader.native[node.name]]
            if fx_node.target is not operator.getitem:  # that goes with the call that it reads
                self._dissolve(fx_node, passed)
        return self._finished()

    def _make(self, plan: Plan, weights: Weights) -> None:
        """Add the calls that are made anew."""
        making = Making(self._graph, plan, weights, self._stored_under)
        calls = {name: self._nodes[native] for name, native in self._reader.native.items()}
        old = [call for call in self._program.graph.nodes if call.name in self._nodes]
        values = {value_name(call): self._nodes[call.name] for call in old}
        for node in plan.made_nodes():
            (name,) = node.outputs
            inputs = [self._made.get(value) or values[value] for value in node.inputs]
            call = making.call(node, inputs, calls, calls[plan.made[node.name].at])
            self._made[name] = call
            if name in values:
                values[name].replace_all_uses_with(call)

    def _stored_under(self, name: str, tensor: torch.Tensor) -> torch.fx.Node:
        """A new stored parameter, called as near to `name` as a path can be."""
        return self._stored(re.sub(r"[^\w.]", "_", self._identifiers.identifier(name)), tensor)

    def _replace(self, fx_node: torch.fx.Node, node: Node, role: str, tensor: torch.Tensor) -> None:
        """Pass `tensor` for the argument `role`, as the parameter of that name if it is free."""
        place = self._reader.entries.get(node.name, {}).get(role)
        argument = role if place is None else recurrent.LIST
        old = self._argument(fx_node, argument)
        entries = [] if place is None else list(old)
        old = old if place is None else entries[place]
        key = self._equal.get((node.name, role))
        written = None if key is None else self._written.get(key)
        if isinstance(old, torch.fx.Node) and old.op == "placeholder" and self._is_free(old, role):
            if old is not written:
                self._overwrite(old, self._parameter(written, tensor))
                self._remember(key, old)
            return
        placeholder = written or self._stored(f"{self._stem(node)}.{role}", tensor)
        self._remember(key, placeholder)
        new: Any = placeholder
        if place is not None:
            new = [*entries[:place], placeholder, *entries[place + 1 :]]
        self._pass(fx_node, argument, new)

    def _pass(self, fx_node: torch.fx.Node, argument: str, new: Any) -> None:
        """Give a call another argument."""
        if argument in fx_node.kwargs:
            fx_node.kwargs = {**fx_node.kwargs, argument: new}
            return
        index = self._index(fx_node, argument)
        padding = [None] * (index + 1 - len(fx_node.args))
        arguments = [*fx_node.args, *padding]
        arguments[index] = new
        fx_node.args = tuple(arguments)

    def _is_free(self, placeholder: torch.fx.Node, role: str) -> bool:
        """Whether all that read it read it as `role`, and get the same new numbers."""
        if any(tree_leaves((u.args, u.kwargs)).count(placeholder) > 1 for u in placeholder.users):
            return False
        if len(placeholder.users) == 1:
            return True
        neutral = {native: name for name, native in self._reader.native.items()}
        names = [neutral.get(user.name) for user in placeholder.users]
        firsts = {None if name is None else self._equal.get((name, role)) for name in names}
        return len(firsts) == 1 and None not in firsts

    def _parameter(self, written: torch.fx.Node | None, tensor: torch.Tensor) -> torch.Tensor:
        """The parameter of an equal one that has been written, or a new one."""
        target = None if written is None else self._spec(written).target
        new = torch.nn.Parameter(tensor, requires_grad=False)
        return new if target is None else self._state[target]

    def _overwrite(self, placeholder: torch.fx.Node, parameter: torch.Tensor) -> None:
        spec = self._spec(placeholder)
        assert spec.target is not None
        self._constants.pop(spec.target, None)
        self._state[spec.target] = parameter
        position = self._specs.index(spec)
        self._specs[position] = replace(spec, kind=InputKind.PARAMETER, persistent=None)

    def _remember(self, key: Role | None, placeholder: torch.fx.Node) -> None:
        if key is not None:
            self._written.setdefault(key, placeholder)

    @staticmethod
    def _is_product(fx_node: torch.fx.Node) -> bool:
        assert isinstance(fx_node.target, torch._ops.OpOverload)
        return all(argument.name != "weight" for argument in fx_node.target._schema.arguments)

    def _write_layer(self, fx_node: torch.fx.Node, node: Node, new: Mapping[str, Native]) -> None:
        """A matrix product becomes a layer, which has room for a bias."""
        arguments = [self._source(fx_node)]
        for role, param in params(node.op):
            key = self._equal.get((node.name, role))
            written = None if key is None else self._written.get(key)
            if written is None:
                array = new[role] if role in new else rounded(param.load(), param.dtype)
                written = self._stored(f"{self._stem(node)}.{role}", to_tensor(array))
            self._remember(key, written)
            arguments.append(written)
        fx_node.target = getattr(torch.ops.aten, aten.layer_name(node.op)).default
        fx_node.args, fx_node.kwargs = tuple(arguments), {}

    def _argument(self, fx_node: torch.fx.Node, role: str) -> Any:
        index = self._index(fx_node, role)
        return fx_node.args[index] if index < len(fx_node.args) else fx_node.kwargs.get(role)

    def _stem(self, node: Node) -> str:
        """What to call the parameters of a node: like its module, if it has one."""
        weight = self._reader.arguments[node.name].get("weight")
        if weight is not None and weight.name.endswith(".weight"):
            return self._identifiers.identifier(weight.name.removesuffix(".weight"))
        return re.sub(r"[^\w.]", "_", self._identifiers.identifier(node.name))

    def _stored(self, name: str, tensor: torch.Tensor) -> torch.fx.Node:
        """A new stored parameter; its placeholder goes before the first input of the user."""
        taken = {*self._state, *self._program.state_dict, *self._program.constants}
        found = unique(name, taken, "_")
        at = next(
            (i for i, spec in enumerate(self._specs) if spec.kind is InputKind.USER_INPUT),
            len(self._specs),
        )
        placeholders = [n for n in self._graph.nodes if n.op == "placeholder"]
        anchor = placeholders[at] if at < len(placeholders) else next(iter(self._graph.nodes))
        with self._graph.inserting_before(anchor):
            made = self._graph.placeholder(re.sub(r"\W", "_", f"p_{found}", flags=re.ASCII))
        made.meta["val"] = self._fake(tensor)
        self._state[found] = torch.nn.Parameter(tensor, requires_grad=False)
        self._specs.insert(
            at, InputSpec(InputKind.PARAMETER, TensorArgument(made.name), found, None)
        )
        return made

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        for node in self._graph.nodes:
            mode = getattr(node.meta.get("val"), "fake_mode", None)
            if mode is not None:
                fake: torch.Tensor = mode.from_tensor(tensor, static_shapes=True)
                return fake
        return tensor

    def _rewrite_affine(self, fx_node: torch.fx.Node, node: Node) -> None:
        """Give an affine that stays its new numbers."""
        assert isinstance(node.op, Affine)
        affine = node.op.affine
        if node.op.batchnorm:
            arguments = self._reader.arguments[node.name]
            mean, var = (arguments[role].tensor for role in ("running_mean", "running_var"))
            eps = float(self._argument(fx_node, "eps"))
            made = to_batchnorm(affine, aten.float64(mean), aten.float64(var), eps)
            for role, numbers in zip(("weight", "bias"), made, strict=True):
                self._replace(fx_node, node, role, torch.from_numpy(numbers).to(mean.dtype))
            return
        source = self._source(fx_node)
        like = source.meta["val"]
        scaling = node.op.holds == "scale"
        numbers = affine.scale if scaling else affine.shift
        shape = [-1 if axis == affine.axis else 1 for axis in range(like.ndim)]
        lined = torch.from_numpy(numbers.reshape(shape if affine.axis is not None else ()))
        constant = self._stored(f"{self._stem(node)}.value", lined.to(like.dtype))
        fx_node.target = torch.ops.aten.mul.Tensor if scaling else torch.ops.aten.add.Tensor
        fx_node.args, fx_node.kwargs = (source, constant), {}

    def _dissolve(self, fx_node: torch.fx.Node, passed: Mapping[str, str]) -> None:
        """Let the input that passes on the same value as the node now does be read instead."""
        end = origin(value_name(fx_node), passed)
        source = self._made.get(end) or next(
            a for a in fx_node.all_input_nodes if origin(value_name(a), passed) == end
        )
        for user in list(fx_node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(source)
                self._graph.erase_node(user)
        fx_node.replace_all_uses_with(source)
        self._graph.erase_node(fx_node)

    def _source(self, fx_node: torch.fx.Node) -> torch.fx.Node:
        """The one computed input of an affine."""
        constant = self._reader.constants
        (source,) = (a for a in fx_node.all_input_nodes if a.name not in constant)
        return source

    def _spec(self, placeholder: torch.fx.Node) -> InputSpec:
        spec: InputSpec = next(
            s for s in self._specs if getattr(s.arg, "name", None) == placeholder.name
        )
        return spec

    @staticmethod
    def _index(fx_node: torch.fx.Node, role: str) -> int:
        target = fx_node.target
        assert isinstance(target, torch._ops.OpOverload)
        return [argument.name for argument in target._schema.arguments].index(role)

    def _finished(self) -> ExportedProgram:
        self._graph.eliminate_dead_code()
        self._drop_unread()
        kept = {spec.target for spec in self._specs}
        old = self._program.graph_signature
        signature = type(old)(list(self._specs), list(_renamed(old.output_specs, self._graph)))
        root = torch.fx.GraphModule(self._program.graph_module, self._graph)
        root.meta.update(self._program.graph_module.meta)
        return ExportedProgram(
            root,
            self._graph,
            signature,
            {name: tensor for name, tensor in self._state.items() if name in kept},
            self._program.range_constraints,
            self._program.module_call_graph,
            self._program.example_inputs,
            {name: entry for name, entry in self._constants.items() if name in kept},
            verifiers=self._program.verifiers,
        )

    def _drop_unread(self) -> None:
        """Leave out the stored tensors that were read once, and idle ones of the same modules."""
        idle = {n.name for n in self._program.graph.nodes if n.op == "placeholder" and not n.users}
        unread = [n for n in self._graph.nodes if n.op == "placeholder" and not n.users]
        stored = [(n, spec) for n in unread if (spec := self._spec(n)).kind in STORED]
        emptied = {_module_of(spec) for node, spec in stored if node.name not in idle}
        for node, spec in stored:
            if _module_of(spec) in emptied:
                self._specs.remove(spec)
                self._graph.erase_node(node)


def _module_of(spec: InputSpec) -> str:
    return str(spec.target).rpartition(".")[0]


def passes(plan: Plan) -> dict[str, str]:
    """Every value that another one is read for now, or that nothing is done to."""
    passed = dict(plan.moved)
    for node in plan.before.nodes:
        if isinstance(node.op, Identity):
            passed.setdefault(node.outputs[0], node.inputs[0])
    return passed


def origin(value: str, passed: Mapping[str, str]) -> str:
    """The value that `value` is, after all that is dissolved or does nothing to it."""
    while value in passed:
        value = passed[value]
    return value


def _renamed(specs: Sequence[Any], graph: torch.fx.Graph) -> Iterator[Any]:
    """The output specs with the names of what the graph now returns."""
    returned = graph.output_node().args[0]
    assert isinstance(returned, list | tuple)
    for spec, value in zip(specs, returned, strict=True):
        named = isinstance(value, torch.fx.Node) and isinstance(spec.arg, TensorArgument)
        yield replace(spec, arg=TensorArgument(value.name)) if named else spec
