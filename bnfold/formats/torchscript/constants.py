"""What an operator of the ATen library makes of fixed arguments: torch computes it, once asked.

Exact when   DETERMINISTIC  the operator is not random, and writes into none of its arguments
             SIZE           on the meta device, the results are not too large
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bnfold.formats.pytorch.calls import Stored
from bnfold.formats.torchscript.nodes import operator_name, schema_of

MOST_ELEMENTS = 1 << 26
"""A constant with more elements than this is not computed."""

_PLAIN = (int, float, str, torch.dtype, torch.device, type(None))


def evaluated(node: Any, arguments: Sequence[Any]) -> list[torch.Tensor] | None:
    """The results of `node` for its arguments; None if one is computed, or SIZE is not known."""
    overload = _overload(node)
    given = [_plain(argument) for argument in arguments]
    if overload is None or any(each is _OPEN for each in given) or not _tensors(given):
        return None
    try:
        with torch.no_grad():
            shown = _call(overload, [_on_meta(argument) for argument in given])
            if sum(tensor.numel() for tensor in _tensors([shown])) > MOST_ELEMENTS:
                return None
            return _tensors([_call(overload, given)])
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None


def _call(overload: Any, given: Sequence[Any]) -> Any:
    pairs = list(zip(overload._schema.arguments, given, strict=True))
    named = {argument.name: value for argument, value in pairs if argument.kwarg_only}
    return overload(*(value for argument, value in pairs if not argument.kwarg_only), **named)


def _overload(node: Any) -> Any | None:
    """The operator to call, if it gives the same each time and leaves its arguments alone."""
    schema = schema_of(node)
    if schema is None or schema.is_mutable:
        return None
    packet = getattr(torch.ops.aten, operator_name(node), None)
    found = getattr(packet, schema.overload_name or "default", None)
    random = found is None or torch.Tag.nondeterministic_seeded in found.tags
    return None if random else found


_OPEN = object()
"""Stands for an argument that is computed while the model runs."""


def _plain(argument: Any) -> Any:
    if isinstance(argument, Stored):
        return argument.tensor
    if isinstance(argument, list):
        entries = [_plain(entry) for entry in argument]
        return _OPEN if any(entry is _OPEN for entry in entries) else entries
    return argument if isinstance(argument, _PLAIN) else _OPEN


def _on_meta(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.to("meta")
    return [_on_meta(entry) for entry in argument] if isinstance(argument, list) else argument


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
