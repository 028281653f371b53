"""torch.export.ExportedProgram: read its functional ATen graph, write a new program.

A program is brought into functional form first (`run_decompositions` with an empty table), so that
no in-place operator hides a second reader. Operators whose arguments are all constant are computed
while reading: a weight behind `weight_norm`, or a scale made of buffers, is then a constant.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from bnfold.errors import ModelError
from bnfold.formats import aten
from bnfold.formats.model import Format, Model
from bnfold.graph import Affine, Graph, Node, Shape
from bnfold.plan import Plan
from bnfold.rounding import Weights
from bnfold.run import Runner, Sample, TensorSpec
from bnfold.run.torch_eager import TorchRunner, to_tensor

_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class ExportedProgramModel(Model):
    """A `.pt2`; its inputs are named as the program's placeholders."""

    format = Format.EXPORTED_PROGRAM

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._functional: ExportedProgram | None = None

    @classmethod
    def load(cls, path: Path) -> ExportedProgramModel:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return cls(torch.export.load(str(path)))
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{path} looks like an exported program (.pt2) but cannot be loaded: {reason}",
                "write it again with torch.export.save and this version of torch",
            ) from error

    @property
    def native(self) -> ExportedProgram:
        return self._program

    @property
    def functional(self) -> ExportedProgram:
        """The program without in-place operators."""
        if self._functional is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._functional = self._program.run_decompositions({})
        return self._functional

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        wanted = self._program.graph_signature.user_inputs
        by_name = {node.name: node for node in self._program.graph.nodes}
        found = [by_name[name] for name in wanted if isinstance(name, str) and name in by_name]
        tensors = [node for node in found if isinstance(node.meta.get("val"), torch.Tensor)]
        return tuple(
            TensorSpec(node.name, _dtype(node.meta["val"]), _shape(node.meta["val"]))
            for node in tensors
        )

    def read(self, sample: Sample | None = None) -> Graph:
        return ProgramReader(self.functional).graph()

    def write(self, plan: Plan, weights: Weights) -> ExportedProgramModel:
        return ExportedProgramModel(_ProgramWriter(self.functional).write(plan, weights))

    def save(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(self._program, str(path))

    def truth(self) -> Runner:
        wide = copy.deepcopy(self._program.module(check_guards=False)).double()
        return TorchRunner(wide, self._keywords(), wide=True)

    def runners(self, providers: Sequence[str]) -> list[Runner]:
        return [TorchRunner(self._program.module(), self._keywords())]

    def _keywords(self) -> dict[str, str | None]:
        """Which inputs go by keyword: those behind the positional ones of the call."""
        spec = self._program.call_spec.in_spec
        assert spec is not None
        positional = spec.child(0).num_leaves
        names = [tensor.name for tensor in self.inputs]
        keywords = list(spec.child(1).context or ())
        return {
            name: None if i < positional else keywords[i - positional]
            for i, name in enumerate(names)
        }


class ProgramReader:
    """Reads one functional program; `owners` and `params` tell where each call came from."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self.constants: dict[str, aten.Constant] = {}
        self._shapes: dict[str, Shape | None] = {}
        self._dtypes: dict[str, str] = {}
        self._names: dict[str, int] = {}
        self.native: dict[str, str] = {}
        """neutral node name -> fx node name."""
        self.owners: dict[str, str] = {}
        """neutral node name -> path of the innermost module that made the call."""
        self.arguments: dict[str, dict[str, str]] = {}
        """neutral node name -> schema argument -> name of the constant passed for it."""

    def graph(self) -> Graph:
        inputs: list[str] = []
        nodes: list[Node] = []
        outputs: list[str] = []
        stored = stored_tensors(self._program)
        for fx_node in self._program.graph.nodes:
            self._note(fx_node)
            if fx_node.op == "placeholder":
                if fx_node.name in stored:
                    self.constants[fx_node.name] = aten.Constant(*stored[fx_node.name])
                elif _tensor(fx_node) is not None:
                    inputs.append(fx_node.name)
            elif fx_node.op == "output":
                outputs = [a.name for a in fx_node.all_input_nodes if _tensor(a) is not None]
            elif _tensor(fx_node) is not None and not self._computed(fx_node):
                nodes.append(self._node(fx_node))
        made = {*inputs, *(value for node in nodes for value in node.outputs)}
        returned = tuple(dict.fromkeys(name for name in outputs if name in made))
        return Graph(tuple(inputs), tuple(nodes), returned, self._shapes)

    def _note(self, fx_node: torch.fx.Node) -> None:
        tensor = _tensor(fx_node)
        if tensor is not None:
            self._shapes[fx_node.name] = _shape(tensor)
            self._dtypes[fx_node.name] = _dtype(tensor)

    def _computed(self, fx_node: torch.fx.Node) -> bool:
        """Compute the node now if all it reads is constant."""
        target = fx_node.target
        if not isinstance(target, torch._ops.OpOverload):
            return False
        if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
            return False
        arguments = torch.fx.map_arg((fx_node.args, fx_node.kwargs), self._resolved)
        if any(a.name not in self.constants for a in fx_node.all_input_nodes):
            return False
        with torch.no_grad():
            result = target(*arguments[0], **arguments[1])
        if not isinstance(result, torch.Tensor):
            return False
        self.constants[fx_node.name] = aten.Constant(fx_node.name, result)
        return True

    def _resolved(self, fx_node: torch.fx.Node) -> Any:
        constant = self.constants.get(fx_node.name)
        return None if constant is None else constant.tensor

    def _node(self, fx_node: torch.fx.Node) -> Node:
        call = self._call(fx_node)
        node = aten.translate(call, aten.Facts(self._shapes, self._dtypes))
        self.native[node.name] = fx_node.name
        owner = owner_of(fx_node)
        if owner is not None and fx_node.target is not operator.getitem:
            self.owners[node.name] = owner
        self.arguments[node.name] = {
            role: argument.name
            for role, argument in call.arguments.items()
            if isinstance(argument, aten.Constant)
        }
        return node

    def _call(self, fx_node: torch.fx.Node) -> aten.Call:
        target = fx_node.target
        arguments: dict[str, Any] = {}
        if target is operator.getitem:
            source, index = fx_node.args
            op = "identity" if index == 0 else "getitem"
            arguments["input"] = self._argument(source)
        elif isinstance(target, torch._ops.OpOverload):
            op = target._schema.name.removeprefix("aten::")
            given = dict(
                zip((a.name for a in target._schema.arguments), fx_node.args, strict=False)
            )
            for argument in target._schema.arguments:
                default = argument.default_value if argument.has_default_value() else None
                value = given.get(argument.name, fx_node.kwargs.get(argument.name, default))
                arguments[argument.name] = self._argument(value)
        else:
            op = str(target)
            for i, source in enumerate(fx_node.all_input_nodes):
                arguments[str(i)] = self._argument(source)
        return aten.Call(self._name(fx_node), op, arguments, (fx_node.name,))

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            if value.name in self.constants:
                return self.constants[value.name]
            return aten.Value(value.name) if _tensor(value) is not None else value
        if isinstance(value, list | tuple):
            return [self._argument(entry) for entry in value]
        return value

    def _name(self, fx_node: torch.fx.Node) -> str:
        """The path of the module, if the call is its own; otherwise the name in the graph."""
        owner = owner_of(fx_node)
        stem = owner if owner and fx_node.target is not operator.getitem else fx_node.name
        seen = self._names[stem] = self._names.get(stem, 0) + 1
        return stem if seen == 1 else f"{stem}#{seen}"


def stored_tensors(program: ExportedProgram) -> dict[str, tuple[str, torch.Tensor]]:
    """Placeholder name -> (name, tensor) of what the program stores and never writes to."""
    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    tensors: Mapping[str, Any] = {**program.constants, **program.state_dict}
    return {
        spec.arg.name: (spec.target, tensors[spec.target])
        for spec in signature.input_specs
        if spec.kind in _STORED and spec.target is not None and spec.target not in written
    }


def owner_of(fx_node: torch.fx.Node) -> str | None:
    """The path of the innermost module whose forward made the call; "" is the root."""
    stack = fx_node.meta.get("nn_module_stack")
    if not stack:
        return None
    path: str = list(stack.values())[-1][0]
    return path.split("@")[0]


class _ProgramWriter:
    """Carries a plan out on a copy of a functional program; tensors are shared, not copied."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._reader = ProgramReader(program)
        self._reader.graph()
        self._graph = torch.fx.Graph()
        copied: dict[torch.fx.Node, torch.fx.Node] = {}
        result = self._graph.graph_copy(program.graph, copied)
        self._graph.output(result).meta = dict(program.graph.output_node().meta)
        for old, new in copied.items():
            new.name = old.name  # a copy renames what shadows a builtin, such as "input"
        self._nodes = {old.name: new for old, new in copied.items()}
        self._specs = list(program.graph_signature.input_specs)
        self._state = dict(program.state_dict)

    def write(self, plan: Plan, weights: Weights) -> ExportedProgram:
        for _, after in plan.changed():
            fx_node = self._nodes[self._reader.native[after.name]]
            if after.name in weights:
                for role, array in weights[after.name].items():
                    self._replace(fx_node, after, role, to_tensor(array))
            elif isinstance(after.op, Affine):
                self._rewrite_affine(fx_node, after)
        for node in plan.dissolved():
            self._dissolve(self._nodes[self._reader.native[node.name]])
        return self._finished()

    def _replace(self, fx_node: torch.fx.Node, node: Node, role: str, tensor: torch.Tensor) -> None:
        """Pass `tensor` for the argument `role`, as the parameter of that name if it is free."""
        index = self._index(fx_node, role)
        old = fx_node.args[index] if index < len(fx_node.args) else None
        if isinstance(old, torch.fx.Node) and old.op == "placeholder" and len(old.users) == 1:
            spec = self._spec(old)
            assert spec.target is not None
            self._state[spec.target] = torch.nn.Parameter(tensor, requires_grad=False)
            position = self._specs.index(spec)
            self._specs[position] = replace(spec, kind=InputKind.PARAMETER, persistent=None)
            return
        placeholder = self._stored(f"{self._stem(node)}.{role}", tensor)
        padding = [None] * (index + 1 - len(fx_node.args))
        arguments = [*fx_node.args, *padding]
        arguments[index] = placeholder
        fx_node.args = tuple(arguments)

    def _stem(self, node: Node) -> str:
        """What to call the parameters of a node: like its module, if it has one."""
        weight = self._reader.arguments[node.name].get("weight", "")
        return weight.removesuffix(".weight") if weight.endswith(".weight") else node.name

    def _stored(self, name: str, tensor: torch.Tensor) -> torch.fx.Node:
        """A new stored parameter; its placeholder goes before the first input of the user."""
        taken = set(self._state) | set(self._program.constants)
        unique, n = name, 1
        while unique in taken:
            unique, n = f"{name}_{n}", n + 1
        at = next(
            (i for i, spec in enumerate(self._specs) if spec.kind is InputKind.USER_INPUT),
            len(self._specs),
        )
        placeholders = [n for n in self._graph.nodes if n.op == "placeholder"]
        anchor = placeholders[at] if at < len(placeholders) else next(iter(self._graph.nodes))
        with self._graph.inserting_before(anchor):
            made = self._graph.placeholder(f"p_{unique.replace('.', '_').replace('#', '_')}")
        made.meta["val"] = self._fake(tensor)
        self._state[unique] = torch.nn.Parameter(tensor, requires_grad=False)
        self._specs.insert(
            at, InputSpec(InputKind.PARAMETER, TensorArgument(made.name), unique, None)
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
            stored = dict(stored_tensors(self._program).values())
            mean, var = (stored[arguments[role]] for role in ("running_mean", "running_var"))
            eps = float(fx_node.args[self._index(fx_node, "eps")])  # type: ignore[arg-type]
            gamma = affine.scale * np.sqrt(aten.float64(var) + eps)
            beta = affine.shift + aten.float64(mean) * affine.scale
            for role, numbers in (("weight", gamma), ("bias", beta)):
                self._replace(fx_node, node, role, torch.from_numpy(numbers).to(mean.dtype))
            return
        source = self._source(fx_node)
        like = source.meta["val"]
        scaling = node.op.holds == "scale"
        numbers = affine.scale if scaling else affine.shift
        shape = [-1 if axis == affine.axis else 1 for axis in range(like.ndim)]
        lined = torch.from_numpy(numbers.reshape(shape if affine.axis is not None else ()))
        constant = self._stored(f"{node.name}.value", lined.to(like.dtype))
        fx_node.target = torch.ops.aten.mul.Tensor if scaling else torch.ops.aten.add.Tensor
        fx_node.args, fx_node.kwargs = (source, constant), {}

    def _dissolve(self, fx_node: torch.fx.Node) -> None:
        source = self._source(fx_node)
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
        for node in list(self._graph.nodes):
            if node.op == "placeholder" and not node.users:
                spec = self._spec(node)
                if spec.kind in _STORED and spec.target not in self._program.constants:
                    self._specs.remove(spec)
                    self._state.pop(str(spec.target), None)
                    self._graph.erase_node(node)
        old = self._program.graph_signature
        signature = type(old)(list(self._specs), list(_renamed(old.output_specs, self._graph)))
        root = torch.fx.GraphModule({}, self._graph)
        root.meta.update(self._program.graph_module.meta)
        return ExportedProgram(
            root,
            self._graph,
            signature,
            self._state,
            self._program.range_constraints,
            self._program.module_call_graph,
            self._program.example_inputs,
            self._program.constants,
            verifiers=self._program.verifiers,
        )


def _renamed(specs: Sequence[Any], graph: torch.fx.Graph) -> Iterator[Any]:
    """The output specs with the names of what the graph now returns."""
    returned = graph.output_node().args[0]
    assert isinstance(returned, list | tuple)
    for spec, value in zip(specs, returned, strict=True):
        named = isinstance(value, torch.fx.Node) and isinstance(spec.arg, TensorArgument)
        yield replace(spec, arg=TensorArgument(value.name)) if named else spec


def _tensor(fx_node: torch.fx.Node) -> torch.Tensor | None:
    """The (fake) tensor of a node, the first of several; None for sizes and the like."""
    value = fx_node.meta.get("val")
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, torch.Tensor) else None


def _shape(tensor: torch.Tensor) -> Shape:
    return tuple(size if isinstance(size, int) else str(size) for size in tensor.shape)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
