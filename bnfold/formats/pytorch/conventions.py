"""The form in which libraries leave a block that they have fused, for a block that was folded.

    forward_fuse   no `bn`, and `forward` is `forward_fuse` (ultralytics and its kin)
    fuse, reparameterize, switch_to_deploy, fuse_model
                   gives the block as it is (timm, RepVGG and its kin, torchvision's quantizable)

Their loaders and exporters fuse every block that is not in that form, and read the statistics of
its BatchNorms.
"""

from __future__ import annotations

import inspect
import pickle
from types import MethodType
from typing import Any

from torch import nn

_FUSED, _NORM, _LAYER = "forward_fuse", "bn", "conv"
_FUSERS = ("fuse", "reparameterize", "switch_to_deploy", "fuse_model")
_NOTHING = "eval"
"""A method of every module that gives the module as it is."""


def take_fused_form(before: nn.Module, after: nn.Module) -> None:
    """Give every block of `after` that form whose BatchNorms in `before` are gone."""
    old = dict(before.named_modules(remove_duplicate=False))
    new = dict(after.named_modules(remove_duplicate=False))
    gone = {path for path in old if _is_norm(old[path]) and not _is_norm(new.get(path))}
    for path, block in new.items():
        norm = f"{path}.{_NORM}" if path else _NORM
        has_form = inspect.isfunction(getattr(type(block), _FUSED, None)) and _LAYER in dir(block)
        if has_form and norm in gone and isinstance(block._modules.get(_NORM), nn.Identity):
            del block._modules[_NORM]
            block.__dict__["forward"] = getattr(block, _FUSED)
            gone.remove(norm)
    for path, block in new.items():
        if any(each.startswith(f"{path}." if path else "") for each in gone):
            _leave_nothing_to_fuse(block)


def _is_norm(module: nn.Module | None) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase)


def _leave_nothing_to_fuse(block: nn.Module) -> None:
    if not _gives_itself(type(block)):
        return
    for name in _FUSERS:
        method = getattr(type(block), name, None)
        if inspect.isfunction(method) and (
            name == "fuse_model" or len(inspect.signature(method).parameters) == 1
        ):
            block.__dict__[name] = MethodType(nn.Module.eval, block)


def _gives_itself(kind: type[nn.Module]) -> bool:
    return kind.eval is nn.Module.eval and kind.train is nn.Module.train


def fused_form_of(block: Any, name: Any) -> MethodType:
    """Stands in for getattr where a pickle has such a block; no other attribute is there to get."""
    kind = type(block)
    if name == _NOTHING and isinstance(block, nn.Module) and _gives_itself(kind):
        return MethodType(nn.Module.eval, block)
    method = getattr(kind, _FUSED, None)
    if name != _FUSED or not isinstance(block, nn.Module) or not inspect.isfunction(method):
        raise pickle.UnpicklingError("getattr of anything but a fused block")
    return MethodType(method, block)
