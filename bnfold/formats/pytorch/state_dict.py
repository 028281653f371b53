"""Weights without a network: state_dict files and safetensors, with a factory for the network.

Folded weights are written as the class of their network has places for them (class_form.py), so
that it loads them as it loads any others. In the `compact` form the file holds the parameters of
the folded network and nothing else, and only bnfold fits the class to them: in the place of every
module that is gone stands an empty tensor, which no load_state_dict takes, be it strict or not.
Either way the file says what was done to the network (changes.py).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnfold.algebra.plan import Plan
from bnfold.algebra.refusal import Refusal
from bnfold.algebra.rounding import Weights
from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.files import spelled
from bnfold.formats.model import Format
from bnfold.formats.pytorch.allowing import resolve
from bnfold.formats.pytorch.capture import copied
from bnfold.formats.pytorch.changes import MARK, Changes, fit
from bnfold.formats.pytorch.checkpoint import METADATA, Surroundings
from bnfold.formats.pytorch.class_form import ClassForm, undressed
from bnfold.formats.pytorch.identifiers import require_names
from bnfold.formats.pytorch.locating import locate
from bnfold.formats.pytorch.module_editor import ModuleEditor
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.formats.pytorch.places import missing_in
from bnfold.formats.pytorch.wrapping import unwrapped
from bnfold.formats.pytorch.writing import save, save_safetensors
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import Runner
from bnfold.runtimes.torch_eager import TorchRunner

_VERSIONS = "_metadata"
"""The attribute of a state_dict that has the versions of its modules."""

STOPPER = (0, 0)
"""The shape of what stands for a module that is gone: of no parameter of any."""


@dataclass(frozen=True, slots=True)
class Factory:
    """How to build the network: `address` as pkg.mod:callable, `arguments` as parsed JSON.

    `address` may be the callable itself.
    """

    address: str | Callable[..., Any]
    arguments: Any = None

    def __str__(self) -> str:
        if isinstance(self.address, str):
            return self.address
        return getattr(self.address, "__qualname__", repr(self.address))

    def build(self) -> nn.Module:
        make = resolve(self.address) if isinstance(self.address, str) else self.address
        try:
            if isinstance(self.arguments, Mapping):
                made = make(**self.arguments)
            else:
                made = make(*(self.arguments or ()))
        except BnfoldError:
            raise
        except Exception as error:
            raise UsageError(
                f"{self} cannot be called: {error}",
                "its arguments go into --model-args, as a JSON list or object",
            ) from error
        if not isinstance(made, nn.Module):
            raise UsageError(f"{self} gives a {type(made).__name__}, not an nn.Module")
        return made


class StateDictModel(ModuleModel):
    """A module whose file holds its tensors, and what training left beside them."""

    format = Format.STATE_DICT
    keep_classes = True

    def __init__(
        self,
        module: nn.Module,
        changes: Changes | None = None,
        surroundings: Surroundings | None = None,
        own: nn.Module | None = None,
        factory: Factory | None = None,
    ) -> None:
        """`changes` are those that already turned `own`, the network of the class with its weights,
        into `module`; `factory` builds it."""
        super().__init__(module, surroundings.notes if surroundings else (), surroundings)
        first = changes or Changes(compact=False)
        self._class = ClassForm(unwrapped(module if own is None else own)[0])
        self._changes = first.then(Changes.between(module, self.native))
        self._factory = factory
        self.versions = getattr(module.state_dict(), _VERSIONS)
        """What a state_dict says of the versions of its modules; None where it does not."""
        self.compact = first.compact

    @property
    def merging(self) -> bool:
        return self.compact

    def veto(self, plan: Plan) -> Mapping[str, Refusal]:
        unfit = super().veto(plan)
        if self.compact:
            return unfit
        editor = ModuleEditor(self._module, self._captured())
        return {**self._class.unplaced(plan, editor, self._changes), **unfit}

    def write(self, plan: Plan, weights: Weights) -> StateDictModel:
        result = super().write(plan, weights)
        assert isinstance(result, StateDictModel)
        made = Changes.between(self.native, result.native)
        if not self.compact:
            editor = ModuleEditor(self._module, self._captured())
            made = replace(made, homes=self._class.homes(plan, editor))
        result._changes = replace(self._changes.then(made), compact=self.compact)
        return result

    def cast(self, dtype: str) -> StateDictModel:
        result = super().cast(dtype)
        assert isinstance(result, StateDictModel)
        if result is not self:
            result._class = self._class.cast(dtype)
        return result

    def runners(self, protocol: Protocol = DEFAULT) -> list[Runner]:
        """The network itself; and once it is folded, its class with the weights as it has them."""
        found = super().runners(protocol)
        if not self.compact and self._changes.identity:
            loaded = self._class.loaded(self._state())
            found.append(TorchRunner(loaded, self._arguments(), place="cpu in its class"))
        return found

    def save(self, path: Path) -> None:
        state: Any = OrderedDict(self._surroundings.named(self._state()))
        state.update(self._surroundings.rest)
        setattr(state, MARK, self._changes.to_json())
        if self.versions is not None:
            setattr(state, _VERSIONS, self.versions)
        save(self._surroundings.around(state), path)

    def how_to_load(self, path: Path) -> tuple[str, ...]:
        if not self._changes.identity:
            return ()
        factory = repr(str(self._factory or "pkg.mod:factory"))
        arguments = self._factory and self._factory.arguments
        given = f", {arguments!r}" if arguments else ""
        line = f"bnfold.load({str(path)!r}, {factory}{given})"
        if self.compact:
            return "load_state_dict refuses compact weights", f"what loads them: {line}"
        return "its own class loads it as any weights", f"without BatchNorms: {line}"

    def _state(self) -> dict[str, torch.Tensor]:
        """What the file holds."""
        if not self.compact:
            return self._class.dressed(self.native, self._changes)
        stoppers = {name: torch.empty(STOPPER) for name in self._class.within(self._changes)}
        return {**self.native.state_dict(), **stoppers}


class SafetensorsModel(StateDictModel):
    format = Format.SAFETENSORS

    def save(self, path: Path) -> None:
        """Tied tensors are written once for each name: the format knows no ties."""
        state = {**self._surroundings.named(self._state()), **self._surroundings.rest}
        separate = {name: tensor.clone().contiguous() for name, tensor in state.items()}
        metadata = {**self._surroundings.metadata, MARK: json.dumps(self._changes.to_json())}
        save_safetensors(separate, path, metadata)


def build(
    path: Path,
    state: Mapping[str, Any],
    factory: Factory | None,
    kind: type[StateDictModel],
    wanted: str | None = None,
) -> StateDictModel:
    """The network of `factory` with the weights of `path`, which were read as `state`.

    `wanted` is the key or the prefix of the weights to take where there are several.
    """
    if factory is None:
        raise UsageError(
            f"{path} holds weights only, no network",
            "say how to build it: --model pkg.mod:factory (a class or function)",
        )
    module = factory.build()
    require_names(module)
    module.eval()
    own = copied(module, share=True)
    found = locate(path, state, module, wanted)
    changes = Changes.read(path, getattr(found.entries, MARK, None))
    stopped = [n for n, t in found.tensors.items() if changes.compact and t.shape == STOPPER]
    tensors = {name: tensor for name, tensor in found.tensors.items() if name not in stopped}
    try:
        if changes.compact:
            fit(module, changes, {name: tensor.shape for name, tensor in tensors.items()})
        _load(path, module, tensors, factory)
        if not changes.compact:
            own = copied(module, share=True)
            changes = undressed(module, changes)
    except ValueError as error:
        raise ModelError(
            f"{path} was folded from another network than {factory} builds: {error}",
            "name the factory that it was folded with",
        ) from error
    model = kind(module, changes, found.surroundings, own, factory)
    model.versions = getattr(found.entries, _VERSIONS, None)
    return model


def read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(spelled(path), framework="pt") as file:
            state: Any = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            metadata = file.metadata() or {}
            setattr(state, MARK, json.loads(metadata.get(MARK, "{}")))
            setattr(state, METADATA, metadata)
    except Exception as error:
        raise ModelError(
            f"{path} looks like safetensors but cannot be read: {error}", "download it again"
        ) from error
    result: Mapping[str, Any] = state
    return result


def _load(
    path: Path, module: nn.Module, tensors: dict[str, torch.Tensor], factory: Factory
) -> None:
    own = module.state_dict()
    missing = missing_in(tensors, own)
    unexpected = [name for name in tensors if name not in own]
    unequal = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    complaints = [
        f"{what}: {', '.join(names[:6])}{f', … ({len(names)} in all)' if len(names) > 6 else ''}"
        for what, names in (
            ("missing in the file", missing),
            ("unknown to the network", unexpected),
            ("of another shape", unequal),
        )
        if names
    ]
    if complaints:
        raise ModelError(
            f"{path} does not fit {factory}: {'; '.join(complaints)}",
            "name the factory that these weights were trained with, and its --model-args",
        )
    dtypes = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtypes.pop())
    _untie(module, tensors)
    module.load_state_dict(tensors, strict=False)


def _untie(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Parameters that the network ties, but the file has different values for, become several."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        other = first.setdefault(parameter, name)
        if name in tensors and other in tensors and not tensors[name].equal(tensors[other]):
            path, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(path), attribute, nn.Parameter(parameter.detach().clone()))
