"""Where the weights lie in a checkpoint, and what lies around them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bnfold.errors import ModelError, UsageError

NESTS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("generator", "backbone", "encoder", "params", "weights"),
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema", "teacher", "student"),
)
"""Keys under which training scripts keep the weights; the first that holds tensors is taken."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before every name."""

METADATA = "metadata_of_safetensors"
"""The attribute that keeps the metadata of a safetensors file beside its tensors."""

_DEEPEST = 3
"""Weights lie no deeper than that; a file may hold itself."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a file holds around the weights: the entries on the way to them, and their prefix.

    `levels` are the mappings from the outermost to the one that has the weights under the last of
    `keys`; `rest` are the entries beside the weights. `metadata` is that of a safetensors file.
    """

    levels: tuple[Mapping[str, Any], ...] = ()
    keys: tuple[str, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def named(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {self.prefix + name: tensor for name, tensor in state.items()}

    def around(self, weights: Any) -> Any:
        """The whole checkpoint with `weights` in the place of those that were read."""
        for level, key in zip(reversed(self.levels), reversed(self.keys), strict=True):
            outer: Any = copy.copy(level)
            outer[key] = weights
            weights = outer
        return weights

    def note(self) -> str | None:
        """Which weights were taken, if there are others."""
        others = [key for level in self.levels for key in _sets_in(level) if key not in self.keys]
        if not others:
            return None
        return (
            f"the weights under {'.'.join(self.keys)!r} were taken; "
            f"--weights takes those under {' or '.join(map(repr, others))}"
        )


def weights_of(
    path: Path, state: Mapping[str, Any], wanted: str | None = None
) -> tuple[dict[str, torch.Tensor], Surroundings]:
    """The tensors of a checkpoint: those under `wanted`, under one of the usual keys, or bare.

    Raises UsageError if nothing is called `wanted`, ModelError if there are no tensors.
    """
    levels: list[Mapping[str, Any]] = []
    keys: list[str] = []
    inner = state
    asked_for = [] if wanted is None else _way_to(path, state, wanted)
    while key := next(iter(asked_for), None) or _next_key(inner, keys, wanted):
        levels.append(inner)
        keys.append(key)
        inner = inner[key]
        del asked_for[:1]
    tensors = {str(k): v for k, v in inner.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        shown = ", ".join(map(str, list(inner)[:8])) or "nothing"
        there = _sets_in(state)
        raise ModelError(
            f"{path} holds no weights{f' under {wanted!r}' * bool(wanted)}: its keys are {shown}",
            f"there are weights under another key: --weights {there[0]}"
            if there
            else f"weights are looked for under {', '.join(NESTS)}",
        )
    rest = {k: v for k, v in inner.items() if not isinstance(v, torch.Tensor)}
    metadata = getattr(state, METADATA, {})
    return tensors, Surroundings(tuple(levels), tuple(keys), rest, metadata=metadata)


def _next_key(inner: Mapping[str, Any], keys: list[str], wanted: str | None) -> str | None:
    """The usual key to go on with; none where the user's own led to tensors."""
    if len(keys) >= _DEEPEST or (wanted is not None and _has_tensors(inner)):
        return None
    return next((key for key in NESTS if _has(inner, key)), None)


def _way_to(path: Path, state: Mapping[str, Any], wanted: str) -> list[str]:
    """`wanted` as keys, one within the other: it may have dots, and so may keys."""
    inner: Any = state
    keys = [wanted] if wanted in state else wanted.split(".")
    for key in keys:
        if not isinstance(inner, Mapping) or not isinstance(inner.get(key), Mapping):
            there = _sets_in(state)
            raise UsageError(
                f"{path} has no weights under {wanted!r}",
                f"there are some under: {', '.join(there)}" if there else "leave out --weights",
            )
        inner = inner[key]
    return keys


def _sets_in(entries: Mapping[str, Any]) -> list[str]:
    """The keys under which there are weights."""
    return [key for key in entries if isinstance(key, str) and _has(entries, key)]


def _has_tensors(entries: Mapping[str, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in entries.values())


def _has(entries: Mapping[str, Any], key: str, depth: int = _DEEPEST) -> bool:
    """Are there weights under `key`, or under one of the usual keys in turn?"""
    inner = entries.get(key)
    if not isinstance(inner, Mapping) or not depth:
        return False
    if _has_tensors(inner):
        return True
    return any(_has(inner, nested, depth - 1) for nested in NESTS)


def shared_prefix(tensors: Mapping[str, Any], wanted: set[str]) -> str:
    """What all names begin with, as long as taking it off makes them fit better."""
    prefix, names = "", set(tensors)
    for part in PREFIXES * 2:
        shorter = {name.removeprefix(part) for name in names if name.startswith(part)}
        if len(shorter) == len(names) and len(wanted & shorter) >= len(wanted & names):
            prefix, names = prefix + part, shorter
    return prefix
