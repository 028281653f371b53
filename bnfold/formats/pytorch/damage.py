"""A PyTorch module with one number of it changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from bnfold.formats.model import off

Damaged = Callable[[float], nn.Module]


def damages(module: nn.Module) -> Iterator[tuple[str, str, Damaged]]:
    """Kind, place and maker of every damage to a module."""
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        if tensor.ndim >= 2:
            yield "weight", f"the weight {name}", partial(_number, module, name)
        elif tensor.ndim == 1 and name.rpartition(".")[2] == "bias":
            yield "bias", f"the bias {name}", partial(_number, module, name)
    for name, part in module.named_modules():
        if isinstance(getattr(part, "eps", None), float):
            yield "epsilon", f"the epsilon of {name}", partial(_epsilon, module, name)


def _number(module: nn.Module, name: str, size: float) -> nn.Module:
    damaged = copy.deepcopy(module)
    with torch.no_grad():
        flat = damaged.state_dict()[name].reshape(-1)
        where = int(flat.abs().argmax())
        flat[where] = off(float(flat[where]), size)
    return damaged


def _epsilon(module: nn.Module, name: str, size: float) -> nn.Module:
    damaged = copy.deepcopy(module)
    part = damaged.get_submodule(name)
    part.eps = float(part.eps) * (1 + 1000 * size)  # type: ignore[assignment, arg-type]
    return damaged
