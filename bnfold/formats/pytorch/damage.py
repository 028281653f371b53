"""A PyTorch module with one number of it changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bnfold.formats.model import off

Damaged = Callable[[float], nn.Module]


def damages(module: nn.Module) -> Iterator[tuple[str, str, Damaged]]:
    """Kind, place and maker of every damage to a module."""
    for kind, where, name in damageable(module.state_dict()):
        yield kind, where, partial(_number, module, name)
    for name, part in module.named_modules():
        if isinstance(getattr(part, "eps", None), float):
            yield "epsilon", f"the epsilon of {name}", partial(_epsilon, module, name)


def damageable(state: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Kind, place and name of every weight and bias."""
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        if tensor.ndim >= 2:
            yield "weight", f"the weight {name}", name
        elif tensor.ndim == 1 and name.rpartition(".")[2] == "bias":
            yield "bias", f"the bias {name}", name


def damage(tensor: torch.Tensor, size: float) -> None:
    """Change the largest number of a tensor, in place."""
    with torch.no_grad():
        index = tuple(np.unravel_index(int(tensor.abs().argmax()), tuple(tensor.shape)))
        tensor[index] = off(float(tensor[index]), size)


def _number(module: nn.Module, name: str, size: float) -> nn.Module:
    damaged = copy.deepcopy(module)
    damage(damaged.state_dict()[name], size)
    return damaged


def _epsilon(module: nn.Module, name: str, size: float) -> nn.Module:
    damaged = copy.deepcopy(module)
    part = damaged.get_submodule(name)
    part.eps = float(part.eps) * (1 + 1000 * size)  # type: ignore[assignment, arg-type]
    return damaged
