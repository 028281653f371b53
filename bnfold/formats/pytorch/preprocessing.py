"""A module whose input is preprocessed, by layers and operators of torch's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bnfold.errors import UsageError
from bnfold.formats.pytorch.identifiers import is_identifier
from bnfold.preprocessing import Contract
from bnfold.runtimes.torch_eager import to_tensor

_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def preprocessed(
    module: Any, contract: Contract, names: Mapping[str, str | None]
) -> torch.fx.GraphModule:
    """A module that takes `names`, preprocesses one of them, and calls `module` with all.

    `names` say by which keyword each is passed on; None: by position. Raises UsageError if code
    cannot hold a name.
    """
    if strange := [name for name in names if not is_identifier(name)]:
        raise UsageError(
            f"the input {strange[0]!r} has no name that code can hold", "rename it, or use ONNX"
        )
    root, graph = nn.Module(), torch.fx.Graph()
    root.network = module
    given = {name: graph.placeholder(name) for name in names}
    x = given[contract.spec.name]
    dtype = getattr(torch, contract.spec.dtype)
    if contract.uint8:
        x = graph.call_method("to", (x, dtype))
    if contract.move:
        moved = graph.call_method("permute", (x, contract.moved))
        x = graph.call_method("contiguous", (moved,))  # networks call view on what they make of it
    if contract.shift is not None:
        root.register_buffer("shift", to_tensor(contract.constant(contract.shift)).to(dtype))
        x = graph.call_function(torch.add, (x, graph.get_attr("shift")))
    if contract.reverse and contract.axis == 1 and contract.rank in _CONVOLUTIONS:
        layer = _CONVOLUTIONS[contract.rank](3, 3, 1, bias=False, dtype=dtype)
        layer.weight = nn.Parameter(
            to_tensor(contract.permutation()).to(dtype), requires_grad=False
        )
        root.colours = layer
        x = graph.call_module("colours", (x,))
    else:
        if contract.factor is not None:
            root.register_buffer("factor", to_tensor(contract.constant(contract.factor)).to(dtype))
            x = graph.call_function(torch.mul, (x, graph.get_attr("factor")))
        if contract.reverse:
            x = graph.call_function(torch.flip, (x, [contract.axis]))
    given[contract.spec.name] = x
    args = tuple(given[name] for name, keyword in names.items() if keyword is None)
    kwargs: dict[str, Any] = {
        keyword: given[name] for name, keyword in names.items() if keyword is not None
    }
    graph.output(graph.call_module("network", args, kwargs))
    made = torch.fx.GraphModule(root, graph)
    for each in (made, *(child for name, child in made.named_children() if name != "network")):
        each.training = False  # a program, whose own mode is fixed, cannot be asked to change it
    return made
