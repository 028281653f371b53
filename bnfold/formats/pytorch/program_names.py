"""Names within an exported program: those that its user relies on, and those that only differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument


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
