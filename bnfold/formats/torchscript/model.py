"""TorchScript: work on the frozen graph, write a frozen module.

Freezing (`torch.jit.freeze`, its numeric rewrites off) inlines every call, makes weights constants
and keeps control flow. The result of a fold is such a module: what `forward` computes, without the
submodules; other exported methods stay, with weights of their own.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnfold.algebra.graph import Conv, Graph, Linear
from bnfold.algebra.plan import Plan
from bnfold.algebra.rounding import Weights
from bnfold.errors import ModelError, UntrustedError, UsageError, first_line
from bnfold.files import spelled
from bnfold.formats.capabilities import Damage
from bnfold.formats.model import Format, Model
from bnfold.formats.pytorch.indices import integers_taken
from bnfold.formats.pytorch.preprocessing import preprocessed
from bnfold.formats.pytorch.quantization import require_float_operators
from bnfold.formats.pytorch.suggestion import first_that_runs
from bnfold.formats.pytorch.tensors import dtype_of
from bnfold.formats.torchscript.attributes import attributes_of, restore, unread
from bnfold.formats.torchscript.bounds import require_few_rounds
from bnfold.formats.torchscript.copies import (
    archived,
    copied,
    in_precision,
    loaded,
    widened,
)
from bnfold.formats.torchscript.damage import damages
from bnfold.formats.torchscript.memory import rename_overwritten
from bnfold.formats.torchscript.names import is_written_plainly, without_names
from bnfold.formats.torchscript.nodes import constant_tensor, walk
from bnfold.formats.torchscript.operators import require_admitted, require_harmless
from bnfold.formats.torchscript.reader import GraphReader
from bnfold.formats.torchscript.shapes import Seen, record
from bnfold.formats.torchscript.writer import GraphEditor
from bnfold.inputs import Inputs
from bnfold.preprocessing import Contract
from bnfold.process_state import quiet
from bnfold.processes.child import RunLostError
from bnfold.processes.supervision import running, trying
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import Integers, Runner, Sample, TensorSpec
from bnfold.runtimes.torch_eager import TorchRunner, named_outputs, to_tensor

_JIT: Any = torch.jit  # untyped in part

_NUMBERS = {"int": "int64", "float": "float64", "bool": "bool"}
"""The types of forward's arguments, beside tensors, that a sample can give, and their dtypes."""

_NAMELESS = "it has names that TorchScript cannot write; forward was taken, without them"

_TRAINED = "the trace was recorded in train mode; export again after model.eval()"
_NOTES = {
    "dropout": f"dropout is active: {_TRAINED}",
    "batch statistics": f"a BatchNorm uses the statistics of the batch: {_TRAINED}",
}


