"""A part of an exported program as a module of torch's own classes.

Layers of torch's own stay the modules that they were, with new parameters; a convolution, linear
layer or activation that stands in a forward becomes one. What is only a row of them is written as
one layer or an nn.Sequential, everything else as a torch.fx.GraphModule, with operators on
parameters under their old names.

Refused, with the reason, are parts that would not be the same
    elsewhere    a tensor is made on a fixed device
    without us   an operator is not torch's own, or a name is none that code can hold
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from bnfold.formats.pytorch.capture import copied
from bnfold.formats.pytorch.functional_layers import layer_of
from bnfold.formats.pytorch.identifiers import AS_THEY_ARE, Identifiers, is_plain
from bnfold.formats.pytorch.module_editor import assign, is_same, state_sizes
from bnfold.formats.pytorch.program_reader import scope_of, stored_tensors
from bnfold.formats.pytorch.recording import PLAIN, Arguments
from bnfold.formats.pytorch.rows import in_a_row
from bnfold.formats.pytorch.signature import is_unary, write_signature

_LITERALS = (*PLAIN, torch.dtype, torch.layout, torch.memory_format)
_ROLES = ("weight", "bias", "running_mean", "running_var")
"""The arguments that a layer has a place of the same name for."""


class NotWritableError(Exception):
    """The part has something that no module of torch's own can hold."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A value among the results of a part that is no tensor."""

    value: Any


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """A submodule within a program: its path, its call, and where its tensors are there.

    `inputs` are the names of its inputs among the program's; `results` are what it returns, flat,
    tensors by their place among the program's outputs; `structure` is their nest; `names` lead from
    the program's paths to the network's.
    """

    path: str
    call: Arguments
    inputs: tuple[str, ...]
    results: tuple[int | Plain, ...]
    structure: TreeSpec
    names: Identifiers = AS_THEY_ARE

    def relative(self, name: str) -> str | None:
        """The name as seen from the part; None if it lies outside."""
        prefix = f"{self.path}." if self.path else ""
        return name.removeprefix(prefix) if name.startswith(prefix) else None


def generate(program: ExportedProgram, part: Part, module: nn.Module) -> nn.Module:
    """What stands in for `module`, the part's submodule, and computes what `program` does.

    Raises NotWritableError.
    """
    made = _Writer(program, part, module).write()
    for name, value in vars(module).items():
        if _is_plain(value) and not hasattr(made, name):
            setattr(made, name, value)  # the code around it may read it
    return made.eval()


def is_layer(module: nn.Module) -> bool:
    """Whether it is a layer of torch's own, without others in it."""
    own = type(module).__module__.startswith("torch.nn.modules.")
    return own and not any(True for _ in module.children())


@dataclass(frozen=True, eq=False, slots=True)
class _Layer:
    """A module that the graph calls on `source` in place of `nodes`."""

    path: str
    module: nn.Module
    source: torch.fx.Node
    nodes: tuple[torch.fx.Node, ...]


