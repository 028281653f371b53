"""Tensors: the names of their types, those in any nest of Python objects, and those that a forward
leaves on its modules."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_CLOSED = (str, bytes, torch.Size, type, types.FunctionType, types.ModuleType, nn.Module)
"""What is not looked into. The modules of a network are each looked at for themselves."""

_REGISTERED = ("_parameters", "_buffers", "_modules")


def dtype_of(held: torch.Tensor | torch.dtype) -> str:
    """A type by its name in the neutral graph: "float32"."""
    dtype = held.dtype if isinstance(held, torch.Tensor) else held
    return str(dtype).removeprefix("torch.")


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor within lists, mappings and objects with attributes, each once, in order."""
    waiting, seen = [value], set()
    kept: list[Any] = []  # or their ids could be given away
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _CLOSED):
            continue
        seen.add(id(each))
        kept.append(each)
        if isinstance(each, torch.Tensor):
            yield each
        else:
            waiting.extend(reversed(_entries(each)))


def _entries(value: Any) -> list[Any]:
    entries: list[Any] = []
    if isinstance(value, Mapping):
        entries += value.values()
    elif isinstance(value, Collection):
        entries += value
    entries += getattr(value, "__dict__", {}).values()
    slots = [s for kind in type(value).__mro__ for s in _names(kind.__dict__.get("__slots__", ()))]
    return entries + [getattr(value, slot) for slot in slots if hasattr(value, slot)]


def _names(slots: Any) -> Collection[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


@contextmanager
def escaped(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Once it ends, the list has the tensors that were put on `module` or a child meanwhile.

    Parameters and buffers do not count: torch.export follows what is written to these. A recurrent
    layer has its own in a list as well.
    """
    left: list[torch.Tensor] = []
    before = list(_kept_on(module))
    yield left
    known = {id(tensor) for tensor in (*before, *module.parameters(), *module.buffers())}
    left += [tensor for tensor in _kept_on(module) if id(tensor) not in known]


def holders(module: nn.Module, tensors: Collection[torch.Tensor]) -> set[nn.Module]:
    """The modules in `module` that have one of the tensors in an attribute."""
    wanted = {id(tensor) for tensor in tensors}
    return {
        child
        for child in module.modules()
        if wanted and any(id(tensor) in wanted for tensor in tensors_in(_attributes(child)))
    }


def _kept_on(module: nn.Module) -> Iterator[torch.Tensor]:
    return tensors_in([_attributes(child) for child in module.modules()])


def _attributes(module: nn.Module) -> list[Any]:
    """What a module has beside parameters, buffers and other modules."""
    return [entry for name, entry in vars(module).items() if name not in _REGISTERED]
