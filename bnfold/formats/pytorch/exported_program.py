"""torch.export.ExportedProgram: read its functional ATen graph, write a new program.

A program is read without its in-place operators (functional.py), which could hide a second reader.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_unflatten

from bnfold.algebra.graph import Graph
from bnfold.algebra.plan import Plan
from bnfold.algebra.rounding import Weights
from bnfold.errors import ModelError, UsageError, first_line
from bnfold.files import spelled
from bnfold.formats.capabilities import Damage, Intermediates
from bnfold.formats.model import Format, Model
from bnfold.formats.pytorch.damage import damage, damageable
from bnfold.formats.pytorch.functional import functional
from bnfold.formats.pytorch.identifiers import Identifiers
from bnfold.formats.pytorch.indices import integers_taken
from bnfold.formats.pytorch.intermediates import ShowingGraph, owner
from bnfold.formats.pytorch.pickles import check_sizes
from bnfold.formats.pytorch.precision import of_type, retraced
from bnfold.formats.pytorch.preprocessing import preprocessed
from bnfold.formats.pytorch.program_archive import extra_names, read_program, require_one_program
from bnfold.formats.pytorch.program_making import free_nodes
from bnfold.formats.pytorch.program_names import identified, name_outputs, number_graphs, operators
from bnfold.formats.pytorch.program_reader import ProgramReader, shape_of
from bnfold.formats.pytorch.program_writer import ProgramWriter
from bnfold.formats.pytorch.quantization import require_float_operators
from bnfold.formats.pytorch.tensors import dtype_of
from bnfold.formats.pytorch.writing import patient
from bnfold.formats.sizes import Sizes
from bnfold.inputs import Inputs
from bnfold.preprocessing import Contract
from bnfold.process_state import quiet
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import Integers, Runner, Sample, TensorSpec
from bnfold.runtimes.torch_eager import TorchRunner, to_tensor


class ExportedProgramModel(Model):
    """A `.pt2`; its inputs are named as the program's placeholders."""

    format = Format.EXPORTED_PROGRAM

    def __init__(
        self,
        program: ExportedProgram,
        extra_files: Mapping[str, str] | None = None,
        names: Identifiers | None = None,
    ) -> None:
        """`names` are those of a program that has been `identified` already."""
        self._program, self._names = (program, names) if names else identified(program)
        self._extra_files = dict(extra_files or {})
        self._functional: ExportedProgram | None = None

    @classmethod
    def load(cls, path: Path, *, trust: bool = False) -> ExportedProgramModel:
        """The program in `path`; one that would run code is refused unless `trust` allows it."""
        require_one_program(path)
        try:
            with quiet("torch"):
                program, extra_files = _trusted(path) if trust else read_program(path)
        except ModelError:
            raise
        except Exception as error:
            reason = first_line(error)
            raise ModelError(
                f"{path} looks like an exported program (.pt2) but cannot be loaded: {reason}",
                "write it again with torch.export.save and this version of torch",
            ) from error
        check_sizes(path, [program.state_dict, program.constants])
        return cls(program, extra_files)

    @property
    def native(self) -> ExportedProgram:
        return self._program

    @property
    def names(self) -> Identifiers:
        """The way from the program's paths to those of the model that it was made of."""
        return self._names

    @property
    def functional(self) -> ExportedProgram:
        """The program without in-place operators."""
        if self._functional is None:
            try:
                self._functional = functional(self._program)
            except Exception as error:  # whatever an operator raises for what it is given
                raise ModelError(
                    f"the exported program cannot be read: {first_line(error)}",
                    "export the model again with this version of torch",
                ) from error
        return self._functional

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, dtype_of(value), shape_of(value))
            for name, value in self._leaves()
            if isinstance(value, torch.Tensor)
        )

    def require_float(self) -> None:
        """Raise ModelError if the program calls operators of quantized models."""
        require_float_operators(operators(self._program))

    def require_small(self) -> None:
        placed = [node for node in self._program.graph.nodes if node.op == "placeholder"]
        sizes = Sizes(sum(map(_bytes, placed)))
        for node in self._program.graph.nodes:
            if node.op == "call_function":
                sizes.make(_bytes(node), f"{node.name} ({node.target})")
        sizes.require_explained()

    def read(self, sample: Sample | None = None) -> Graph:
        self.require_float()
        self.require_small()
        return ProgramReader(self.functional, self._names).graph()

    def cast(self, dtype: str) -> ExportedProgramModel:
        """Captured again in `dtype`: an operator may make another type of it."""
        module: Any = self._program.module(check_guards=False)
        given = {name: t for name, t in self._leaves() if isinstance(t, torch.Tensor)}
        floats = [dtype_of(value) for value in given.values() if value.is_floating_point()]
        if of_type(module, dtype) and {*floats} <= {dtype}:
            return self
        args, kwargs = self.bound({name: _zeros(value) for name, value in given.items()})
        positions, keywords = self.bound({name: _free(value) for name, value in given.items()})
        with quiet("torch"):
            shapes = (*positions, *keywords.values())
            program = retraced(module, args, kwargs, shapes, dtype)
        made = ExportedProgramModel(program, self._extra_files)
        made.notes = self.notes
        return made

    def preprocessed(self, contract: Contract, inputs: Inputs) -> ExportedProgramModel:
        """Captured again, around the old program."""
        named: Any = {spec.name: spec.name for spec in inputs.specs}
        args, kwargs = self.bound(named)
        if not all(isinstance(each, str) for each in (*args, *kwargs.values())):
            raise UsageError(
                "the program takes its inputs in lists or tables, or has constants among them",
                "preprocess the PyTorch module that it was made of",
            )
        names = {**dict.fromkeys(args), **{name: keyword for keyword, name in kwargs.items()}}
        module = preprocessed(self._program.module(check_guards=False), contract, names)
        sample = {name: to_tensor(inputs.sample[name]) for name in names}
        free = {
            name: dict.fromkeys(inputs.dynamic[name], torch.export.Dim.DYNAMIC) for name in names
        }
        with quiet("torch"), torch.no_grad():
            program = torch.export.export(
                module, tuple(sample.values()), dynamic_shapes=free, strict=False
            )
        made = ExportedProgramModel(program, self._extra_files)
        made.notes = self.notes
        return made

    def free(self) -> frozenset[str]:
        reader = ProgramReader(self.functional, self._names)
        return free_nodes(reader, reader.graph(), self.functional.graph)

    def write(self, plan: Plan, weights: Weights) -> ExportedProgramModel:
        """Names of outputs and guards on sizes are the program's, not its functional form's."""
        program = ProgramWriter(self.functional, self._names).write(plan, weights)
        name_outputs(program, self._program.graph_signature.user_outputs)
        program._guards_code = list(self._program._guards_code)
        return ExportedProgramModel(program, self._extra_files, self._names)

    def save(self, path: Path) -> None:
        """Through a stream: torch names the folder inside the archive after a file."""
        number_graphs(self._program)
        with quiet("torch"), patient(path) as file:
            torch.export.save(self._program, file, extra_files=self._extra_files)

    def truth(self) -> Runner:
        self.require_float()
        self.require_small()
        wide = copy.deepcopy(self._program.module(check_guards=False)).double()
        return self._runner(wide, wide=True)

    def damages(self) -> Iterator[Damage]:
        def made(name: str, size: float) -> ExportedProgramModel:
            program = copy.deepcopy(self._program)
            damage(program.state_dict[name], size)
            return ExportedProgramModel(program, names=self._names)

        state = {self._names.original(k): t for k, t in self._program.state_dict.items()}
        for kind, where, name in damageable(state):
            yield Damage(kind, where, partial(made, self._names.identifier(name)))

    def intermediates(self, provider: str) -> Intermediates:
        def shown(module: torch.fx.GraphModule, wide: bool) -> Runner:
            def call(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
                run = ShowingGraph(module)
                given = [tensors.get(name, value) for name, value in self._leaves()]
                run.run(*given, enable_io_processing=False)
                return run.shown

            return TorchRunner(call, {spec.name: spec.name for spec in self.inputs}, wide=wide)

        module: Any = self._program.module(check_guards=False)
        nodes = [node for node in module.graph.nodes if node.op == "call_function"]
        return Intermediates(
            shown(module, wide=False),
            shown(copy.deepcopy(module).double(), wide=True),
            {node.name: [source.name for source in node.all_input_nodes] for node in nodes},
            {node.name: owner(node, self._names) for node in nodes},
        )

    def integers(self, sample: Sample) -> Mapping[str, Integers]:
        return integers_taken(self.runners()[0], sample)

    def runners(self, protocol: Protocol = DEFAULT) -> list[Runner]:
        self.require_small()
        return [self._runner(self._program.module(), wide=False)]

    def _runner(self, module: torch.nn.Module, *, wide: bool) -> Runner:
        def call(**tensors: torch.Tensor) -> Any:
            args, kwargs = self.bound(tensors)
            return module(*args, **kwargs)

        return TorchRunner(call, {tensor.name: tensor.name for tensor in self.inputs}, wide=wide)

    def bound(self, tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with `tensors`, which go by the names of the inputs."""
        spec = self._program.call_spec.in_spec
        assert spec is not None
        given = [tensors.get(name, value) for name, value in self._leaves()]
        args, kwargs = tree_unflatten(given, spec)
        return tuple(args), dict(kwargs)

    def _leaves(self) -> list[tuple[str, Any]]:
        """What the caller passes, flat: name and fake tensor, or name and the constant to pass."""
        values = {n.name: n.meta.get("val") for n in self._program.graph.nodes}
        return [
            (spec.arg.name, values.get(spec.arg.name, getattr(spec.arg, "value", None)))
            for spec in self._program.graph_signature.input_specs
            if spec.kind is InputKind.USER_INPUT
        ]


def _zeros(value: torch.Tensor) -> torch.Tensor:
    """What a program can be traced with, in the sizes that it was made with."""
    sizes = [size if isinstance(size, int) else size.node.hint for size in value.shape]
    return torch.zeros(sizes, dtype=value.dtype)


def _free(value: torch.Tensor) -> Any:
    """The axes of free size, as torch.export takes them."""
    sizes = enumerate(value.shape)
    return {axis: torch.export.Dim.DYNAMIC for axis, size in sizes if not isinstance(size, int)}


def _bytes(node: torch.fx.Node) -> int:
    """What the tensors that a node makes take: sizes that are free count as 1."""
    values = tree_leaves(node.meta.get("val"))
    return sum(
        math.prod(size for size in value.shape if isinstance(size, int)) * value.element_size()
        for value in values
        if isinstance(value, torch.Tensor)
    )


def _trusted(path: Path) -> tuple[ExportedProgram, dict[str, str]]:
    """By torch itself, which runs what it finds."""
    extra_files = dict.fromkeys(extra_names(path), "")
    return torch.export.load(str(spelled(path)), extra_files=extra_files), extra_files
