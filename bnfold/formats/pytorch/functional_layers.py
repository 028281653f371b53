"""Calls of operators as the layers of torch.nn that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten

ACTIVATIONS: dict[Any, Callable[..., nn.Module]] = {
    _ATEN.relu.default: nn.ReLU,
    _ATEN.relu6.default: nn.ReLU6,
    _ATEN.silu.default: nn.SiLU,
    _ATEN.mish.default: nn.Mish,
    _ATEN.sigmoid.default: nn.Sigmoid,
    _ATEN.tanh.default: nn.Tanh,
    _ATEN.hardswish.default: nn.Hardswish,
    _ATEN.hardsigmoid.default: nn.Hardsigmoid,
    _ATEN.leaky_relu.default: nn.LeakyReLU,
    _ATEN.elu.default: nn.ELU,
    _ATEN.hardtanh.default: nn.Hardtanh,
}
"""Operators that take a tensor, and perhaps the arguments of the layer's constructor."""

CONVOLUTIONS = {
    _ATEN.conv1d.default: nn.Conv1d,
    _ATEN.conv2d.default: nn.Conv2d,
    _ATEN.conv3d.default: nn.Conv3d,
}


def layer_of(node: torch.fx.Node, tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
    """The layer that a call comes to, holding `tensors` (by role); None if it is not known."""
    target, arguments = node.target, _arguments(node)
    if target in ACTIVATIONS and not tensors and not node.kwargs:
        return ACTIVATIONS[target](*node.args[1:])
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or (bias is None and arguments.get("bias") is not None):
        return None
    if not all(isinstance(tensor, nn.Parameter) for tensor in tensors.values()):
        return None
    made: nn.Module | None = None
    if target is _ATEN.linear.default and weight.ndim == 2:
        made = _hollow(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    elif target in CONVOLUTIONS:
        made = _convolution(CONVOLUTIONS[target], weight, bias, arguments)
    if made is not None:
        for role, tensor in tensors.items():
            setattr(made, role, tensor)
    return made


def _convolution(
    kind: Any, weight: torch.Tensor, bias: torch.Tensor | None, arguments: Mapping[str, Any]
) -> nn.Module | None:
    size, groups = tuple(weight.shape[2:]), arguments.get("groups", 1)
    sizes = [tuple(arguments.get(name) or usual) for name, usual in _USUAL]
    stride, padding, dilation = (s * len(size) if len(s) == 1 else s for s in sizes)
    channels = weight.shape[1] * groups, weight.shape[0]
    return _hollow(kind, *channels, size, stride, padding, dilation, groups, bias=bias is not None)


_USUAL = (("stride", (1,)), ("padding", (0,)), ("dilation", (1,)))


def _hollow(kind: Any, *args: Any, bias: bool) -> nn.Module | None:
    """A layer whose parameters have no values yet; None if an argument is none for it."""
    if any(isinstance(leaf, torch.fx.Node) for leaf in tree_leaves(args)):
        return None
    made: nn.Module = skip_init(kind, *args, bias=bias)  # type: ignore[no-untyped-call]
    return made


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    target = node.target
    names = target._schema.arguments if isinstance(target, torch._ops.OpOverload) else ()
    return {**dict(zip((a.name for a in names), node.args, strict=False)), **node.kwargs}
