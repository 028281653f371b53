"""Guess an input shape from a model's first layer, to propose it in an error: never to use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from bnfold.processes.supervision import trying

SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 16, 8)
"""The usual side lengths of images, likeliest first; a shape is proposed only if it runs."""


def suggest_shapes(
    run: Callable[[torch.Tensor], Any], layers: Iterable[Any]
) -> tuple[int, ...] | None:
    """The first shape for the first convolution or linear layer among `layers` that runs."""
    for layer in layers:
        if isinstance(layer, nn.modules.conv._ConvNd):
            rank = len(layer.kernel_size)
            return first_that_runs(run, layer.in_channels, rank, layer.weight.dtype)
        if isinstance(layer, nn.Linear):
            return first_that_runs(run, layer.in_features, 0, layer.weight.dtype)
    return None


def first_that_runs(
    run: Callable[[torch.Tensor], Any], channels: int, rank: int, dtype: torch.dtype
) -> tuple[int, ...] | None:
    """[1, channels, side, ...] of `rank` sides for the first side on which `run` succeeds."""
    for side in SIDES if rank else SIDES[:1]:
        shape = (1, channels, *[side] * rank)
        zeros = torch.zeros(shape, dtype=dtype)
        try:
            with torch.no_grad(), trying(f"shape {shape}", zeros.nbytes):
                run(zeros)
        except Exception:  # any failure means the same: this shape does not fit
            continue
        return shape
    return None
