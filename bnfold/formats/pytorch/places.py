"""Where among the tensors of a file the names of a network are.

PREFIX   after anything that stands before every name: net., model.net., module._orig_mod.
WRAPPED  without the parts that wrappers of single layers add in between
MANGLED  as ema_conv_weight for conv.weight
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bnfold.formats.pytorch.changes import MARK, Changes
from bnfold.formats.pytorch.checkpoint import MANGLED, Entries

COUNTER = "num_batches_tracked"
"""What BatchNorms count, older files lack, and inference does not need."""

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"})
"""What compiled, distributed and checkpointed layers, and DataParallel, add to names."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the names of a network are found: `names` maps its own to those of the entries.

    `missing` are those that it needs and that are not there. `spelled` are all names of the entries
    without what wrappers add.
    """

    entries: Entries
    names: Mapping[str, str]
    missing: tuple[str, ...]
    prefix: str = ""
    spelled: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """What --weights calls it."""
        return ".".join([*self.entries.keys, *filter(None, [self.prefix.removesuffix(".")])]) or "."

    def is_called(self, address: str) -> bool:
        given = address.removesuffix(".") or "."
        return given in (self.address, self.prefix.removesuffix(".") or ".")

    def tensor(self, own: str) -> torch.Tensor:
        found: torch.Tensor = self.entries.entries[self.names[own]]
        return found

    def has_shapes_of(self, network: nn.Module) -> bool:
        """Whether all tensors are as large as those of `network`; a folded file says why not."""
        state = network.state_dict()
        return bool(getattr(self.entries.entries, MARK, None)) or all(
            self.tensor(own).shape == state[own].shape for own in self.names
        )

    def is_of(self, other: Place) -> bool:
        """Whether both are the same tensors, which a checkpoint may hold under several keys."""
        same = self.entries.entries is other.entries.entries
        return same and self.prefix == other.prefix

    def equals(self, other: Place) -> bool:
        """Whether both have the same numbers."""
        return self.names.keys() == other.names.keys() and all(
            torch.equal(self.tensor(own), other.tensor(own)) for own in self.names
        )

    def others(self, network: nn.Module) -> tuple[dict[str, str], list[str]]:
        """The tensors beside the network's: those in its layers, by their names in it; and more.

        A layer that has other tensors in the file is another layer. Where names are missing, all
        tensors are taken for such.
        """
        within: dict[str, str] = {}
        beside: list[str] = []
        plain, used = {name: own for own, name in self.spelled.items()}, set(self.names.values())
        for name in self.entries.names:
            whole = plain.get(name, name)
            inner = whole.removeprefix(self.prefix)
            if name in used or name.endswith(COUNTER):
                continue
            reaches = whole.startswith(self.prefix) and _reaches(network, inner)
            if self.missing or reaches:
                within[inner] = name
            else:
                beside.append(name)
        return within, beside


def places_in(entries: Entries, network: nn.Module, changes: Changes) -> list[Place]:
    """The places that have every name of `network`; else the one that has most.

    `changes` are those that the entries say of themselves: what they are without is not missing.
    """
    gone = tuple(_gone(changes))
    whole = network.state_dict()
    state = {name: tensor for name, tensor in whole.items() if not name.startswith(gone)}
    least = len({tensor.data_ptr() for name, tensor in state.items() if not name.endswith(COUNTER)})
    best = Place(entries, {}, tuple(missing_in({}, state)))
    for spelled in _spellings(entries.names, _parts(state)):
        counts = _prefixes(spelled, state)
        enough = min(least, max(counts.values(), default=0))
        places = [
            _place(entries, spelled, prefix, state)
            for prefix, count in counts.items()
            if count >= enough
        ]
        if fitting := [place for place in places if not place.missing]:
            bare = [place for place in fitting if not place.prefix]
            return [*(bare or fitting), *_mangled(entries, state)]
        best = max([best, *places], key=lambda place: len(place.names))
    return _mangled(entries, state) or [best]


def missing_in(names: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> list[str]:
    """What a network with `state` needs beside `names`; of tied tensors one is enough."""
    tied = {state[name].data_ptr() for name in state if name in names}
    return [
        name
        for name, tensor in state.items()
        if name not in names
        and not name.endswith(COUNTER)
        and (tensor.numel() == 0 or tensor.data_ptr() not in tied)
    ]


def _gone(changes: Changes) -> Iterator[str]:
    """What the names begin with that a compact file has no more."""
    if changes.compact:
        yield from (f"{module}." for module in changes.identity)
        for path, _, weight in (name.rpartition(".") for name in changes.plain):
            yield from (f"{path}.parametrizations.{weight}.", f"{path}.{weight}_")


def _place(
    entries: Entries, spelled: Mapping[str, str], prefix: str, state: Mapping[str, torch.Tensor]
) -> Place:
    names = {own: spelled[prefix + own] for own in state if prefix + own in spelled}
    return Place(entries, names, tuple(missing_in(names, state)), prefix, spelled)


def _mangled(entries: Entries, state: Mapping[str, torch.Tensor]) -> list[Place]:
    spelled = {own: MANGLED + own.replace(".", "_") for own in state}
    names = {own: name for own, name in spelled.items() if name in entries.entries}
    if not names or missing_in(names, state):
        return []
    return [Place(entries, names, (), MANGLED)]


def _prefixes(spelled: Mapping[str, str], state: Mapping[str, Any]) -> Counter[str]:
    """How many names of the network there are after each prefix that any of them has."""
    counts: Counter[str] = Counter()
    for name in spelled:
        starts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
        counts.update(name[:start] for start in starts if name[start:] in state)
    return counts


def _spellings(names: list[str], parts: frozenset[str]) -> Iterator[dict[str, str]]:
    """The names as they are and, if that differs, without wrappers: each to what it is."""
    yield {name: name for name in names}
    plain = [_unwrapped(name, parts) for name in names]
    if plain != names:
        times = Counter(plain)
        yield {own: name for own, name in zip(plain, names, strict=True) if times[own] == 1}


def _parts(state: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(part for name in state for part in name.split("."))


def _unwrapped(name: str, parts: frozenset[str]) -> str:
    """A name without what wrappers add, unless the network itself has such a part."""
    *path, leaf = name.split(".")
    return ".".join([*(part for part in path if part in parts or part not in _WRAPPERS), leaf])


def _reaches(network: nn.Module, name: str) -> bool:
    """Whether `name` would lie in one of the network's children, or in a row with them."""
    if name in dict(network.named_buffers()):  # one that is computed, and not stored today
        return False
    head, dot, _ = name.partition(".")
    own = network._modules if dot else {**network._parameters, **network._buffers}
    return head in own or (head.isdigit() and any(child.isdigit() for child in network._modules))
