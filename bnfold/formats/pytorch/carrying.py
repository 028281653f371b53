"""A plan for the graph of a network as a plan for the program of some of its submodules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch.export import ExportedProgram

from bnfold.algebra.graph import Add, Affine, Graph, Identity, Layer, Node
from bnfold.algebra.plan import Plan
from bnfold.algebra.rounding import Weights
from bnfold.formats.pytorch.generated import NotWritableError, Part
from bnfold.formats.pytorch.identifiers import Identifiers
from bnfold.formats.pytorch.program_reader import ProgramReader
from bnfold.formats.pytorch.program_writer import origin, passes


@dataclass(frozen=True, eq=False, slots=True)
class Captured:
    """Some submodules as one program, each on inputs of its own.

    `twins` maps the nodes of the network's graph to those of the program's, for every part that was
    found to be the same.
    """

    program: ExportedProgram
    names: Identifiers
    parts: Mapping[str, Part]
    reader: ProgramReader
    graph: Graph
    twins: dict[str, Node] = field(default_factory=dict)

    @classmethod
    def of(
        cls, program: ExportedProgram, names: Identifiers, parts: Mapping[str, Part]
    ) -> Captured:
        reader = ProgramReader(program, names)
        return cls(program, names, parts, reader, reader.graph())


def twins_in(
    path: str, network: tuple[ProgramReader, Graph], part: tuple[ProgramReader, Graph]
) -> Iterator[tuple[str, Node]]:
    """The nodes of the submodule at `path` in both graphs, side by side, but for identities.

    A slice of a whole axis is one where sizes are fixed, and may be left out there.
    Raises NotWritableError where they differ in more than sizes: the submodule does something else
    on its own, or with other sizes.
    """
    ours, theirs = (list(_nodes_in(path, *each)) for each in (network, part))
    if [_tensors(network[0], n) for n in ours] != [_tensors(part[0], n) for n in theirs]:
        raise NotWritableError("it runs other operators when it runs by itself")
    for mine, its in zip(ours, theirs, strict=True):
        if _numbers(mine) != _numbers(its):
            raise NotWritableError(f"what {mine.name} computes with depends on sizes")
    yield from zip((node.name for node in ours), theirs, strict=True)


def carried_over(captured: Captured, plan: Plan, weights: Weights) -> tuple[Plan, Weights]:
    """The plan and its weights for the program."""
    twins, passed = captured.twins, passes(plan)
    ops = {twins[n.name].name: n.op for _, n in plan.changed() if n.name in twins}
    nodes = tuple(replace(n, op=ops.get(n.name, n.op)) for n in captured.graph.nodes)
    moved: dict[str, str] = {}
    for node in plan.dissolved():
        if node.name in twins:
            end = origin(node.outputs[0], passed)
            port = next(i for i, v in enumerate(node.inputs) if origin(v, passed) == end)
            twin = twins[node.name]
            moved[twin.outputs[0]] = twin.inputs[port]
    after = replace(captured.graph, nodes=nodes)
    own = {twins[name].name: new for name, new in weights.items() if name in twins}
    equal = {
        (twins[name].name, role): first
        for (name, role), first in plan.equal.items()
        if name in twins
    }
    return Plan(captured.graph, after, (), moved, equal=equal), own


def _nodes_in(path: str, reader: ProgramReader, graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        scope = reader.owners.get(node.name)
        inside = scope is not None and (not path or f"{scope}.".startswith(f"{path}."))
        if inside and not isinstance(node.op, Identity):
            yield node


def _numbers(node: Node) -> tuple[object, ...]:
    """What an operator that may be edited computes with, beside its stored tensors."""
    if isinstance(node.op, Affine):
        affine = node.op.affine
        return type(node.op), affine.axis, affine.scale.tobytes(), affine.shift.tobytes()
    if isinstance(node.op, Add):
        return type(node.op), node.op.factors
    return (type(node.op),) if isinstance(node.op, Layer) else ()


def _tensors(reader: ProgramReader, node: Node) -> tuple[object, ...]:
    """What an operator is, and the tensors that it is given, whatever their sizes."""
    stored = reader.arguments[node.name].items()
    names = [(role, c.name) for role, c in stored if c.name in reader.users]
    return node.kind, reader.owners[node.name], len(node.inputs), len(node.outputs), names
