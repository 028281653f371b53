"""The parameters of a submodule's forward as inputs of a graph that stands in for it.

Tensors become inputs. Every other value was followed as a constant, so that a graph asserts it: a
flag that is passed on another day is an error there, not another result.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_unflatten

from bnfold.formats.pytorch.recording import Arguments


class _Slot:
    """Stands for a tensor among arguments."""


def is_unary(module: nn.Module, call: Arguments) -> bool:
    """Whether forward takes one tensor, by position, and nothing else."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if len(parameters) != 1 or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        return False
    args, kwargs = tree_unflatten(list(call.leaves), call.structure)
    return not kwargs and len(args) == 1 and isinstance(args[0], torch.Tensor)


def write_signature(
    graph: torch.fx.Graph, module: nn.Module, call: Arguments
) -> list[torch.fx.Node]:
    """Add the inputs of `module.forward` to `graph`; gives the nodes of its tensors, in order."""
    slots = {id(x): _Slot() for x in call.leaves if isinstance(x, torch.Tensor)}
    order = [slots[id(x)] for x in call.leaves if isinstance(x, torch.Tensor)]
    leaves = [slots.get(id(x), x) for x in call.leaves]
    args, kwargs = tree_unflatten(leaves, call.structure)
    signature = inspect.signature(module.forward)
    bound = signature.bind(*args, **kwargs).arguments
    written = [(p, _placeholder(graph, p)) for p in signature.parameters.values()]
    found: dict[_Slot, torch.fx.Node] = {}
    for parameter, node in written:
        value = bound.get(parameter.name, _unbound(parameter))
        for place, leaf in _leaves(graph, node, value):
            if isinstance(leaf, _Slot):
                found[leaf] = place
            else:
                _insist(graph, place, leaf, parameter.name)
    return [found[slot] for slot in order]


def _placeholder(graph: torch.fx.Graph, parameter: inspect.Parameter) -> torch.fx.Node:
    stars: dict[Any, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    return graph.placeholder(
        stars.get(parameter.kind, "") + parameter.name, default_value=parameter.default
    )


def _unbound(parameter: inspect.Parameter) -> Any:
    empty: dict[Any, Any] = {parameter.VAR_POSITIONAL: (), parameter.VAR_KEYWORD: {}}
    return empty.get(parameter.kind, parameter.default)


def _leaves(
    graph: torch.fx.Graph, node: torch.fx.Node, value: Any
) -> Iterator[tuple[torch.fx.Node, Any]]:
    """Every tensor and plain value of an argument, with the node that takes it out."""
    entries: Mapping[Any, Any] | None = None
    if isinstance(value, Mapping):
        entries = value
    elif isinstance(value, list | tuple):
        entries = dict(enumerate(value))
    if entries is None:
        yield node, value
        return
    for key, entry in entries.items():
        yield from _leaves(graph, graph.call_function(operator.getitem, (node, key)), entry)


def _insist(graph: torch.fx.Graph, node: torch.fx.Node, value: Any, name: str) -> None:
    same = graph.call_function(operator.eq, (node, value))
    graph.call_function(torch._assert, (same, f"{name} is {value!r} in the folded module"))
