"""Modules and programs with their floats in another type.

A program is traced again in it: what an operator makes of two types is torch's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from bnfold.errors import UsageError
from bnfold.formats.pytorch.capture import copied
from bnfold.formats.pytorch.tensors import dtype_of


def of_type(module: nn.Module, dtype: str) -> bool:
    """Whether no tensor of `module` has floats of another type."""
    return all(dtype_of(t) == dtype for t in _held(module).values() if t.is_floating_point())


def in_precision(module: nn.Module, dtype: str) -> nn.Module:
    """A copy with every float in `dtype`. Raises UsageError for what that type cannot hold."""
    target = torch_type(dtype)
    require_room(_held(module), dtype)
    made: Any = copied(module)
    made._apply(lambda tensor: tensor.to(target) if tensor.is_floating_point() else tensor)
    return made  # type: ignore[no-any-return]


def torch_type(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype)
    return found


def require_room(tensors: Mapping[str, torch.Tensor], dtype: str) -> None:
    """Raise UsageError for the first tensor with a number beyond the range of `dtype`.

    A tensor of one number, such as the fill value of a mask, may become infinite.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.numel() < 2:
            continue
        largest = tensor[tensor.isfinite()].abs().max() if tensor.isfinite().any() else tensor[:0]
        if not largest.to(torch_type(dtype)).isfinite().all():
            raise UsageError(
                f"{name} has numbers up to {largest.item():.3g}, which {dtype} cannot hold",
                "use --bfloat16" if dtype == "float16" else "leave the model in its own type",
            )


def retraced(
    module: Any, args: Any, kwargs: Any, shapes: Any, dtype: str
) -> torch.export.ExportedProgram:
    """The program of `module`, as its own unguarded module, with every float in `dtype`.

    `args` and `kwargs` are what it is called with, by example; `shapes` say which sizes are free.
    Raises UsageError if an operator makes something else of that type.
    """
    target = torch_type(dtype)
    made: Any = in_precision(module, dtype)
    for node in made.graph.nodes:
        node.args, node.kwargs = tree_map(
            lambda each: (
                target if isinstance(each, torch.dtype) and each.is_floating_point else each
            ),
            (node.args, dict(node.kwargs)),
        )
    made.recompile()

    def like(value: Any) -> Any:
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(target) if floats else value

    args, kwargs = tree_map(like, (args, kwargs))
    try:
        with torch.no_grad():
            return torch.export.export(made, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever an operator raises for what it is given
        raise UsageError(
            f"the program cannot be made {dtype}: {str(error).splitlines()[0]}",
            "start from the PyTorch module that it was made of",
        ) from error


def _held(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
