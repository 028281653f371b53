"""Carry a plan out where the class of a submodule stands in the way: something else in its place.

The smallest submodule around an edit that has a stand-in (enclosing.py) gets a program of its own:
cut out of the network's where it deals with no sizes (cutting.py), else captured once more, by
itself, with every size free that can vary. The plan is carried over to that program, operator by
operator, and what results is written as a module of torch's own classes (generated.py).

Exact when   SAME_OPERATORS   both programs run the same operators on the same tensors in it
             FREE_SIZES       the program has no size fixed that varies with the network's input
             EVERY_SIZE       no branch of its code depends on a size (guards.py)
             PURE             it writes to none of its inputs or buffers, and leaves nothing behind
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten

from bnfold.algebra.graph import Graph, Node
from bnfold.algebra.plan import Plan
from bnfold.algebra.refusal import Refusal, listed
from bnfold.algebra.rounding import Weights
from bnfold.errors import ModelError
from bnfold.formats.pytorch.capture import free_sizes, program_of
from bnfold.formats.pytorch.carrying import Captured, carried_over, twins_in
from bnfold.formats.pytorch.cutting import cut
from bnfold.formats.pytorch.enclosing import Enclosures
from bnfold.formats.pytorch.failure import found_in
from bnfold.formats.pytorch.generated import NotWritableError, Part, Plain, generate
from bnfold.formats.pytorch.guards import branch_on_sizes
from bnfold.formats.pytorch.program_reader import ProgramReader
from bnfold.formats.pytorch.program_writer import ProgramWriter
from bnfold.formats.pytorch.recording import PLAIN
from bnfold.formats.pytorch.tensors import tensors_in


class Generator:
    """Finds what has to be generated for a plan, and generates it.

    `chosen` are the submodules of the last plan that was settled, each with the reasons why its
    class could not stay.
    """

    def __init__(
        self, module: nn.Module, reader: ProgramReader, graph: Graph, enclosures: Enclosures
    ) -> None:
        self._module, self._reader, self._graph = module, reader, graph
        self._enclosures = enclosures
        self._captured: dict[str, Captured] = {}
        self.chosen: dict[str, list[str]] = {}

    def settle(self, refusals: Mapping[str, Refusal], *, whole: bool) -> dict[str, Refusal]:
        """Choose submodules for what was refused; gives the refusals that remain.

        `whole` lets the model itself be generated, too.
        """
        while True:
            wanted, left = self._wanted(refusals, whole)
            outermost = [path for path in wanted if not any(o in wanted for o in around(path)[1:])]
            missing = [path for path in outermost if path not in self._captured]
            if not missing:
                break
            self._capture(missing)
        self.chosen = {
            path: [why for p, whys in wanted.items() if path in around(p) for why in whys]
            for path in outermost
        }
        return left

    def told(self) -> Iterator[str]:
        """What was generated in place of what, and why: a line for each class."""
        kinds: dict[str, list[str]] = {}
        for path in self.chosen:
            kind = type(self._module.get_submodule(path)).__name__
            kinds.setdefault(kind, []).append(path)
        for kind, paths in kinds.items():
            names = listed(path or "the model itself" for path in paths)
            why = self.chosen[paths[0]][0]
            yield f"generated in place of {kind}: {names} ({why})"

    def covers(self, node: str) -> bool:
        """Whether a node of the network's graph lies in a submodule that was chosen."""
        scope = self._reader.owners.get(node)
        return scope is not None and any(path in self.chosen for path in around(scope))

    def write(self, plan: Plan, weights: Weights) -> dict[str, nn.Module]:
        """What stands in for each submodule that was chosen."""
        made: dict[str, nn.Module] = {}
        for group in dict.fromkeys(self._captured[path] for path in self.chosen):
            program = ProgramWriter(group.program, group.names).write(
                *carried_over(group, plan, weights)
            )
            for path in group.parts.keys() & self.chosen.keys():
                module = self._module.get_submodule(path)
                try:
                    made[path] = generate(program, group.parts[path], module)
                except NotWritableError as error:
                    raise ModelError(
                        f"{path} cannot be written as a module: {error}", "try --keep-classes"
                    ) from error
        return made

    def _wanted(
        self, refusals: Mapping[str, Refusal], whole: bool
    ) -> tuple[dict[str, list[str]], dict[str, Refusal]]:
        """The smallest submodules that do for what was refused; and what none does for."""
        wanted: dict[str, list[str]] = {}
        left: dict[str, Refusal] = {}
        for name, refusal in refusals.items():
            scope = self._reader.owners.get(name)
            outwards = [path for path in around(scope or "") if path or whole]
            path = next((each for each in outwards if self._unfit(each) is None), None)
            if scope is None or path is None:
                further = [why for each in outwards if (why := self._unfit(each))]
                left[name] = _with(refusal, further[-1]) if further else refusal
            else:
                wanted.setdefault(path, []).append(refusal.why)
        return wanted, left

    def _unfit(self, path: str) -> str | None:
        """Why nothing can stand in for a submodule; what can be cut out is captured by that."""
        if path not in self._captured and (found := self._cut(path)):
            self._captured[path] = found
        return None if path in self._captured else self._enclosures.unfit(path)

    def _cut(self, path: str) -> Captured | None:
        """The submodule as a program cut out of the network's, if it asks for no size."""
        call = self._enclosures.only_call(path) if path and not self._reader.traced else None
        if call is None:
            return None
        names = self._reader.names
        scopes = self._reader.scopes.items()
        inside = {node for node, scope in scopes if f"{scope}.".startswith(f"{path}.")}
        program = cut(self._reader.program, inside)
        if program is None:
            return None
        (given,) = program.graph_signature.user_inputs
        part = Part(path, call, (str(given),), (0,), tree_flatten(call.tensors[0])[1], names)
        try:
            generate(program, part, self._module.get_submodule(path))
            captured = Captured.of(program, names, {path: part})
            captured.twins.update(self._side_by_side(captured, path))
            return captured
        except NotWritableError:
            return None

    def _capture(self, paths: Sequence[str]) -> None:
        """Capture submodules as one program; those that cannot be are unfit from now on."""
        try:
            captured = self._program(paths)
        except Exception as error:  # whatever torch raises
            if len(paths) == 1:
                self._enclosures.refuse(paths[0], found_in(error))
            else:
                self._capture(paths[: len(paths) // 2])
                self._capture(paths[len(paths) // 2 :])
            return
        for index, path in enumerate(paths):
            try:
                self._try(captured, path, index)
            except Exception as error:
                self._enclosures.refuse(path, found_in(error))
            else:
                self._captured[path] = captured

    def _try(self, captured: Captured, path: str, index: int) -> None:
        """FREE_SIZES, SAME_OPERATORS and EVERY_SIZE: write it as it is; is that the same?"""
        part, calls = captured.parts[path], self._enclosures.calls(path)
        _require_free(captured.program, part.inputs, free_sizes(calls))
        captured.twins.update(self._side_by_side(captured, path))
        module = self._module.get_submodule(path)
        written = generate(captured.program, part, module)
        guards = captured.program._guards_code
        if branch := branch_on_sizes(module, written, calls, guards, index):
            raise NotWritableError(f"its code branches on {branch}")

    def _program(self, paths: Sequence[str]) -> Captured:
        calls = {path: self._enclosures.calls(path) for path in paths}
        returned: list[Any] = []

        def seen(results: list[Any], left: list[torch.Tensor]) -> None:
            if left:
                raise NotWritableError("it leaves a tensor behind on a module")
            places = {id(tensor): i for i, tensor in enumerate(tensors_in(results))}
            flat = [tree_flatten(result) for result in results]
            returned[:] = [([_result(x, places) for x in leaves], spec) for leaves, spec in flat]

        program, named = program_of(
            self._module, list(calls.items()), free=Dim.AUTO, traced=self._reader.traced, seen=seen
        )
        signature = program.graph_signature
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
            raise NotWritableError("it writes to a buffer or to its input")
        names = iter(signature.user_inputs)
        parts: dict[str, Part] = {}
        for index, (path, seen_calls) in enumerate(calls.items()):
            call, (results, spec) = seen_calls[0], returned[index]
            inputs = tuple(str(next(names)) for _ in call.tensors)
            parts[path] = Part(path, call, inputs, tuple(results), spec, named)
        return Captured.of(program, named, parts)

    def _side_by_side(self, captured: Captured, path: str) -> dict[str, Node]:
        """SAME_OPERATORS: what each node of the network's graph is in the program."""
        theirs = captured.reader, captured.graph
        return dict(twins_in(path, (self._reader, self._graph), theirs))


def _with(refusal: Refusal, further: str) -> Refusal:
    return replace(refusal, why=f"{refusal.why}, and {further}")


def _result(value: Any, places: Mapping[int, int]) -> int | Plain:
    if isinstance(value, torch.Tensor):
        return places[id(value)]
    if type(value) not in PLAIN:
        raise NotWritableError(f"it returns a {type(value).__name__}")
    return Plain(value)


def _require_free(
    program: ExportedProgram, inputs: Sequence[str], axes: Sequence[Sequence[int]]
) -> None:
    """FREE_SIZES: torch.export fixes a size that the code around it compares or computes with."""
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    for name, free in zip(inputs, axes, strict=True):
        for axis in free:
            if not isinstance(values[name].shape[axis], torch.SymInt):
                raise NotWritableError(f"it only works with size {values[name].shape[axis]} there")


def around(path: str) -> list[str]:
    """The path of a module and of all modules that it lies in, from the inside to the outside."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), -1, -1)]
