"""The form in which libraries leave a block that they have fused, for a block that was folded.

    forward_fuse   no `bn`, and `forward` is `forward_fuse` (ultralytics and its kin)

Their loaders fuse every block that is not in that form, and read the statistics of its `bn`.
"""

from __future__ import annotations

import inspect
import pickle
from types import MethodType
from typing import Any

from torch import nn

_FUSED, _NORM, _LAYER = "forward_fuse", "bn", "conv"


def take_fused_form(before: nn.Module, after: nn.Module) -> None:
    """Give every block of `after` that form whose BatchNorm in `before` is gone."""
    old = dict(before.named_modules(remove_duplicate=False))
    for name, block in after.named_modules(remove_duplicate=False):
        if not inspect.isfunction(getattr(type(block), _FUSED, None)) or _LAYER not in dir(block):
            continue
        norm = getattr(old.get(name), _NORM, None)
        if isinstance(norm, nn.modules.batchnorm._NormBase) and isinstance(
            block._modules.get(_NORM), nn.Identity
        ):
            del block._modules[_NORM]
            vars(block)["forward"] = getattr(block, _FUSED)


def fused_form_of(block: Any, name: Any) -> MethodType:
    """Stands in for getattr where a pickle has such a block; no other attribute is there to get."""
    method = getattr(type(block), _FUSED, None)
    if name != _FUSED or not isinstance(block, nn.Module) or not inspect.isfunction(method):
        raise pickle.UnpicklingError("getattr of anything but a fused block")
    return MethodType(method, block)
