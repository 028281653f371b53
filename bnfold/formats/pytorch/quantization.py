"""What is quantized, or trained as if it were, and so has no float weights to fold into.

modules    torch.ao's layers with integers, those that imitate them in training, FakeQuantize
operators  of the namespaces of quantized kernels, and ATen's own that round to a grid
tensors    with few bits each
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain

import torch
from torch import nn

from bnfold.errors import ModelError
from bnfold.formats.pytorch.tensors import dtype_of

_MODULES = re.compile(
    r"torch\.(ao\.)?(nn\.(intrinsic\.)?(quantized|qat|quantizable)|nn\.sparse\.quantized"
    r"|quantization\.(fake_quantize|_learnable_fake_quantize))\b"
)
"""Where torch has the layers whose weights are integers, or shall be; the float64 truth needs
others."""

_FLOAT = re.compile(r".*\.(FX)?FloatFunctional")
"""Stands among them, and adds and joins floats until it is replaced."""

_OPERATORS = re.compile(
    r"(quantized|quantized_decomposed|_quantized|torchao)::.*|onednn::q.*"
    r"|aten::_?(fake_quantize|fused_moving_avg_obs|quantize_per|dequantize|make_per_\w+_quantized).*"
)


class QuantizedError(ModelError):
    """The model works on a grid of numbers."""


def require_float_modules(module: nn.Module) -> None:
    """Raise ModelError for a module with quantized layers or tensors in it."""
    for name, child in module.named_modules():
        kind = f"{type(child).__module__}.{type(child).__name__}"
        if _MODULES.match(kind) and not _FLOAT.fullmatch(kind):
            raise _refusal(f"{name or 'it'} is a {kind}")
    require_float_tensors(chain(module.named_parameters(), module.named_buffers()))


def require_float_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], source: str = "the model"
) -> None:
    """Raise ModelError for a tensor of a quantized type; `source` holds it."""
    for name, tensor in tensors:
        if tensor.is_quantized:
            kind = dtype_of(tensor)
            raise _refusal(f"{name} is of the type {kind}", source)


def require_float_operators(names: Iterable[str]) -> None:
    """Raise ModelError if one of the operators, called as "aten::conv2d", works on a grid."""
    for name in names:
        if _OPERATORS.fullmatch(name):
            raise _refusal(f"it calls {name}")


def _refusal(why: str, source: str = "the model") -> QuantizedError:
    return QuantizedError(
        f"{source} is quantized: {why}",
        "fold the model before it is quantized, then quantize the result",
    )