class TorchScriptModel(Model):
    """A ScriptModule in eval mode, with the extra files of its archive."""

    format = Format.TORCHSCRIPT

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        extra_files: Mapping[str, bytes] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """`module` becomes this model's own; `from_module` takes a copy."""
        if not hasattr(module, "forward"):
            raise ModelError(
                "the TorchScript module has no method called forward",
                "export a module whose forward is what is to be deployed",
            )
        inner: Any = module
        if inner._c._get_forward_hooks() or inner._c._get_forward_pre_hooks():
            raise ModelError(
                "the TorchScript module has hooks of its own, which no frozen module can have",
                "wrap it in another module before torch.jit.script: they become part of forward",
            )
        if any(getattr(m, "training", False) for m in module.modules()):
            notes = (*notes, "was in train mode; put into eval mode")
        require_few_rounds(module)
        self._module = module.eval()
        self._extra_files = dict(extra_files or {})
        self._reader: GraphReader | None = None
        self.notes = notes

    @classmethod
    def load(cls, path: Path, *, trust: bool = False) -> TorchScriptModel:
        """The module in `path`; one that could do more than compute only where `trust` allows."""
        try:
            if not trust:
                require_harmless(path)
            with zipfile.ZipFile(path) as archive:
                parts = [name.split("/extra/", 1) for name in archive.namelist()]
            extra_files = {part[1]: "" for part in parts if len(part) == 2}
            with quiet():
                module = _JIT.load(str(spelled(path)), "cpu", _extra_files=extra_files)
            if not trust and hasattr(module, "forward"):
                require_admitted(module, path)
        except UntrustedError:
            raise
        except Exception as error:
            raise ModelError(
                f"{path} looks like TorchScript but cannot be loaded: {first_line(error)}",
                "write it again with torch.jit.save and this version of torch",
            ) from error
        files = {name: _bytes(content) for name, content in extra_files.items()}
        if not is_written_plainly(module):
            return cls(without_names(module), files, (_NAMELESS,))
        return cls(module, files)

    @classmethod
    def from_module(cls, module: torch.jit.ScriptModule) -> TorchScriptModel:
        if not is_written_plainly(module):
            return cls(copied(without_names(module)), notes=(_NAMELESS,))
        return cls(copied(module))

    @property
    def native(self) -> torch.jit.ScriptModule:
        return self._module

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The arguments of `forward` that have no default; a number is an array without axes.

        Raises UsageError if one is neither a tensor nor a number.
        """
        found: list[TensorSpec] = []
        for argument in self._arguments():
            kind = argument.type.annotation_str
            if kind == "Tensor":
                found.append(TensorSpec(argument.name, self._dtype(), None))
            elif argument.has_default_value():
                continue
            elif kind in _NUMBERS:
                found.append(TensorSpec(argument.name, _NUMBERS[kind], ()))
            elif kind != "Optional[Tensor]":
                raise UsageError(
                    f"forward takes {argument.name!r}, a {kind}, which no sample of arrays gives",
                    "wrap the model in a module whose forward takes tensors",
                )
        return tuple(found)

    def suggest(self) -> tuple[int, ...] | None:
        if len(self.inputs) != 1:
            return None
        for node in self.read(None).nodes:
            if isinstance(node.op, Conv | Linear):
                weight = node.op.weight
                kernel = node.op.kernel if isinstance(node.op, Conv) else ()
                channels = node.op.in_channels if isinstance(node.op, Conv) else weight.shape[1]
                dtype: torch.dtype = getattr(torch, weight.dtype)
                return first_that_runs(self._keeping_batch, channels, len(kernel), dtype)
        return None

    def _keeping_batch(self, tensor: torch.Tensor) -> None:
        """Run; fail if a batch of one became another: a `view(-1, n)` accepts any image."""
        outputs = named_outputs(_callable(self._module)(tensor))
        if any(array.ndim and array.shape[0] != 1 for array in outputs.values()):
            raise ValueError("the shape does not fit")

    def read(self, sample: Sample | None) -> Graph:
        """Shapes are those of `sample`, twice as large where its batch is 1."""
        self.require_float()
        frozen = self._frozen()
        seen = {} if sample is None else self._record(frozen, sample)
        self._reader = GraphReader(frozen.graph, seen)
        found = self._reader.read()
        notes = [_NOTES[what] for what in sorted(self._reader.trained)]
        notes += self._changed_by_freezing()
        self.notes = tuple(dict.fromkeys((*self.notes, *notes)))
        return found

    def _changed_by_freezing(self) -> Iterator[str]:
        inner = sum(1 for _ in self._module.modules()) - 1
        if inner:
            yield f"the result has its {inner} submodules written out in forward, without names"
        if others := [name for name in self._other_methods() if not name.startswith("__")]:
            yield f"not folded, but kept as they are: the methods {', '.join(others)}"

    def _other_methods(self) -> list[str]:
        module: Any = self._module
        return sorted(name for name in module._c._method_names() if name != "forward")

    def cast(self, dtype: str) -> TorchScriptModel:
        """Of `forward`, and of the weights that other methods share with it."""
        if self._dtypes().keys() <= {dtype}:
            return self
        return TorchScriptModel(in_precision(self._module, dtype), self._extra_files, self.notes)

    def preprocessed(self, contract: Contract, inputs: Inputs) -> TorchScriptModel:
        names = {spec.name: spec.name for spec in inputs.specs}
        module = preprocessed(copied(self._module), contract, names)
        try:
            scripted = _JIT.script(module)
        except Exception as error:
            raise UsageError(
                f"forward cannot be called after preprocessing: {_last_line(error)}",
                "preprocess the PyTorch module that it was made of",
            ) from error
        return TorchScriptModel(scripted, self._extra_files, self.notes)

    def write(self, plan: Plan, weights: Weights) -> TorchScriptModel:
        assert self._reader is not None, "read() comes first"
        frozen = self._frozen()
        GraphEditor(frozen.graph, self._reader).carry_out(plan, weights)
        return TorchScriptModel(copied(frozen), self._extra_files)

    def save(self, path: Path) -> None:
        """Through memory: torch names the folder inside the archive after the file."""
        path.write_bytes(archived(self._module, self._extra_files))

    def require_float(self) -> None:
        """Raise ModelError if `forward` calls operators of quantized models."""
        module: Any = self._module
        require_float_operators(node.kind() for node in walk(module.inlined_graph))

    def truth(self) -> Runner:
        self.require_float()
        return TorchRunner(_callable(widened(self._module)), self._keywords(), wide=True)

    def damages(self) -> Iterator[Damage]:
        def made(make: Callable[[float], Any], size: float) -> TorchScriptModel:
            return TorchScriptModel(make(size))

        for kind, where, make in damages(self._module):
            yield Damage(kind, where, partial(made, make))

    def integers(self, sample: Sample) -> Mapping[str, Integers]:
        return integers_taken(self.runners()[0], sample)

    def runners(self, protocol: Protocol = DEFAULT) -> list[Runner]:
        """On copies: a BatchNorm in train mode would write to the statistics of the model."""
        devices = ["cpu"]
        if "cuda" in protocol.places and torch.cuda.is_available():
            devices.append("cuda")
        return [
            TorchRunner(_callable(copied(self._module, device)), self._keywords(), device=device)
            for device in devices
        ]

    def deployed(self, provider: str) -> Runner:
        """The module itself, where that is: its copies would count as its memory."""
        if provider == "cpu":
            return TorchRunner(_callable(self._module), self._keywords())
        return super().deployed(provider)

    def _arguments(self) -> list[Any]:
        """What `forward` takes, without self."""
        module: Any = self._module
        return list(module._c._get_method("forward").schema.arguments)[1:]

    def _keywords(self) -> dict[str, str | None]:
        return {argument.name: argument.name for argument in self._arguments()}

    def _dtype(self) -> str:
        """The type of the first float parameter, which a float input has to have."""
        return next(iter(self._dtypes()), "float32")

    def _dtypes(self) -> dict[str, None]:
        """The types of parameters and constants that hold floats, in order."""
        module: Any = self._module
        constants = (constant_tensor(node) for node in walk(module.inlined_graph))
        tensors = (t for t in (*module.parameters(), *constants) if t is not None)
        return {dtype_of(t): None for t in tensors if t.is_floating_point()}

    def _frozen(self) -> Any:
        """A new module whose weights are constants; it shares no memory with this model."""
        archive = archived(self._module, {})
        module = loaded(archive).eval()
        attributes = attributes_of(module, archive)
        kept = [*self._other_methods(), *unread(module, list(attributes))]
        try:
            with quiet(), trying("freezing", 0):  # which computes what is constant
                frozen = _JIT.freeze(module, preserved_attrs=kept, optimize_numerics=False)
                restore(frozen, loaded(archive).eval(), attributes)
        except Exception as error:
            raise ModelError(
                f"the TorchScript module cannot be frozen: {first_line(error)}",
                "export it again with torch.jit.trace",
            ) from error
        rename_overwritten(frozen.graph)
        return frozen

    def _record(self, frozen: Any, sample: Sample) -> dict[str, Seen]:
        """What a run on `sample` makes, with a batch of two if the model runs with that."""
        for attempt in _with_larger_batch(sample):
            try:
                with running(self, attempt):
                    return record(frozen.graph, [frozen._c, *self._bound(attempt)])
            except (RuntimeError, RunLostError, _JIT.Error) as failure:
                error = failure
        shapes = ", ".join("x".join(map(str, array.shape)) for array in sample.values())
        shape = None if "alloc" in str(error) else self.suggest()
        raise UsageError(
            f"the TorchScript model does not run on an input of {shapes}: {_last_line(error)}",
            f"try --input {'x'.join(map(str, shape))}" if shape else None,
        ) from error

    def _bound(self, sample: Sample) -> list[Any]:
        """A value for every argument of `forward`, by name if the sample has its names."""
        by_name = {name: to_tensor(array) for name, array in sample.items()}
        names = [argument.name for argument in self._arguments()]
        if not by_name.keys() <= set(names):
            by_name = dict(zip(names, by_name.values(), strict=False))
        for spec in self.inputs:
            if spec.name not in by_name:
                raise UsageError(
                    f"there is no value for the input {spec.name!r}",
                    "give one --input for each, as name=shape",
                )
        given = _with_numbers(self._arguments(), by_name)
        return [given.get(argument.name, argument.default_value) for argument in self._arguments()]


def _with_larger_batch(sample: Sample) -> Iterator[Sample]:
    """`sample`, after one of twice the batch where that is 1: a size of 1 has two meanings."""
    arrays = [array for array in sample.values() if array.ndim]
    if arrays and all(array.shape[0] == 1 for array in arrays):
        yield {k: np.repeat(a, 2, axis=0) if a.ndim else a for k, a in sample.items()}
    yield sample


def _with_numbers(arguments: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of `given`, as Python numbers where `forward` takes those."""
    kinds = {argument.name: argument.type.annotation_str for argument in arguments}
    return {name: t.item() if kinds.get(name) in _NUMBERS else t for name, t in given.items()}


def _callable(module: Any) -> Callable[..., Any]:
    """`module` as it was written: the executor's own rewrites depend on how often it ran."""
    arguments = list(module._c._get_method("forward").schema.arguments)[1:]

    def run(*positional: Any, **keywords: Any) -> Any:
        with _JIT.optimized_execution(False):
            return module(*positional, **_with_numbers(arguments, keywords))

    return run


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _last_line(error: Exception) -> str:
    """The cause: TorchScript's interpreter puts its own traceback first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ") if lines else type(error).__name__
