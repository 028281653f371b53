"""Which tensors of a checkpoint are a network's, and what is done about the others.

Places that fit alike are told apart by what the libraries prefer that write them; where nobody
says, by the user. What is not the network's own is left where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnfold.errors import ModelError, UsageError
from bnfold.formats.pytorch.changes import MARK, Changes
from bnfold.formats.pytorch.checkpoint import (
    AVERAGED,
    MANGLED,
    METADATA,
    Entries,
    Surroundings,
    entries_under,
    preference,
    way_to,
)
from bnfold.formats.pytorch.places import Place, places_in

_SHOWN = 6


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """The `entries` that hold the weights of a network, and what lies around them.

    `tensors` have the names of the network. Those that would make another network of it are among
    them.
    """

    entries: Mapping[str, Any]
    tensors: dict[str, torch.Tensor]
    surroundings: Surroundings


def locate(
    path: Path, state: Mapping[str, Any], network: nn.Module, wanted: str | None = None
) -> Found:
    """Where the weights of a network are in a checkpoint; `wanted` is a key or a prefix of them.

    Raises ModelError if there are no tensors, UsageError if several places fit alike, or nothing is
    called `wanted`.
    """
    everywhere = _places(path, Entries((), (), state), network)
    places = everywhere
    if wanted is not None:
        under = way_to(state, wanted)
        places = [place for place in everywhere if place.is_called(wanted)]
        if under is not None:
            places = _places(path, under, network)
        elif not places:
            raise UsageError(f"{path} has no weights under {wanted!r}", _lines(everywhere))
    if not places:
        shown = ", ".join(map(str, list(under.entries if wanted and under else state)[:8]))
        raise ModelError(
            f"{path} holds no weights{f' under {wanted!r}' * bool(wanted)}: "
            f"its keys are {shown or 'nothing'}",
            _lines(everywhere) if wanted else "save the model's state_dict in it",
        )
    place = _chosen(path, places, network)
    within, beside = place.others(network)
    levels, keys, entries = place.entries
    names = {**place.names, **within}
    used = set(names.values())
    rest = {key: entry for key, entry in entries.items() if key not in used}
    notes = (*_choice(place, everywhere), *_left_alone(beside))
    metadata = getattr(state, METADATA, {})
    around = Surroundings(levels, keys, rest, place.names, place.prefix, metadata, notes)
    return Found(entries, {own: entries[name] for own, name in names.items()}, around)


def _places(path: Path, start: Entries, network: nn.Module) -> list[Place]:
    found: list[Place] = []
    for entries in entries_under(start):
        changes = Changes.read(path, getattr(entries.entries, MARK, None))
        found += places_in(entries, network, changes)
    return found


def _chosen(path: Path, places: Sequence[Place], network: nn.Module) -> Place:
    """The place that fits, by names and then by shapes; or the one that nearly does."""
    fitting = [place for place in places if not place.missing]
    if not fitting:
        return max(places, key=lambda place: len(place.names))
    shaped = [place for place in fitting if place.has_shapes_of(network)]
    first, *rest = _preferred(shaped or fitting)
    if all(map(first.equals, rest)):
        return first
    raise UsageError(
        f"{path} has several sets of weights that fit: under {_listed([first, *rest])}",
        _lines([first, *rest]),
    )


def _preferred(places: Sequence[Place]) -> list[Place]:
    """Those that their libraries take, if for each it is known whether they do."""
    ranks = [(preference(place.entries.keys), place.prefix == MANGLED) for place in places]
    if any(rank is None for rank, _ in ranks):
        return list(places)
    known = [(rank or 0, mangled) for rank, mangled in ranks]
    return [place for place, rank in zip(places, known, strict=True) if rank == min(known)]


def _choice(place: Place, everywhere: Sequence[Place]) -> Iterator[str]:
    """Which weights were taken, if others fit as well."""
    others = [each for each in everywhere if not each.missing and not each.is_of(place)]
    if others:
        why = ", as its library does" if set(place.entries.keys) & set(AVERAGED) else ""
        yield (
            f"the weights under {place.address!r} were taken{why}; "
            f"--weights takes those under {' or '.join(repr(p.address) for p in others)}"
        )


def _left_alone(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"left as they are, for the network has none of that name: {_some(names)}"


def _lines(places: Sequence[Place]) -> str:
    """What to type for each of them."""
    lines = [f"--weights {place.address}" for place in places if place.address != "."]
    return f"say which: {' or '.join(lines[:_SHOWN])}" if lines else "leave out --weights"


def _listed(places: Sequence[Place]) -> str:
    return _some([repr(place.address) for place in places])


def _some(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
