"""Whether a program of a submodule holds for every size that the submodule itself runs with.

torch.export follows one branch wherever code compares sizes, and notes the comparison. Where other
sizes break it, the submodule and what was made of the program are both run: it is a branch of the
code if the submodule gives something else, and only what an operator asks for if it fails.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from bnfold.formats.pytorch.capture import copied, free_sizes
from bnfold.formats.pytorch.recording import Arguments

_TRIES = 200
_MOST_RUNS = 16
_MOST_ELEMENTS = 200_000

Sizes = tuple[tuple[int, ...], ...]
"""The shape of every tensor that a submodule takes."""


def branch_on_sizes(
    module: nn.Module,
    stand_in: nn.Module,
    calls: Sequence[Arguments],
    guards: Sequence[str],
    index: int,
) -> str | None:
    """A comparison of sizes by which `module` branches, and `stand_in` does not; None if there is
    none.

    `guards` are those of a program that has the module's tensors as inputs[index].
    """
    own = [guard for guard in guards if f"L['inputs'][{index}]" in guard]
    broken: dict[str, list[Sizes]] = {}
    for sizes in _samples(calls):
        for guard in own:
            if not _holds(guard, sizes, index):
                broken.setdefault(guard, []).append(sizes)

    @cache
    def differ(sizes: Sizes) -> bool:
        return _differ(module, stand_in, calls[0], sizes)

    for guard, samples in broken.items():
        small = [sizes for sizes in samples if sum(map(math.prod, sizes)) < _MOST_ELEMENTS]
        if any(map(differ, small[:_MOST_RUNS])):
            return guard.replace(f"L['inputs'][{index}]", "input")
    return None


def _samples(calls: Sequence[Arguments]) -> Iterator[Sizes]:
    """Sizes that were seen, then others: small and large ones, all equal, and as equal as seen."""
    free, seen = free_sizes(calls), [tuple(tuple(t.shape) for t in c.tensors) for c in calls]
    yield from seen
    draw = random.Random(0)
    groups = {
        tuple(shape[axis] for shape in (each[i] for each in seen))
        for i, axes in enumerate(free)
        for axis in axes
    }
    for tied, _ in itertools.product((True, False), range(_TRIES)):
        most = draw.choice((3, 9, 40, 300))
        size = {group: draw.randint(1, most) for group in sorted(groups)}
        yield tuple(
            tuple(
                (size[tuple(each[i][axis] for each in seen)] if tied else draw.randint(1, most))
                if axis in free[i]
                else length
                for axis, length in enumerate(shape)
            )
            for i, shape in enumerate(seen[0])
        )


class _Sized:
    """Answers what a comparison asks of a tensor."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = shape

    def size(self) -> Sequence[int]:
        return self._shape


def _holds(guard: str, sizes: Sizes, index: int) -> bool:
    """The comparisons are torch's own, made of sizes and numbers alone."""
    names: Mapping[str, Any] = {"L": {"inputs": {index: [_Sized(shape) for shape in sizes]}}}
    known = {"min": min, "max": max, "abs": abs, "torch": torch, "__builtins__": {}}
    try:
        return bool(eval(guard, known, dict(names)))
    except Exception:  # it says something else
        return False


def _differ(module: nn.Module, other: nn.Module, call: Arguments, sizes: Sizes) -> bool:
    """Whether the submodule takes tensors of such sizes, and `other` gives something else."""
    draw = torch.Generator().manual_seed(0)
    tensors = iter([_values(t, s, draw) for t, s in zip(call.tensors, sizes, strict=True)])
    leaves = [next(tensors) if isinstance(x, torch.Tensor) else x for x in call.leaves]
    results: list[list[Any]] = []
    for each in (module, other):
        args, kwargs = tree_unflatten([_copy(leaf) for leaf in leaves], call.structure)
        try:
            with torch.no_grad():
                results.append(tree_leaves(copied(each, share=True)(*args, **kwargs)))
        except Exception:  # whatever it raises: only what the submodule itself takes matters
            return bool(results)
    return len(results[0]) != len(results[1]) or not all(map(_is_close, *results))


def _values(like: torch.Tensor, size: Sequence[int], draw: torch.Generator) -> torch.Tensor:
    if not like.is_floating_point():
        return torch.zeros(size, dtype=like.dtype)
    return torch.randn(size, generator=draw).to(like.dtype)


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def _is_close(one: Any, other: Any) -> bool:
    """The same operators ran, so they differ by the order of a sum at most."""
    if not isinstance(one, torch.Tensor):
        return bool(one == other)
    return one.shape == other.shape and torch.allclose(one, other, 1e-3, 1e-4, equal_nan=True)
