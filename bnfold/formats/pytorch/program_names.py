"""Names within an exported program: those that code may have, those that its user relies on, and
those that only differ."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    OutputKind,
    TensorArgument,
)

from bnfold.errors import ModelError
from bnfold.formats.pytorch.identifiers import Identifiers, base_of, is_identifier

STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
"""The kinds of placeholder that stand for a tensor of the program."""

_WRITTEN = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
"""The kinds of output that go back into a tensor of the program."""


def identified(program: ExportedProgram) -> tuple[ExportedProgram, Identifiers]:
    """The program with names that code may have, and the way back; itself if it has no others.

    Raises ModelError for names of inputs that Python would read as something else, and for a tensor
    and a module of one path.
    """
    for name in _given_names(program):
        if not is_identifier(name):
            raise ModelError(
                f"the exported program has an input that is called {name!r:.200}",
                "export the model again, with an identifier for every input",
            )
    modules = set(_modules(program))
    if twice := _tensor_and_module(program, modules):
        raise ModelError(
            f"the exported program has a tensor and a module that are both called {twice!r:.200}",
            "export the model again, with a name of its own for each",
        )
    names = Identifiers.of((*program.state_dict, *program.constants, *modules))
    return (_renamed(program, names, modules), names) if names else (program, names)


def _tensor_and_module(program: ExportedProgram, modules: set[str]) -> str | None:
    """The path of a tensor that is also a module's, or on the way to one."""
    paths = sorted(modules)
    tensors: tuple[str, ...] = (*program.state_dict, *program.constants)
    for tensor in tensors:
        place = bisect_left(paths, f"{tensor}.")
        if tensor in modules or (place < len(paths) and paths[place].startswith(f"{tensor}.")):
            return tensor
    return None


def _given_names(program: ExportedProgram) -> Iterator[str]:
    """What the function that torch makes of the program calls its arguments."""
    spec = program.call_spec.in_spec
    if spec is not None and spec.num_children == 2 and spec.child(1).type is dict:
        yield from map(str, spec.child(1).context)
    for entry in program.module_call_graph:
        if entry.signature is not None:
            yield from entry.signature.forward_arg_names or ()


def _modules(program: ExportedProgram) -> Iterator[str]:
    yield from (entry.fqn for entry in program.module_call_graph)
    for name in (*program.state_dict, *program.constants):
        yield name.rpartition(".")[0]
    for node in _all_nodes(program.graph_module):
        yield from (path for path, _ in node.meta.get("nn_module_stack", {}).values())


def _all_nodes(module: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """Those of the graphs inside, too."""
    for each in module.modules():
        if isinstance(each, torch.fx.GraphModule):
            yield from each.graph.nodes


def operators(program: ExportedProgram) -> Iterator[str]:
    """What the program calls, as "aten::conv2d", the bodies of its branches and loops included."""
    for node in _all_nodes(program.graph_module):
        if isinstance(node.target, torch._ops.OpOverload):
            yield node.target._schema.name


def _renamed(program: ExportedProgram, names: Identifiers, modules: set[str]) -> ExportedProgram:
    """A program of its own; it shares tensors with `program`."""

    def called(path: str) -> str:
        base, again = base_of(path, modules)
        return names.identifier(base) + again

    graph, _ = copied_graph(program.graph)
    root = torch.fx.GraphModule(program.graph_module, graph)
    root.meta.update(program.graph_module.meta)
    for name, body in program.graph_module.named_children():
        setattr(root, name, copy.deepcopy(body))
    for node in _all_nodes(root):
        if stack := node.meta.get("nn_module_stack"):
            node.meta["nn_module_stack"] = _renamed_stack(stack, called)
    made = ExportedProgram(
        root,
        graph,
        _renamed_signature(program.graph_signature, names),
        {names.identifier(name): tensor for name, tensor in program.state_dict.items()},
        program.range_constraints,
        [replace(entry, fqn=called(entry.fqn)) for entry in program.module_call_graph],
        program.example_inputs,
        {names.identifier(name): entry for name, entry in program.constants.items()},
        verifiers=program.verifiers,
    )
    made._guards_code = list(program._guards_code)
    return made


def _renamed_stack(stack: Mapping[str, Any], called: Any) -> dict[str, Any]:
    """Keys tell calls apart, and are written to files as well."""
    made = {}
    for key, (path, kind) in stack.items():
        _, mark, again = key.rpartition("@")
        call = f"@{again}" if mark and again.isdecimal() else ""
        new = called(path)
        made[key if new == path else f"L__self__{new}{call}"] = (new, kind)
    return made


def _renamed_signature(old: ExportGraphSignature, names: Identifiers) -> ExportGraphSignature:
    def named(spec: Any, stored: bool) -> Any:
        return (
            replace(spec, target=names.identifier(spec.target)) if stored and spec.target else spec
        )

    return type(old)(
        [named(spec, spec.kind in STORED and bool(spec.target)) for spec in old.input_specs],
        [named(spec, spec.kind in _WRITTEN) for spec in old.output_specs],
    )


def with_own_graph(program: ExportedProgram) -> ExportedProgram:
    """The program with a copy of its graph, which may be edited; tensors are shared."""
    signature = program.graph_signature
    graph, _ = copied_graph(program.graph)
    root = torch.fx.GraphModule(program.graph_module, graph)
    root.meta.update(program.graph_module.meta)
    made = ExportedProgram(
        root,
        graph,
        type(signature)(list(signature.input_specs), list(signature.output_specs)),
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
        verifiers=program.verifiers,
    )
    made._guards_code = list(program._guards_code)
    return made


def copied_graph(
    graph: torch.fx.Graph,
) -> tuple[torch.fx.Graph, dict[torch.fx.Node, torch.fx.Node]]:
    """A copy with the very names of the nodes, and the nodes that became others."""
    made = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    result = made.graph_copy(graph, copied)
    made.output(result).meta = dict(graph.output_node().meta)
    for old, new in copied.items():
        new.name = old.name  # a copy renames what shadows a builtin, such as "input"
    return made, copied


def name_outputs(program: ExportedProgram, wanted: Iterable[Any]) -> None:
    """Call the program's user outputs as `wanted`, where that name is free.

    An output that is an input of the program keeps the input's name.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    specs = iter(list(signature.output_specs))
    for name in wanted:
        spec = next(each for each in specs if each.kind is OutputKind.USER_OUTPUT)
        node = nodes.get(getattr(spec.arg, "name", ""))
        if node is None or node.op == "placeholder" or not isinstance(name, str) or name in nodes:
            continue
        if not is_identifier(name):
            continue
        if not isinstance(spec.arg, TensorArgument):
            continue
        nodes[name] = nodes.pop(node.name)
        for other, each in enumerate(signature.output_specs):
            if getattr(each.arg, "name", None) == node.name:
                signature.output_specs[other] = replace(each, arg=TensorArgument(name))
        node.name = name


def number_graphs(program: ExportedProgram) -> None:
    """Number the graphs that its nodes come from by appearance.

    torch tells them apart by addresses in memory, which differ from run to run.
    """
    numbers: dict[int, int] = {}
    for module in program.graph_module.modules():
        graph = getattr(module, "graph", None)
        for node in getattr(graph, "nodes", ()):
            for source in _sources(node.meta.get("from_node", ())):
                known = source.node_info.graph_id
                source.node_info.graph_id = numbers.setdefault(known, len(numbers))


def _sources(given: Iterable[Any]) -> Iterator[Any]:
    waiting = list(given)
    while waiting:
        source = waiting.pop()
        source._dict = None  # what it is written as, kept from before
        waiting += source.from_node
        if source.node_info is not None:
            yield source
