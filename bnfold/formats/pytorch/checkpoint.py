"""What a checkpoint holds: sets of weights, nested in one another, and what lies around them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

LIVE = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("params", "weights", "student"),
)
"""Keys under which training scripts keep the weights that they train."""

AVERAGED = ("ema", "model_ema", "state_dict_ema", "params_ema", "ema_model", "teacher")
"""Keys of their average, which the libraries that write them take wherever it is there:
ultralytics, timm, the references of torchvision, BasicSR, DINO."""

SWAPPED = ("ema_state_dict",)
"""Keys under which mmengine keeps what it trains: there `state_dict` has the average."""

MANGLED = "ema_"
"""What the averages of mmcv's EMAHook begin with; their names have "_" for every "."."""

METADATA = "metadata_of_safetensors"
"""The attribute that keeps the metadata of a safetensors file beside its tensors."""

_DEEPEST = 3
"""Weights lie no deeper than that; a file may hold itself."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a file holds around the weights: the entries on the way to them, and their names.

    `levels` are the mappings from the outermost to the one that has the weights under the last of
    `keys`; `rest` are the entries beside the weights, such as tensors of a loss. `names` are those
    in the file by those in the network, and `prefix` is what they begin with. `metadata` is that of
    a safetensors file; `notes` say what was chosen, and what is left alone.
    """

    levels: tuple[Mapping[str, Any], ...] = ()
    keys: tuple[str, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def named(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors by the names of the file; a new one is called like those of its layer."""
        parents = {own.rpartition(".")[0]: name for own, name in self.names.items()}
        return {self._name(own, parents): tensor for own, tensor in state.items()}

    def _name(self, own: str, parents: Mapping[str, str]) -> str:
        if own in self.names:
            return self.names[own]
        if self.prefix == MANGLED:
            return MANGLED + own.replace(".", "_")
        parent, _, leaf = own.rpartition(".")
        if parent not in parents:
            return self.prefix + own
        return f"{parents[parent].rpartition('.')[0]}.{leaf}".lstrip(".")

    def around(self, weights: Any) -> Any:
        """The whole checkpoint with `weights` in the place of those that were read."""
        for level, key in zip(reversed(self.levels), reversed(self.keys), strict=True):
            outer: Any = copy.copy(level)
            outer[key] = weights
            weights = outer
        return weights


class Entries(NamedTuple):
    """A mapping of a checkpoint that has tensors among its entries, and the way to it."""

    levels: tuple[Mapping[str, Any], ...]
    keys: tuple[str, ...]
    entries: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return [
            name
            for name, tensor in self.entries.items()
            if isinstance(name, str) and isinstance(tensor, torch.Tensor)
        ]


def entries_under(start: Entries) -> list[Entries]:
    """`start` and every mapping in it that has tensors, the outermost first, each once."""
    waiting = [start]
    found: list[Entries] = []
    seen: set[int] = set()
    for here in waiting:
        if id(here.entries) in seen:
            continue
        seen.add(id(here.entries))
        if here.names:
            found.append(here)
        if len(here.keys) < _DEEPEST:
            levels = (*here.levels, here.entries)
            waiting += [Entries(levels, (*here.keys, k), v) for k, v in _mappings(here.entries)]
    return found


def way_to(state: Mapping[str, Any], address: str) -> Entries | None:
    """What lies under `address`, keys one within the other: it may have dots, and so may keys."""
    here = Entries((), (), state)
    for key in [address] if address in state else address.split("."):
        inner = here.entries.get(key)
        if not isinstance(inner, Mapping):
            return None
        here = Entries((*here.levels, here.entries), (*here.keys, key), inner)
    return here


def _mappings(entries: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, entry in entries.items():
        if isinstance(key, str) and isinstance(entry, Mapping):
            yield key, entry


def preference(keys: Sequence[str]) -> int | None:
    """How soon weights under `keys` are taken, the smaller the sooner; None: nobody says."""
    if any(key in SWAPPED for key in keys):
        return 2
    if any(key in AVERAGED for key in keys):
        return 0
    return 1 if all(key in LIVE for key in keys) else None


def preferred(keys: Sequence[str]) -> str | None:
    """Of keys that hold a whole module each, the one to take: a usual one, or else the first."""
    usual = [key for key in (*AVERAGED, *LIVE) if key in keys]
    return next(iter([*usual, *keys]), None)


def has_tensors(found: Any) -> bool:
    """Whether what was read has weights that could be a network's."""
    return isinstance(found, Mapping) and bool(entries_under(Entries((), (), found)))
