"""Read the ATen graph of a functional ExportedProgram.

Operators whose arguments are all constant are computed while reading: a weight behind
`weight_norm`, or a scale made of buffers, is then a constant like any other.

What hides in a program is made explicit: a value that only Python code reads (`item()`) gets an
Opaque reader, and the BatchNorms in the branches of control flow are listed as kept.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch._export.verifier import TrainingIRVerifier
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from bnfold.algebra.graph import Graph, Node, Opaque, Recurrent, Shape
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.archive import MOST
from bnfold.formats.pytorch import aten, recurrent
from bnfold.formats.pytorch.calls import arguments_of, name_of
from bnfold.formats.pytorch.identifiers import AS_THEY_ARE, Identifiers
from bnfold.formats.pytorch.program_names import STORED
from bnfold.formats.pytorch.tensors import dtype_of

_METADATA = ("aten::sym_", "aten::_assert")
"""Operators that look at sizes and types only."""


class ProgramReader:
    """Reads one functional program, and remembers where everything came from.

    `names` lead from the program's paths to those of the model that it was made of.
    """

    def __init__(self, program: ExportedProgram, names: Identifiers = AS_THEY_ARE) -> None:
        self._program = program
        self._identifiers = names
        self._shapes: dict[str, Shape | None] = {}
        self._dtypes: dict[str, str] = {}
        self._parts: set[str] = set()
        self._names: dict[str, int] = {}
        stored = stored_tensors(program, names)
        self._stored_bytes = sum(tensor.nbytes for _, tensor in stored.values())
        self._facts = aten.Facts(self._shapes, self._dtypes)
        self.constants: dict[str, aten.Stored] = {}
        """fx node name -> what is fixed: stored, or computed while reading."""
        self.native: dict[str, str] = {}
        """neutral node name -> fx node name."""
        self.owners: dict[str, str] = {}
        """neutral node name -> path of the innermost module that made the call."""
        self.scopes: dict[str, str] = {}
        """fx node name -> path of the innermost module that made the call."""
        self.arguments: dict[str, dict[str, aten.Stored]] = {}
        """neutral node name -> schema argument -> the constant passed for it."""
        self.entries: dict[str, dict[str, int]] = {}
        """neutral node name -> role -> its place in a list, where the operator takes one."""
        self.users: dict[str, list[str]] = {}
        """name of a stored tensor -> names of the fx nodes that read it."""

    @property
    def program(self) -> ExportedProgram:
        return self._program

    @property
    def names(self) -> Identifiers:
        """The way from the program's paths to those of the model that it was made of."""
        return self._identifiers

    @property
    def traced(self) -> bool:
        """Whether torch traced the program again, after torch.export: its operators differ then."""
        return not any(issubclass(each, TrainingIRVerifier) for each in self._program.verifiers)

    def graph(self) -> Graph:
        inputs: list[str] = []
        nodes: list[Node] = []
        outputs: list[str] = []
        stored = stored_tensors(self._program, self._identifiers)
        for fx_node in self._program.graph.nodes:
            self._note(fx_node)
            if fx_node.op == "placeholder":
                if fx_node.name in stored:
                    constant = self.constants[fx_node.name] = aten.Stored.of(*stored[fx_node.name])
                    users = self.users.setdefault(constant.name, [])
                    users += [user.name for user in fx_node.users]
                elif tensor_of(fx_node) is not None:
                    inputs.append(fx_node.name)
            elif fx_node.op == "output":
                given = fx_node.all_input_nodes
                outputs = [value_name(a) for a in given if tensor_of(a) is not None]
            elif tensor_of(fx_node) is None:
                nodes += self._scalar(fx_node)
            elif fx_node.name in self._parts or self._computed(fx_node):
                continue
            else:
                nodes.extend(self._inner_batchnorms(fx_node))
                nodes.extend(self._call_nodes(fx_node))
        made = {*inputs, *(value for node in nodes for value in node.outputs)}
        returned = tuple(dict.fromkeys(name for name in outputs if name in made))
        return Graph(tuple(inputs), tuple(nodes), returned, self._shapes)

    def _note(self, fx_node: torch.fx.Node) -> None:
        tensor = tensor_of(fx_node)
        if tensor is not None:
            self._shapes[value_name(fx_node)] = shape_of(tensor)
            self._dtypes[value_name(fx_node)] = dtype_of(tensor)
        scope = self._scope_of(fx_node)
        if scope is not None:
            self.scopes[fx_node.name] = scope

    def _computed(self, fx_node: torch.fx.Node) -> bool:
        """Compute the node now if all it reads is constant, and the result no larger than that."""
        target = fx_node.target
        if fx_node.name in self.constants:
            return True
        if not isinstance(target, torch._ops.OpOverload):
            return False
        random = torch.Tag.nondeterministic_seeded in target.tags
        if (random and not _is_idle_dropout(fx_node)) or target._schema.is_mutable:
            return False
        if any(a.name not in self.constants for a in fx_node.all_input_nodes):
            return False
        if bytes_of(fx_node) > MOST + 2 * self._stored_bytes:
            return False
        arguments = torch.fx.map_arg(
            (fx_node.args, fx_node.kwargs), lambda node: self.constants[node.name].tensor
        )
        with torch.no_grad():
            result = target(*arguments[0], **arguments[1])
        if isinstance(result, torch.Tensor):
            self.constants[fx_node.name] = aten.Stored.of(fx_node.name, result)
            return True
        parts = [user for user in fx_node.users if user.target is operator.getitem]
        if len(parts) != len(fx_node.users):
            return False
        for part in parts:
            tensor = result[part.args[1]]
            self.constants[part.name] = aten.Stored.of(part.name, tensor)
        return True

    def _scalar(self, fx_node: torch.fx.Node) -> Iterator[Node]:
        """A call that turns tensors into something else: it reads them, nothing follows it."""
        target = fx_node.target
        schema = target._schema.name if isinstance(target, torch._ops.OpOverload) else ""
        read = [a for a in fx_node.all_input_nodes if a.name not in self.constants]
        values = tuple(value_name(a) for a in read if value_name(a) in self._shapes)
        if values and not schema.startswith(_METADATA):
            yield Node(self._name(fx_node), schema or str(target), Opaque(), values, ())

    def _inner_batchnorms(self, fx_node: torch.fx.Node) -> Iterator[Node]:
        """The BatchNorms in the bodies that a control-flow operator runs, as kept sites."""
        for body in fx_node.all_input_nodes:
            inner = getattr(self._program.graph_module, str(body.target), None)
            if body.op != "get_attr" or not isinstance(inner, torch.fx.GraphModule):
                continue
            graphs = [m.graph for m in inner.modules() if isinstance(m, torch.fx.GraphModule)]
            for call in (n for graph in graphs for n in graph.nodes):
                if "batch_norm" in str(call.target):
                    name = self._name(call)
                    why = f"{name}: it lies in a branch or loop of {fx_node.name}"
                    refusal = Refusal(Reason.NOT_LINEAR, why, name)
                    yield Node(name, "batch_norm", Opaque(refusal, batchnorm=True), (), ())

    def _call_nodes(self, fx_node: torch.fx.Node) -> tuple[Node, ...]:
        call = self._call(fx_node)
        nodes = aten.translate(call)
        constants = {r: a for r, a in call.arguments.items() if isinstance(a, aten.Stored)}
        if isinstance(nodes[-1].op, Recurrent):
            held = call[recurrent.LIST]
            entries = self.entries[nodes[-1].name] = recurrent.places(call)
            constants |= {role: held[place] for role, place in entries.items()}
        for node in nodes:
            self.native[node.name] = fx_node.name
            self.arguments[node.name] = constants
            if fx_node.name in self.scopes:
                self.owners[node.name] = self.scopes[fx_node.name]
        return nodes

    def _call(self, fx_node: torch.fx.Node) -> aten.Call:
        target = fx_node.target
        arguments: dict[str, Any] = {}
        if target is operator.getitem:
            source, index = fx_node.args
            op = "identity" if index == 0 else "output"
            arguments["input"] = self._argument(source)
        elif isinstance(target, torch._ops.OpOverload):
            op = name_of(target)
            given = arguments_of(target, fx_node.args, fx_node.kwargs)
            arguments = {name: self._argument(value) for name, value in given.items()}
        else:
            op = str(target)
            for i, source in enumerate(fx_node.all_input_nodes):
                arguments[str(i)] = self._argument(source)
        outputs = self._entries(fx_node) if op in aten.SPLITS else (value_name(fx_node),)
        return aten.Call(self._name(fx_node), op, arguments, outputs, self._facts)

    def _entries(self, fx_node: torch.fx.Node) -> tuple[str, ...]:
        """The names of a list's entries: of the calls that take them out, if each does so once."""
        taken = {user.args[1]: user.name for user in fx_node.users}
        only = all(user.target is operator.getitem for user in fx_node.users)
        if not only or len(taken) != len(fx_node.users):
            return (fx_node.name,)
        self._parts.update(taken.values())
        count = len(fx_node.meta["val"])
        return tuple(f"{fx_node.name}[{i}]" if i in taken else "" for i in range(count))

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            if value.name in self.constants:
                return self.constants[value.name]
            return value if tensor_of(value) is None else self._facts.tensor(value_name(value))
        if isinstance(value, list | tuple):
            return [self._argument(entry) for entry in value]
        return value

    def _name(self, fx_node: torch.fx.Node) -> str:
        """The path of the module, if the call is its own; otherwise the name in the graph."""
        owner = self._scope_of(fx_node)
        stem = owner if owner and fx_node.target is not operator.getitem else value_name(fx_node)
        seen = self._names[stem] = self._names.get(stem, 0) + 1
        return stem if seen == 1 else f"{stem}#{seen}"

    def _scope_of(self, fx_node: torch.fx.Node) -> str | None:
        path = scope_of(fx_node)
        return None if path is None else self._identifiers.original(path)


