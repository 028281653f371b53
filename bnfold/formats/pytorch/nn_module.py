"""torch.nn.Module: captured with torch.export, folded in place of its own modules.

The graph comes from an ExportedProgram of the module, or of those parts of it that can be captured
(see capture.py); every BatchNorm outside of these is kept, with the line that stopped torch.
The result is a copy of the module with new weights in the layers that absorbed an affine, and
nn.Identity where the affine was (module_editor.py). Where the class of a submodule stands in the
way, the smallest one around it is generated anew (generating.py), unless classes are to be kept.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bnfold.algebra.graph import Graph, Node, Opaque
from bnfold.algebra.plan import Plan
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal, listed
from bnfold.algebra.rounding import Weights
from bnfold.errors import ModelError, UsageError, first_line
from bnfold.formats.capabilities import Damage, Intermediates
from bnfold.formats.model import Format, Model
from bnfold.formats.pytorch.capture import Capture, capture, copied, export
from bnfold.formats.pytorch.checkpoint import Surroundings
from bnfold.formats.pytorch.conventions import take_fused_form
from bnfold.formats.pytorch.damage import damages
from bnfold.formats.pytorch.enclosing import Enclosures
from bnfold.formats.pytorch.exported_program import ExportedProgramModel
from bnfold.formats.pytorch.failure import found_in, line_of
from bnfold.formats.pytorch.generating import Generator
from bnfold.formats.pytorch.identifiers import require_names
from bnfold.formats.pytorch.indices import integers_taken
from bnfold.formats.pytorch.intermediates import showing
from bnfold.formats.pytorch.module_editor import ModuleEditor, put_in_place
from bnfold.formats.pytorch.precision import in_precision, of_type
from bnfold.formats.pytorch.preprocessing import preprocessed
from bnfold.formats.pytorch.program_names import operators
from bnfold.formats.pytorch.program_reader import ProgramReader
from bnfold.formats.pytorch.quantization import require_float_operators
from bnfold.formats.pytorch.suggestion import suggest_shapes
from bnfold.formats.pytorch.tensors import dtype_of
from bnfold.formats.pytorch.wrapping import require_weights, unwrapped
from bnfold.formats.pytorch.writing import save
from bnfold.inputs import Inputs
from bnfold.preprocessing import Contract
from bnfold.processes.supervision import running
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import Integers, Runner, Sample, TensorSpec
from bnfold.runtimes.torch_eager import TorchRunner, to_tensor


class ModuleModel(Model):
    """A module in eval mode: a copy, so that the caller's own is never touched."""

    format = Format.MODULE

    def __init__(
        self,
        module: nn.Module,
        notes: tuple[str, ...] = (),
        surroundings: Surroundings | None = None,
    ) -> None:
        """`surroundings` are what its file holds around the module."""
        self._surroundings = surroundings or Surroundings()
        module, wrappers = unwrapped(module)
        require_names(module)
        require_weights(module)
        notes = (*notes, *wrappers)
        training = [name or "the model" for name, m in module.named_modules() if m.training]
        if training:
            notes = (*notes, f"it was in train mode ({training[0]}); put into eval mode")
        self._module = copied(module).eval()
        baked = bake_parametrizations(self._module)
        self.notes = (
            *notes,
            *(f"the parametrization of {name} was made permanent" for name in baked),
        )
        self._program: tuple[Sample, Any, ExportedProgramModel] | None = None
        """The sample and sizes that `capture` was asked for last, and what it gave."""
        self._reader: ProgramReader | None = None
        self._generator: Generator | None = None
        self._whole: bool | None = None
        """Whether the model itself may be generated, once that is known."""

    @property
    def native(self) -> nn.Module:
        return self._module

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        dtype = next((p.dtype for p in self._module.parameters() if p.is_floating_point()), None)
        name = dtype_of(dtype or torch.float32)
        own = [p for p in self._parameters() if not _is_variadic(p)]
        wanted = [p for p in own if p.default is p.empty] or own[:1]
        return tuple(TensorSpec(p.name, name, None) for p in wanted)

    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self._module.forward).parameters.values())

    def suggest(self) -> tuple[int, ...] | None:
        """An input shape that works, guessed from the first layer; None if none was found."""
        return suggest_shapes(self._module, self._module.modules())

    def cast(self, dtype: str) -> ModuleModel:
        """The module with all its floating-point parameters and buffers in `dtype`."""
        if of_type(self._module, dtype):
            return self
        result = copy.copy(self)
        result._module = in_precision(self._module, dtype)
        result._reader = result._generator = result._program = result.origin = None
        return result

    def preprocessed(self, contract: Contract, inputs: Inputs) -> ModuleModel:
        named = self._arguments()
        names = {spec.name: named.get(spec.name, spec.name) for spec in inputs.specs}
        return ModuleModel(preprocessed(self._module, contract, names), self.notes)

    def capture(
        self, sample: Sample, dynamic: Mapping[str, Mapping[int, str]] | None = None
    ) -> ExportedProgramModel:
        """The module as an ExportedProgram; `dynamic` names the free sizes of each input.

        Asked again for the same sample and sizes, it gives the same program.
        """
        known = self._program
        if known is None or known[0] is not sample or known[1] != dynamic:
            known = self._program = sample, dynamic, self._exported(sample, dynamic)
        return known[2]

    def _exported(
        self, sample: Sample, dynamic: Mapping[str, Mapping[int, str]] | None
    ) -> ExportedProgramModel:
        args, kwargs = self._bound(sample)
        shapes = self._dynamic_shapes(sample, dynamic)
        self._try(args, kwargs, sample)
        try:
            program = export(copied(self._module, share=True), args, kwargs, shapes)
        except Exception as error:
            hint = (
                "change that, or take the file of torch.jit.script(model); fold --form module works"
            )
            if "Constraints violated" in str(error) or "specialized" in str(error):
                hint = "give the size that cannot vary as a number"
            raise ModelError(self._not_captured(found_in(error)), hint) from error
        return ExportedProgramModel(program)

    def read(self, sample: Sample | None) -> Graph:
        if sample is None:
            raise UsageError("an nn.Module is read by running it, which needs an input")
        args, kwargs = self._bound(sample)
        self._try(args, kwargs, sample)
        found = capture(self._module, args, kwargs)
        require_float_operators(operators(found.program))
        self.whole = found.parts == ("",)
        self._reader = ProgramReader(found.program, found.names)
        graph = self._graph = self._reader.graph()
        self._example = args, kwargs
        self._generator = self._whole = None
        notes = (*self.notes, *self._partly(found), *self._unreached(found))
        self.notes = tuple(dict.fromkeys(notes))
        return replace(
            graph, nodes=(*graph.nodes, *(_kept(*each) for each in found.missing.items()))
        )

    def veto(self, plan: Plan) -> Mapping[str, Refusal]:
        """Also chooses the submodules that have to be generated for `plan`."""
        if self._whole is None:
            self._whole = not self.keep_classes and self._takes_the_whole()
        return self._vetoed(plan, self._whole)

    def _vetoed(self, plan: Plan, whole: bool) -> Mapping[str, Refusal]:
        editor = ModuleEditor(self._module, self._captured())
        unfit, watched = editor.unfit(plan), editor.watched(plan)
        if not self.keep_classes and (unfit or self._generator):
            unfit = self._generating().settle(unfit, whole=whole)
        return {**unfit, **watched}

    def _takes_the_whole(self) -> bool:
        """Whether more BatchNorms fold if the class of the model itself is given up, too."""
        kept: list[int] = []
        for whole in (False, True):
            locked: dict[str, Refusal] = {}
            while trouble := self._vetoed(plan := make_plan(self._graph, locked), whole):
                locked |= trouble
            kept.append(plan.batchnorms.kept)
            if not kept[0]:
                break
        return kept[-1] < kept[0]

    def write(self, plan: Plan, weights: Weights) -> ModuleModel:
        result = copy.copy(self)
        result._module = copied(self._module, share=True)
        editor = ModuleEditor(result._module, self._captured())
        result._reader = result._generator = result._program = None
        if self._generator is None:
            editor.write(plan, weights)
            self._take_fused_form(result)
            return result
        editor.write(plan, weights, self._generator.covers)
        paths = dict(result._module.named_modules(remove_duplicate=False))
        for path, made in self._generator.write(plan, weights).items():
            if path:
                put_in_place(result._module, paths[path], made)
            else:
                result._module = made
        self._take_fused_form(result)
        return result

    def _take_fused_form(self, result: ModuleModel) -> None:
        if self.format is Format.MODULE:
            take_fused_form(self._module, result._module)

    def told(self) -> tuple[str, ...]:
        return () if self._generator is None else tuple(self._generator.told())

    def save(self, path: Path) -> None:
        save(self._surroundings.around(self._module), path)

    def truth(self) -> Runner:
        return TorchRunner(copy.deepcopy(self._module).double(), self._arguments(), wide=True)

    def damages(self) -> Iterator[Damage]:
        def made(make: Callable[[float], nn.Module], size: float) -> ModuleModel:
            result = copy.copy(self)
            result._module = make(size)
            result._reader = result._program = None
            return result

        for kind, where, make in damages(self._module):
            yield Damage(kind, where, partial(made, make))

    def intermediates(self, provider: str) -> Intermediates:
        values: dict[str, tuple[str, ...]] = {}
        wide = showing(copy.deepcopy(self._module).double(), {})
        return Intermediates(
            TorchRunner(showing(self._module, values), self._arguments()),
            TorchRunner(wide, self._arguments(), wide=True),
            values,
            {},
        )

    def integers(self, sample: Sample) -> Mapping[str, Integers]:
        return integers_taken(self.runners()[0], sample)

    def runners(self, protocol: Protocol = DEFAULT) -> list[Runner]:
        found: list[Runner] = [TorchRunner(self._module, self._arguments())]
        if "cuda" in protocol.places and torch.cuda.is_available():
            on_gpu = copy.deepcopy(self._module).cuda()
            found.append(TorchRunner(on_gpu, self._arguments(), device="cuda"))
        return found

    def _not_captured(self, failure: str) -> str:
        return f"torch.export cannot capture {type(self._module).__name__}: {failure}"

    def _partly(self, found: Capture) -> Iterator[str]:
        """That only parts were captured, and which."""
        if not self.whole:
            parts = f"only {listed(found.parts)}" if found.parts else "nothing in it"
            yield f"{self._not_captured(found.failure)}; {parts} could be folded"

    def _unreached(self, found: Capture) -> Iterator[str]:
        """BatchNorms that did not run: the plan does not list them."""
        reader = self._captured()
        modules = dict(self._module.named_modules(remove_duplicate=False))
        read = {name.rpartition(".")[0] for name, users in reader.users.items() if users}
        reached = {modules.get(path) for path in read.union(reader.scopes.values())}
        for path, child in self._module.named_modules():
            norm = isinstance(child, nn.modules.batchnorm._NormBase)
            if norm and child not in reached and path not in found.missing:
                yield f"the BatchNorm {path} does not run on this input; it is left as it is"

    def _generating(self) -> Generator:
        if self._generator is None:
            around = Enclosures(self._module, *self._example)
            self._generator = Generator(self._module, self._captured(), self._graph, around)
        return self._generator

    def _captured(self) -> ProgramReader:
        assert self._reader is not None, "read() comes first"
        return self._reader

    def _arguments(self) -> dict[str, str | None]:
        """Parameters of forward that have a default go by keyword, those before by position."""
        return {
            p.name: p.name if p.kind is p.KEYWORD_ONLY or p.default is not p.empty else None
            for p in self._parameters()
            if p.kind is not p.VAR_KEYWORD
        }

    def _bound(self, sample: Sample) -> tuple[tuple[Any, ...], dict[str, Any]]:
        names = [p.name for p in self._parameters()]
        variadic = any(p.kind is p.VAR_KEYWORD for p in self._parameters())
        if not variadic and (unknown := [name for name in sample if name not in names]):
            raise UsageError(
                f"{type(self._module).__name__}.forward has no input {unknown[0]!r}",
                f"it takes: {', '.join(names)}",
            )
        tensors = {name: to_tensor(array) for name, array in sample.items()}
        leading: list[torch.Tensor] = []
        for parameter in self._parameters():
            if parameter.name not in tensors or parameter.kind is parameter.KEYWORD_ONLY:
                break
            leading.append(tensors.pop(parameter.name))
        return tuple(leading), tensors

    def _try(self, args: tuple[Any, ...], kwargs: dict[str, Any], sample: Sample) -> None:
        try:
            with torch.no_grad(), running(self, sample):
                copied(self._module, share=True)(*args, **kwargs)
        except Exception as error:
            shapes = ", ".join("x".join(map(str, t.shape)) for t in (*args, *kwargs.values()))
            shape = None if "alloc" in str(error) else self.suggest()
            hint = f"try --input {'x'.join(map(str, shape))}" if shape else None
            if "Long, Int" in str(error):
                hint = "say which input holds integers: --input name=shape:int64"
            if isinstance(error, AttributeError | NameError | ImportError | NotImplementedError):
                raise ModelError(
                    f"{type(self._module).__name__} fails{line_of(error)}: {first_line(error)}",
                    "the model, or the code of its class, is not what it was saved with",
                ) from error
            raise UsageError(
                f"{type(self._module).__name__} does not run on an input of {shapes}"
                f"{line_of(error)}: {first_line(error)}",
                hint,
            ) from error

    def _dynamic_shapes(
        self, sample: Sample, dynamic: Mapping[str, Mapping[int, str]] | None
    ) -> Any:
        if dynamic is None or not any(dynamic.values()):
            return None
        own = [p.name for p in self._parameters() if p.kind is not p.VAR_KEYWORD]
        for name, axes in dynamic.items():
            if axes and name not in own:
                raise UsageError(
                    f"torch.export cannot vary the sizes of {name!r}, a free keyword argument",
                    "give its sizes as numbers",
                )
        return {
            name: dict.fromkeys(dynamic.get(name, {}), torch.export.Dim.DYNAMIC) for name in sample
        }