class _Writer:
    def __init__(self, program: ExportedProgram, part: Part, module: nn.Module) -> None:
        self._part, self._module = part, module
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._stored = stored_tensors(program, part.names)
        self._transient = set(program.constants)
        returned = tree_leaves(program.graph.output_node().args[0])
        self._results = [r if isinstance(r, Plain) else returned[r] for r in part.results]
        self._graph = torch.fx.Graph()
        self._root = nn.Module()
        self._new: dict[torch.fx.Node, torch.fx.Node] = {}

    def write(self) -> nn.Module:
        self._write_graph()
        row = None
        if is_unary(self._module, self._part.call):
            row = in_a_row(self._graph, self._root)
        made = row or torch.fx.GraphModule(self._root, self._graph)
        for name in self._transient:
            name = self._part.names.original(name)
            owner, _, attribute = (self._part.relative(name) or "").rpartition(".")
            if attribute in getattr(_within(made, owner), "_buffers", ()):
                made.get_submodule(owner)._non_persistent_buffers_set.add(attribute)
        return made

    def _write_graph(self) -> None:
        ends = {node for node in self._results if not isinstance(node, Plain)}
        live = _above(ends)
        inputs = write_signature(self._graph, self._module, self._part.call)
        self._new.update(zip((self._nodes[n] for n in self._part.inputs), inputs, strict=True))
        layers: dict[torch.fx.Node, _Layer] = {}
        for layer in self._layers(live, ends):
            if layer.path not in {other.path for other in layers.values()}:
                layers[layer.nodes[-1]] = layer
                self._hold(layer.path, layer.module)
        inside = {node for layer in layers.values() for node in layer.nodes}
        for node in live:
            if node in layers:
                source = self._new[layers[node].source]
                self._new[node] = self._graph.call_module(layers[node].path, (source,))
            elif node not in self._new and node not in inside and node.name not in self._stored:
                self._new[node] = self._copy(node)
        leaves = [
            each.value if isinstance(each, Plain) else self._new[each] for each in self._results
        ]
        self._graph.output(tree_unflatten(leaves, self._part.structure))

    def _layers(
        self, live: Iterable[torch.fx.Node], ends: Collection[torch.fx.Node]
    ) -> Iterator[_Layer]:
        """Torch's own layers whose calls can stay, and those that calls of operators are."""
        scopes: dict[str, list[torch.fx.Node]] = {}
        for node in live:
            if node.op == "call_function":
                scope = self._part.names.original(scope_of(node) or "")
                scopes.setdefault(scope, []).append(node)
        for scope, nodes in scopes.items():
            local = self._part.relative(scope)
            found = self._layer(local, nodes, ends) if local else None
            if found is not None:
                yield found
                continue
            for node in nodes:
                if (layer := self._functional(node)) is not None:
                    yield layer

    def _layer(
        self, path: str, nodes: Sequence[torch.fx.Node], ends: Collection[torch.fx.Node]
    ) -> _Layer | None:
        """The layer of torch's own at `path`, if its one call comes to all of `nodes`."""
        module, own = self._module.get_submodule(path), set(nodes)
        left = [n for n in nodes if n in ends or any(user not in own for user in n.users)]
        sources = self._sources(nodes)
        if not is_layer(module) or len(sources) != 1 or left != list(nodes[-1:]):
            return None
        layer = copied(module, share=True)
        for node in nodes:
            for role, (name, tensor) in self._tensors_of(node).items():
                if is_same(getattr(layer, name.rpartition(".")[2], None), tensor):
                    continue
                if role not in _ROLES or not hasattr(layer, role):
                    return None
                assign(layer, role, tensor.detach())
        state_sizes(layer)
        if getattr(layer, "inplace", False):
            layer.inplace = False  # type: ignore[assignment]  # others may read what it reads
        return _Layer(path, layer, sources[0], tuple(nodes))

    def _functional(self, node: torch.fx.Node) -> _Layer | None:
        """A layer for an operator that computes what one does, where its tensors lie together."""
        named = self._tensors_of(node)
        made = layer_of(node, {role: tensor for role, (_, tensor) in named.items()})
        sources = self._sources([node])
        if made is None or len(sources) != 1:
            return None
        names = {role: self._local(*stored) for role, stored in named.items()}
        paths = {name.rpartition(".")[0] for name in names.values()} or {self._free(node.name)}
        path = paths.pop()
        if paths or not path or any(name != f"{path}.{role}" for role, name in names.items()):
            return None
        return _Layer(path, made, sources[0], (node,))

    def _sources(self, nodes: Sequence[torch.fx.Node]) -> list[torch.fx.Node]:
        """What the nodes read and do not compute themselves."""
        read = dict.fromkeys(source for node in nodes for source in node.all_input_nodes)
        return [n for n in read if n not in nodes and n.name not in self._stored]

    def _tensors_of(self, node: torch.fx.Node) -> dict[str, tuple[str, torch.Tensor]]:
        """The stored tensors that an operator reads, with their names, by role in its schema."""
        target = node.target
        schema = target._schema.arguments if isinstance(target, torch._ops.OpOverload) else ()
        given = {**dict(zip((a.name for a in schema), node.args, strict=False)), **node.kwargs}
        return {
            role: self._stored[value.name]
            for role, value in given.items()
            if isinstance(value, torch.fx.Node) and value.name in self._stored
        }

    def _copy(self, node: torch.fx.Node) -> torch.fx.Node:
        target: Any = node.target
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self._read)
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.device):
                raise NotWritableError(f"{node.name} makes a tensor on a fixed device")
            if not isinstance(leaf, (torch.fx.Node, *_LITERALS)):
                raise NotWritableError(f"{node.name} takes a {type(leaf).__name__}")
        if target is torch.ops.aten.sym_size.int:
            return self._graph.call_method("size", args)
        if target is torch.ops.aten.view.default:
            target = torch.ops.aten.reshape.default  # in other memory layouts it is no view
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
            return self._graph.call_function(target.overloadpacket, args, kwargs)
        if getattr(target, "__module__", "") not in ("_operator", "math", "torch"):
            raise NotWritableError(f"{target} is no operator of torch's own")
        return self._graph.call_function(target, args, kwargs)

    def _read(self, node: torch.fx.Node) -> torch.fx.Node:
        if node not in self._new:
            name, tensor = self._stored[node.name]
            local = self._local(name, tensor)
            while (
                held := self._held(local)
            ) is not None and held is not tensor:  # by a layer with another one
                local += "_"
            self._hold(local, tensor)
            self._new[node] = self._graph.get_attr(local)
        return self._new[node]

    def _local(self, name: str, tensor: torch.Tensor) -> str:
        """What the part calls a tensor of the program, which may have the name of a tied one."""
        named = (*self._module.named_parameters(), *self._module.named_buffers())
        local = self._part.relative(name)
        alias = next((own for own, held in named if is_same(held, tensor)), None)
        return local or alias or self._free(name.replace(".", "_"))

    def _free(self, name: str) -> str:
        """A name that nothing in the part has."""
        while hasattr(self._module, name) or hasattr(self._root, name):
            name += "_"
        return name

    def _held(self, path: str) -> Any:
        owner, _, attribute = path.rpartition(".")
        return getattr(_within(self._root, owner), attribute, None)

    def _hold(self, path: str, value: Any) -> None:
        """Put a module or tensor under its path, in plain modules."""
        *above, attribute = path.split(".")
        if not is_plain(path):
            raise NotWritableError(f"{path!r} is no name that code can hold")
        here = self._root
        for name in above:
            here = here._modules.get(name) or _put(here, name, nn.Module())
        if getattr(here, attribute, None) is not value:
            _put(here, attribute, value)


def _put(owner: nn.Module, name: str, value: Any) -> Any:
    if hasattr(owner, name):
        raise NotWritableError(f"{name!r} is the name of something else")
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        owner.register_buffer(name, value)
    else:
        setattr(owner, name, value)
    return value


def _within(module: nn.Module, path: str) -> nn.Module | None:
    return dict(module.named_modules()).get(path)


def _above(ends: Collection[torch.fx.Node]) -> list[torch.fx.Node]:
    """The nodes that `ends` are computed from, and these, in the order of the graph."""
    found, waiting = set(ends), list(ends)
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    graphs = {node.graph for node in found}
    return [node for graph in graphs for node in graph.nodes if node in found]


def _is_plain(value: Any) -> bool:
    """Whether it is made of plain values alone."""
    if isinstance(value, list | tuple | dict):
        entries = [*value, *value.values()] if isinstance(value, dict) else value
        return type(value) in (list, tuple, dict) and all(map(_is_plain, entries))
    return type(value) in PLAIN
