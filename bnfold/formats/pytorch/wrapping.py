"""What stands around a module, or is still missing in it, before it can be folded."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bnfold.errors import ModelError
from bnfold.formats.pytorch.quantization import require_float_modules

INNER = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Torch's wrappers, by class name, and the attribute that holds the module itself."""

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase)


def unwrapped(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The module within torch's own wrappers, and a note for each of these."""
    notes: list[str] = []
    while (kind := type(module)).__module__.startswith("torch.") and kind.__name__ in INNER:
        notes.append(f"the {kind.__name__} around it was taken off")
        inner: Any = getattr(module, INNER[kind.__name__])
        module = inner
    return module, tuple(notes)


def require_weights(module: nn.Module) -> None:
    """Refuse a module whose tensors do not have values yet, or have few bits or axes each."""
    require_float_modules(module)
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"{name} has no shape yet: its lazy layer has never run",
                "run the model once on a typical input, then load its weights",
            )
        if tensor.device == torch.device("meta"):
            raise ModelError(
                f"{name} has no values: it is on the device meta",
                "load its weights: model.to_empty(device='cpu'), then load_state_dict",
            )
    _require_axes(module)


def _require_axes(module: nn.Module) -> None:
    """Refuse torch's own layers with a single number for a weight: none of them runs with that."""
    for path, layer in module.named_modules():
        if not isinstance(layer, _LAYERS) or not type(layer).__module__.startswith("torch.nn."):
            continue
        held = {**layer._parameters, **layer._buffers}
        for name in ("weight", "bias", "running_mean", "running_var"):
            if (tensor := held.get(name)) is not None and tensor.ndim == 0:
                raise ModelError(
                    f"{path}.{name} is a single number, which is no {name} of a "
                    f"{type(layer).__name__}".lstrip("."),
                    "save the model again, its file is damaged",
                )
