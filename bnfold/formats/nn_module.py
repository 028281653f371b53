"""torch.nn.Module: captured with torch.export, folded in place of its own modules.

The graph comes from an ExportedProgram of the module; the result is a copy of the module with new
weights in the layers that absorbed an affine, and nn.Identity where the affine was. Both the class
and the structure stay.

What this form cannot carry out is vetoed, node by node:
    SHARED_MODULE        the layer is called more than once, or its parameter is read elsewhere
    NOT_A_PLAIN_MODULE   hooks look on, the affine is not a module of its own, or the weight is
                         computed by the module
"""

from __future__ import annotations

import copy
import inspect
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from bnfold.errors import ModelError, UsageError
from bnfold.formats.exported_program import ExportedProgramModel, ProgramReader
from bnfold.formats.model import Format, Model
from bnfold.formats.suggestion import suggest_shapes
from bnfold.graph import Affine, Graph, Identity, Node, params
from bnfold.plan import Plan
from bnfold.refusal import Reason, Refusal
from bnfold.rounding import Weights
from bnfold.run import Runner, Sample, TensorSpec
from bnfold.run.torch_eager import TorchRunner, to_tensor


class ModuleModel(Model):
    """A module in eval mode: a copy, so that the caller's own is never touched."""

    format = Format.MODULE

    def __init__(self, module: nn.Module, notes: tuple[str, ...] = ()) -> None:
        training = [name or "the model" for name, m in module.named_modules() if m.training]
        if training:
            notes = (*notes, f"it was in train mode ({training[0]}); put into eval mode")
        self._module = _copied(module).eval()
        self.notes = (*notes, *_bake_parametrizations(self._module))
        self._reader: ProgramReader | None = None
        self._graph: Graph | None = None

    @property
    def native(self) -> nn.Module:
        return self._module

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        dtype = next((p.dtype for p in self._module.parameters() if p.is_floating_point()), None)
        name = str(dtype or torch.float32).removeprefix("torch.")
        return tuple(TensorSpec(p.name, name, None) for p in self._parameters() if _wanted(p))

    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self._module.forward).parameters.values())

    def suggest(self) -> tuple[int, ...] | None:
        """An input shape that works, guessed from the first layer; None if none was found."""
        return suggest_shapes(self._module, self._module.modules())

    def capture(
        self, sample: Sample, dynamic: Mapping[str, Mapping[int, str]] | None = None
    ) -> ExportedProgramModel:
        """The module as an ExportedProgram; `dynamic` names the free sizes of each input."""
        args, kwargs = self._bound(sample)
        self._try(args, kwargs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(
                    self._module,
                    args,
                    kwargs,
                    dynamic_shapes=self._dynamic_shapes(sample, dynamic),
                    strict=False,
                )
        except Exception as error:
            raise ModelError(
                f"torch.export cannot capture {type(self._module).__name__}{_line_of(error)}: "
                f"{_first_line(error)}",
                "trace it with torch.jit.trace and fold the TorchScript file instead",
            ) from error
        return ExportedProgramModel(program)

    def read(self, sample: Sample | None) -> Graph:
        if sample is None:
            raise UsageError("an nn.Module is read by running it, which needs an input")
        self._reader = ProgramReader(self.capture(sample).functional)
        self._graph = self._reader.graph()
        return self._graph

    def veto(self, plan: Plan) -> Mapping[str, Refusal]:
        editor = _Editor(self._module, self._captured())
        return editor.veto(plan)

    def write(self, plan: Plan, weights: Weights) -> ModuleModel:
        result = copy.copy(self)
        result._module = _copied(self._module, share=True)
        editor = _Editor(result._module, self._captured())
        editor.write(plan, weights)
        result._reader = result._graph = None
        return result

    def save(self, path: Path) -> None:
        torch.save(self._module, path)

    def truth(self) -> Runner:
        return TorchRunner(copy.deepcopy(self._module).double(), self._arguments(), wide=True)

    def runners(self, providers: Sequence[str]) -> list[Runner]:
        found: list[Runner] = [TorchRunner(self._module, self._arguments())]
        if "cuda" in providers and torch.cuda.is_available():
            on_gpu = copy.deepcopy(self._module).cuda()
            found.append(TorchRunner(on_gpu, self._arguments(), device="cuda"))
        return found

    def _captured(self) -> ProgramReader:
        assert self._reader is not None, "read() comes first"
        return self._reader

    def _arguments(self) -> dict[str, str | None]:
        """Every parameter of forward goes by keyword, except those that can only be positional."""
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
        return {p.name: None if p.kind in positional else p.name for p in self._parameters()}

    def _bound(self, sample: Sample) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = [p.name for p in self._parameters()]
        variadic = any(p.kind is p.VAR_KEYWORD for p in self._parameters())
        if not variadic and (unknown := [name for name in sample if name not in names]):
            raise UsageError(
                f"{type(self._module).__name__}.forward has no input {unknown[0]!r}",
                f"it takes: {', '.join(names)}",
            )
        tensors = {name: to_tensor(array) for name, array in sample.items()}
        leading = names[: len(tensors)] == list(tensors)
        return (tuple(tensors.values()), {}) if leading else ((), tensors)

    def _try(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            with torch.no_grad():
                self._module(*args, **kwargs)
        except Exception as error:
            shapes = ", ".join("x".join(map(str, t.shape)) for t in (*args, *kwargs.values()))
            shape = self.suggest()
            raise UsageError(
                f"{type(self._module).__name__} does not run on an input of {shapes}"
                f"{_line_of(error)}: {_first_line(error)}",
                f"try --input {'x'.join(map(str, shape))}" if shape else None,
            ) from error

    def _dynamic_shapes(
        self, sample: Sample, dynamic: Mapping[str, Mapping[int, str]] | None
    ) -> Any:
        if not dynamic:
            return None
        return {
            name: dict.fromkeys(dynamic.get(name, {}), torch.export.Dim.DYNAMIC) for name in sample
        }


class _Editor:
    """Maps the nodes of a captured graph to the modules and parameters of one module."""

    def __init__(self, module: nn.Module, reader: ProgramReader) -> None:
        self._root = module
        self._reader = reader
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._readers = Counter(
            name for arguments in reader.arguments.values() for name in arguments.values()
        )

    def veto(self, plan: Plan) -> dict[str, Refusal]:
        refusals = {
            after.name: refusal
            for before, after in plan.changed()
            if (refusal := self._unfit_to_change(before, after))
        }
        gone = {node.name for node in plan.dissolved()}
        for name in gone:
            if refusal := self._unfit_to_dissolve(name, gone):
                refusals[name] = refusal
        return refusals

    def write(self, plan: Plan, weights: Weights) -> None:
        for _, after in plan.changed():
            if isinstance(after.op, Affine):
                self._rewrite_batchnorm(after, after.op)
            for role, array in weights.get(after.name, {}).items():
                owner, attribute = self._address(after.name, role)
                old = getattr(owner, attribute)
                trains = old.requires_grad if old is not None else True
                setattr(owner, attribute, nn.Parameter(to_tensor(array), requires_grad=trains))
        gone = {id(self._modules[self._reader.owners[node.name]]) for node in plan.dissolved()}
        for parent in self._root.modules():
            for name, child in parent._modules.items():
                if id(child) in gone:
                    parent._modules[name] = nn.Identity()

    def _address(self, node: str, role: str) -> tuple[nn.Module, str]:
        """The module and attribute that hold a node's parameter, or will hold its new bias."""
        own = self._modules[self._reader.owners[node]]
        name = self._reader.arguments[node].get(role)
        if name is None:
            return own, role
        path, _, attribute = name.rpartition(".")
        stored = self._modules[path]
        held = getattr(own, attribute, None)
        return (own if held is getattr(stored, attribute, held) else stored), attribute

    def _unfit_to_change(self, before: Node, after: Node) -> Refusal | None:
        name = after.name
        owner = self._modules.get(self._reader.owners.get(name, ""))
        if owner is None:
            return _not_plain(after, "it belongs to no module")
        if _is_watched(owner):
            return _not_plain(after, "hooks on its module would see the change")
        if isinstance(after.op, Affine):
            if not isinstance(owner, nn.modules.batchnorm._NormBase):
                return _not_plain(after, "it is not a BatchNorm module")
            return None if self._calls(name) == 1 else _shared(after)
        for role, _ in params(after.op):
            argument = self._reader.arguments[name].get(role)
            if argument is None:
                if not isinstance(owner, nn.modules.conv._ConvNd | nn.Linear):
                    return _not_plain(after, "its module has no place for a bias")
            elif not self._is_parameter(argument):
                return _not_plain(after, f"its {role} is computed by the module")
            elif self._readers[argument] > 1 and not self._is_untied(owner, name, argument):
                return _shared(after)
        return None

    def _is_parameter(self, name: str) -> bool:
        path, _, attribute = name.rpartition(".")
        module = self._modules.get(path)
        return module is not None and isinstance(getattr(module, attribute, None), torch.Tensor)

    def _calls(self, node: str) -> int:
        owner = self._reader.owners[node]
        return sum(other == owner for other in self._reader.owners.values())

    def _is_untied(self, owner: nn.Module, node: str, argument: str) -> bool:
        """Whether the parameter's other readers are modules that keep their own reference."""
        path, _, attribute = argument.rpartition(".")
        holds = getattr(owner, attribute, None) is getattr(self._modules[path], attribute)
        others = [
            self._modules.get(self._reader.owners.get(other, ""))
            for other, arguments in self._reader.arguments.items()
            if other != node and argument in arguments.values()
        ]
        return holds and all(other is not owner for other in others)

    def _unfit_to_dissolve(self, name: str, gone: set[str]) -> Refusal | None:
        path = self._reader.owners.get(name, "")
        owner = self._modules.get(path)
        label = Node(name, type(owner).__name__, Identity(), (), ())
        if owner is None or not path:
            return _not_plain(label, "it is computed by the model's own forward, not by a module")
        if _is_watched(owner):
            return _not_plain(label, "hooks on its module would see the change")
        rest = [
            other
            for other, other_path in self._reader.owners.items()
            if (other_path == path or other_path.startswith(f"{path}.")) and other not in gone
        ]
        if rest:
            return _not_plain(label, f"its module also computes {rest[0]}")
        return None

    def _rewrite_batchnorm(self, node: Node, op: Affine) -> None:
        module: Any = self._modules[self._reader.owners[node.name]]
        mean, var = (
            tensor.detach().double().cpu().numpy()
            for tensor in (module.running_mean, module.running_var)
        )
        like = module.running_mean
        gamma = op.affine.scale * np.sqrt(var + module.eps)
        beta = op.affine.shift + mean * op.affine.scale
        for attribute, numbers in (("weight", gamma), ("bias", beta)):
            tensor = torch.from_numpy(numbers).to(like)
            setattr(module, attribute, nn.Parameter(tensor))
        module.affine = True


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _not_plain(node: Node, why: str) -> Refusal:
    return Refusal(
        Reason.NOT_A_PLAIN_MODULE, f"{node.name}: {why}; the graph form can do it", node.name
    )


def _shared(node: Node) -> Refusal:
    why = f"{node.name}: its module serves several calls; the graph form can do it"
    return Refusal(Reason.SHARED_MODULE, why, node.name)


def _wanted(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic


def _copied(module: nn.Module, *, share: bool = False) -> nn.Module:
    """A deep copy of the structure, and of the tensors unless they are to be shared."""
    tensors = [*module.parameters(), *module.buffers()] if share else []
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be copied: {_first_line(error)}",
            "fold never changes the model it is given, so it must support copy.deepcopy",
        ) from error


def _bake_parametrizations(module: nn.Module) -> tuple[str, ...]:
    """Replace computed weights (weight_norm, spectral_norm) by the values they have in eval."""
    notes: list[str] = []
    for path, child in list(module.named_modules()):
        if not parametrize.is_parametrized(child):
            continue
        for name in list(child.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(child, name, leave_parametrized=True)
            notes.append(f"the parametrization of {path}.{name} was made permanent")
    return tuple(notes)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _line_of(error: BaseException) -> str:
    """Where in the user's own code it happened: " at net.py:12 (x = self.conv(x))"."""
    inside = str(Path(torch.__file__).parent)
    here = str(Path(__file__).parent.parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((inside, here, "<"))
    ]
    if not frames:
        return ""
    last = frames[-1]
    return f" at {Path(last.filename).name}:{last.lineno} ({last.line})"