def _kept(path: str, why: str) -> Node:
    """A BatchNorm that the graph does not see."""
    refusal = Refusal(Reason.NOT_CAPTURED, f"{path}: {why}", path)
    return Node(path, "batch_norm", Opaque(refusal, batchnorm=True), (), ())


def _is_variadic(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def bake_parametrizations(module: nn.Module) -> list[str]:
    """Replace computed weights (weight_norm, spectral_norm, pruning) by their values in eval.

    Gives their names. Both of torch's ways are covered: parametrizations, and the older hooks.
    """
    baked: list[str] = []
    for path, child in list(module.named_modules()):
        if parametrize.is_parametrized(child):
            child.__class__ = _own_class(child)
            for name in list(child.parametrizations):
                parametrize.remove_parametrizations(child, name, leave_parametrized=True)
                baked.append(f"{path}.{name}".lstrip("."))
        for hook in list(child._forward_pre_hooks.values()):
            if isinstance(hook, BasePruningMethod):
                prune.remove(child, hook._tensor_name)  # type: ignore[no-untyped-call]
                baked.append(f"{path}.{hook._tensor_name}".lstrip("."))
            if isinstance(hook, WeightNorm | SpectralNorm):
                undo = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
                undo(child, hook.name)
                baked.append(f"{path}.{hook.name}".lstrip("."))
        _forget_older_names(child)
    return baked


def _forget_older_names(module: nn.Module) -> None:
    """Drop the hook by which weight_norm loads older weights: no file can hold it."""
    hooks = module._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if "weight_norm.<locals>" in getattr(getattr(hook, "hook", hook), "__qualname__", ""):
            del hooks[key]


def _own_class(module: nn.Module) -> type[nn.Module]:
    """A class like the module's: removing a parametrization edits the class, which copies share."""
    kind = type(module)
    return type(kind.__name__, kind.__bases__, dict(vars(kind)))
