"""What a fold did to the structure of a network, as the file of its weights says it.

A folded network has other parameters than its class makes: no BatchNorm, and biases that were not
there. With what the file says, the network of the class is fitted to it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnfold.errors import ModelError
from bnfold.formats.pytorch.module_editor import state_sizes
from bnfold.formats.pytorch.nn_module import bake_parametrizations

MARK = "bnfold"
"""Where a file says it: an attribute of the state_dict, or an entry of the metadata."""

LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase)
"""The layers that a fold gives parameters that they had not."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of the modules and parameters of a network that are not as its class makes them.

    plain       computed weights that were made permanent
    identity    modules that are nn.Identity now
    parameters  those that were not there
    reshaped    those of another shape
    homes       new biases -> the BatchNorm right behind, whose shift it is where there is no place
                for the bias

    A file may say so much and no more: a name leads from module to module by what these hold, and a
    parameter goes where a layer of torch has an empty place for one. In its `compact` form a file
    holds the parameters of the network as it is; otherwise as the class has places for them
    (class_form.py).
    """

    plain: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    homes: Mapping[str, str] = field(default_factory=dict)
    compact: bool = True

    @classmethod
    def between(cls, before: nn.Module, after: nn.Module) -> Changes:
        """Those that turned one network into the other."""
        had, has = before.state_dict(), after.state_dict()
        new, old = submodules(after), submodules(before)
        added = [name for name in has if name not in had]
        plain = tuple(name for name in added if _is_computed(before, name))
        return cls(
            plain,
            tuple(
                name
                for name, module in old.items()
                if isinstance(new.get(name), nn.Identity) and not isinstance(module, nn.Identity)
            ),
            tuple(name for name in added if name not in plain),
            tuple(name for name in has if name in had and has[name].shape != had[name].shape),
        )

    def then(self, later: Changes) -> Changes:
        """Both, one after the other."""
        listed = {
            kind: dict.fromkeys((*getattr(self, kind), *getattr(later, kind))) for kind in _LISTS
        }
        gone = listed["identity"]
        new = [name for name in listed["parameters"] if name.rpartition(".")[0] not in gone]
        other = [n for n in listed["reshaped"] if n.rpartition(".")[0] not in gone and n not in new]
        lists: dict[str, Any] = {kind: tuple(names) for kind, names in listed.items()}
        lists = {**lists, "parameters": tuple(new), "reshaped": tuple(other)}
        return replace(self, **lists, homes={**self.homes, **later.homes})

    @classmethod
    def read(cls, path: Path, said: Any) -> Changes:
        """What a file says. Raises ModelError for what is none of it."""
        said = said or {}
        if not isinstance(said, Mapping) or not all(map(_is_said, said, said.values())):
            raise ModelError(
                f"{path} is damaged: its metadata {MARK!r} are not lists of names",
                "fold the model again",
            )
        known = {each.name for each in fields(cls)}
        if unknown := next((kind for kind in said if kind not in known), None):
            raise ModelError(
                f"{path} was folded by another bnfold: it says {unknown!r:.200} of its network",
                "open it with the bnfold that wrote it",
            )
        lists = {kind: tuple(said.get(kind, ())) for kind in _LISTS}
        return cls(
            **lists, homes=dict(said.get("homes", {})), compact=said.get("compact", bool(said))
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **{kind: list(getattr(self, kind)) for kind in _LISTS},
            "homes": dict(self.homes),
            "compact": self.compact,
        }


_LISTS = ("plain", "identity", "parameters", "reshaped")


def _is_said(kind: Any, entry: Any) -> bool:
    """Whether the entry is of the type that those of its kind have."""
    if kind == "compact":
        return isinstance(entry, bool)
    if kind == "homes":
        if not isinstance(entry, Mapping):
            return False
        entry = [name for pair in entry.items() for name in pair]
    return isinstance(entry, list | tuple) and all(isinstance(name, str) for name in entry)


def fit(module: nn.Module, changes: Changes, shapes: Mapping[str, torch.Size]) -> None:
    """Make the changes to a network as its class makes it; parameters become `shapes`.

    Raises ValueError for a name that leads to nothing which could be changed so.
    """
    if changes.plain:
        bake_parametrizations(module)
        state = module.state_dict()
        if missing := next((name for name in changes.plain if name not in state), None):
            raise ValueError(f"there is no weight {missing!r:.200}")
    for name in changes.reshaped:
        path, _, attribute = name.rpartition(".")
        layer, shape = submodules(module).get(path), shapes.get(name, torch.Size())
        old = layer._parameters.get(attribute) if isinstance(layer, LAYERS) else None
        if layer is None or old is None or old.ndim != len(shape):
            raise ValueError(f"there is no parameter {name!r:.200} of {len(shape)} axes")
        layer._parameters[attribute] = _empty(module, shape)
        state_sizes(layer)
    for name in changes.parameters:
        layer, attribute = place(module, name)
        layer._parameters[attribute] = _empty(module, torch.Size([_size(layer)]))
    for name in changes.identity:
        dissolve(module, name)


def place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The layer that a new parameter goes to, and the attribute. Raises ValueError."""
    path, _, attribute = name.rpartition(".")
    layer = submodules(module).get(path)
    if not isinstance(layer, LAYERS) or layer._parameters.get(attribute, layer) is not None:
        raise ValueError(f"there is no place for a parameter {name!r:.200}")
    return layer, attribute


def dissolve(module: nn.Module, name: str) -> None:
    """Put an nn.Identity in the place of a submodule. Raises ValueError if there is none."""
    path, _, child = name.rpartition(".")
    parent = submodules(module).get(path)
    if parent is None or parent._modules.get(child) is None:
        raise ValueError(f"there is no module {name!r:.200}")
    parent._modules[child] = nn.Identity()


def submodules(module: nn.Module) -> dict[str, nn.Module]:
    return dict(module.named_modules(remove_duplicate=False))


def _empty(module: nn.Module, shape: torch.Size) -> nn.Parameter:
    like = next((p for p in module.parameters()), torch.zeros(()))
    return nn.Parameter(torch.zeros(shape, dtype=like.dtype))


def _size(layer: nn.Module) -> int:
    """How many numbers a parameter for each channel of the result has."""
    for name in ("out_channels", "out_features", "num_features"):
        if isinstance(size := vars(layer).get(name), int):
            return size
    raise ValueError(f"a {type(layer).__name__} says no number of channels")


def _is_computed(module: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    owner = submodules(module).get(path)
    return isinstance(getattr(owner, attribute, None), torch.Tensor)
