"""Weights without a network: state_dict files and safetensors, with a factory for the network.

A folded network has other parameters than its class makes: no BatchNorm, and biases that were not
there. A folded file says so in its metadata, so that the class can be fitted to it again.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnfold.algebra.plan import Plan
from bnfold.algebra.rounding import Weights
from bnfold.errors import ModelError, UsageError
from bnfold.files import spelled
from bnfold.formats.model import Format
from bnfold.formats.pytorch.allowing import resolve
from bnfold.formats.pytorch.capture import copied
from bnfold.formats.pytorch.checkpoint import METADATA, Entries, Surroundings
from bnfold.formats.pytorch.identifiers import require_names
from bnfold.formats.pytorch.locating import locate
from bnfold.formats.pytorch.nn_module import ModuleModel, bake_parametrizations
from bnfold.formats.pytorch.places import missing_in
from bnfold.formats.pytorch.writing import save, save_safetensors

_MARK = "bnfold"

Changes = Mapping[str, list[str]]
"""What was done to the structure of a network, as names of its modules and parameters:

plain       computed weights that were made permanent
identity    modules that are nn.Identity now
parameters  those that were not there

A file may say so much and no more: a name leads from module to module by what these hold, and a
parameter goes where a layer of torch has an empty place for one.
"""

_KINDS = ("plain", "identity", "parameters")

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase)
"""The layers that a fold gives parameters that they had not."""


@dataclass(frozen=True, slots=True)
class Factory:
    """How to build the network: `address` as pkg.mod:callable, `arguments` as parsed JSON."""

    address: str
    arguments: Any = None

    def build(self) -> nn.Module:
        make = resolve(self.address)
        try:
            if isinstance(self.arguments, Mapping):
                made = make(**self.arguments)
            else:
                made = make(*(self.arguments or ()))
        except Exception as error:
            raise UsageError(
                f"{self.address} cannot be called: {error}",
                "its arguments go into --model-args, as a JSON list or object",
            ) from error
        if not isinstance(made, nn.Module):
            raise UsageError(f"{self.address} gives a {type(made).__name__}, not an nn.Module")
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
    ) -> None:
        """`changes` are those that already turned the factory's network into `module`."""
        super().__init__(module, surroundings.notes if surroundings else (), surroundings)
        self._changes = _joined(changes or {}, _changes(module, self.native))

    def write(self, plan: Plan, weights: Weights) -> StateDictModel:
        result = super().write(plan, weights)
        assert isinstance(result, StateDictModel)
        result._changes = _joined(self._changes, _changes(self.native, result.native))
        return result

    def save(self, path: Path) -> None:
        state: Any = OrderedDict(self._surroundings.named(self.native.state_dict()))
        state.update(self._surroundings.rest)
        setattr(state, _MARK, self._changes)
        save(self._surroundings.around(state), path)


class SafetensorsModel(StateDictModel):
    format = Format.SAFETENSORS

    def save(self, path: Path) -> None:
        """Tied tensors are written once for each name: the format knows no ties."""
        state = self._surroundings.named(self.native.state_dict())
        state |= self._surroundings.rest
        separate = {name: tensor.clone().contiguous() for name, tensor in state.items()}
        metadata = {**self._surroundings.metadata, _MARK: json.dumps(self._changes)}
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
    made = factory.build()
    require_names(made)
    made.eval()

    def network(entries: Entries) -> nn.Module:
        changes = _changes_of(path, entries.entries)
        if not any(changes.values()):
            return made
        module = copied(made)
        try:
            fit(module, changes)
        except ValueError as error:
            raise ModelError(
                f"{path} was folded from another network than {factory.address} builds: {error}",
                "name the factory that it was folded with",
            ) from error
        return module

    found = locate(path, state, network, wanted)
    _load(path, found.network, found.tensors, factory)
    return kind(found.network, _changes_of(path, found.entries), found.surroundings)


def read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(spelled(path), framework="pt") as file:
            state: Any = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            metadata = file.metadata() or {}
            setattr(state, _MARK, json.loads(metadata.get(_MARK, "{}")))
            setattr(state, METADATA, metadata)
    except Exception as error:
        raise ModelError(
            f"{path} looks like safetensors but cannot be read: {error}", "download it again"
        ) from error
    result: Mapping[str, Any] = state
    return result


def _changes_of(path: Path, entries: Mapping[str, Any]) -> Changes:
    """What a folded file says was done to the network of its `entries`; of any other, nothing."""
    changes = getattr(entries, _MARK, None) or {}
    if not isinstance(changes, Mapping) or not all(map(_are_names, changes.values())):
        raise ModelError(
            f"{path} is damaged: its metadata {_MARK!r} are not lists of names",
            "fold the model again",
        )
    if unknown := next((kind for kind in changes if kind not in _KINDS), None):
        raise ModelError(
            f"{path} was folded by another bnfold: it says {unknown!r:.200} of its network",
            "open it with the bnfold that wrote it",
        )
    return {kind: list(changes.get(kind, ())) for kind in _KINDS}


def _are_names(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and all(isinstance(name, str) for name in entry)


def fit(module: nn.Module, changes: Changes) -> None:
    """Make the changes of structure to a network as its factory builds it.

    Raises ValueError for a name that leads to nothing which could be changed so.
    """
    if plain := changes.get("plain"):
        bake_parametrizations(module)
        state = module.state_dict()
        if missing := next((name for name in plain if name not in state), None):
            raise ValueError(f"there is no weight {missing!r:.200}")
    for name in changes.get("parameters", ()):
        path, _, attribute = name.rpartition(".")
        layer = _submodules(module).get(path)
        if not isinstance(layer, _LAYERS) or layer._parameters.get(attribute, layer) is not None:
            raise ValueError(f"there is no place for a parameter {name!r:.200}")
        like = next((p for p in module.parameters()), torch.zeros(()))
        layer._parameters[attribute] = nn.Parameter(torch.zeros(_size(layer), dtype=like.dtype))
    for name in changes.get("identity", ()):
        path, _, child = name.rpartition(".")
        parent = _submodules(module).get(path)
        if parent is None or parent._modules.get(child) is None:
            raise ValueError(f"there is no module {name!r:.200}")
        parent._modules[child] = nn.Identity()


def _submodules(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.named_modules(remove_duplicate=False))


def _size(layer: nn.Module) -> int:
    """How many numbers a parameter for each channel of the result has."""
    for name in ("out_channels", "out_features", "num_features"):
        if isinstance(size := vars(layer).get(name), int):
            return size
    raise ValueError(f"a {type(layer).__name__} says no number of channels")


def _joined(first: Changes, then: Changes) -> Changes:
    return {what: [*first.get(what, ()), *new] for what, new in then.items()}


def _changes(before: nn.Module, after: nn.Module) -> Changes:
    new = dict(after.named_modules(remove_duplicate=False))
    old = dict(before.named_modules(remove_duplicate=False))
    identity = [
        name
        for name, module in old.items()
        if isinstance(new.get(name), nn.Identity) and not isinstance(module, nn.Identity)
    ]
    had = before.state_dict().keys()
    added = [name for name in after.state_dict() if name not in had]
    plain = [name for name in added if _is_computed(before, name)]
    parameters = [name for name in added if name not in plain]
    return {"plain": plain, "identity": identity, "parameters": parameters}


def _is_computed(module: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    return isinstance(getattr(module.get_submodule(path), attribute, None), torch.Tensor)


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
            f"{path} does not fit {factory.address}: {'; '.join(complaints)}",
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