def stored_tensors(
    program: ExportedProgram, names: Identifiers
) -> dict[str, tuple[str, torch.Tensor]]:
    """Placeholder name -> (name, tensor) of what the program stores and never writes to."""
    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    tensors: Mapping[str, Any] = {**program.constants, **program.state_dict}
    return {
        spec.arg.name: (names.original(spec.target), tensors[spec.target])
        for spec in signature.input_specs
        if spec.kind in STORED and spec.target is not None and spec.target not in written
    }


def value_name(fx_node: torch.fx.Node) -> str:
    """What the neutral graph calls the value of a node: "split[1]" for what is taken out of it."""
    if fx_node.target is not operator.getitem:
        return fx_node.name
    source, index = fx_node.args
    return f"{value_name(source)}[{index}]" if isinstance(source, torch.fx.Node) else fx_node.name


def tensor_of(fx_node: torch.fx.Node) -> torch.Tensor | None:
    """The (fake) tensor of a node, the first of several; None for sizes and the like."""
    leaves = tree_leaves(fx_node.meta.get("val"))
    return next((leaf for leaf in leaves if isinstance(leaf, torch.Tensor)), None)


def bytes_of(fx_node: torch.fx.Node) -> int:
    """What the (fake) tensors of a node take, if their sizes are known; else 0."""
    tensors = [x for x in tree_leaves(fx_node.meta.get("val")) if isinstance(x, torch.Tensor)]
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    return sum(size for size in sizes if isinstance(size, int))


def shape_of(tensor: torch.Tensor) -> Shape:
    return tuple(size if isinstance(size, int) else str(size) for size in tensor.shape)


def scope_of(fx_node: torch.fx.Node) -> str | None:
    """The path of the innermost module whose forward made the call; "" is the root."""
    stack = fx_node.meta.get("nn_module_stack")
    if not stack:
        return None
    path: str = list(stack.values())[-1][0]
    return path.split("@")[0]


def _is_idle_dropout(fx_node: torch.fx.Node) -> bool:
    """A dropout(input, p, train) that gives what it is given."""
    name = getattr(fx_node.target, "_schema", None)
    dropout = name is not None and name.name.endswith("dropout")
    return dropout and fx_node.args[2:] == (False,)
