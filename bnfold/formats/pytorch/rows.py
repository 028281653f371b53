"""A graph that calls one layer after another as a module without code of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn


def in_a_row(graph: torch.fx.Graph, root: nn.Module) -> nn.Module | None:
    """The layers that `graph` calls on `root`, as one layer or an nn.Sequential that nests as their
    paths do; None if it does anything else.

    A single layer stands alone if it has no tensors whose names would change.
    """
    source, *calls, output = graph.nodes
    for call in calls:
        if call.op != "call_module" or call.args != (source,) or len(source.users) != 1:
            return None
        source = call
    if output.args != (source,):
        return None
    layers = [(str(call.target), root.get_submodule(str(call.target))) for call in calls]
    if len({path for path, _ in layers}) < len(layers):
        return None
    if not layers:
        return nn.Identity()
    ((_, first), *others) = layers
    if not others and not first.state_dict():
        return first
    return _nested([(path.split("."), layer) for path, layer in layers])


def _nested(layers: Sequence[tuple[list[str], nn.Module]]) -> nn.Sequential | None:
    """None if the layers of one module are called in several goes."""
    row = nn.Sequential()
    for name, group in groupby(layers, key=lambda entry: entry[0][0]):
        inner = [(path[1:], layer) for path, layer in group]
        made = inner[0][1] if not inner[0][0] else _nested(inner)
        if made is None or name in row._modules or hasattr(nn.Sequential, name):
            return None
        row.add_module(name, made)
    return row
