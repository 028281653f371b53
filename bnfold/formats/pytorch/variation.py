"""The calls of every module of a network for inputs of other sizes.

Sizes that differ from run to run are those that what stands in for a module must leave free. All
others are fixed by the network: it does not run with any other, as far as was tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from bnfold.formats.pytorch.capture import copied
from bnfold.formats.pytorch.recording import Arguments, plain_modules
from bnfold.process_state import quiet

Calls = Mapping[str, Sequence[Arguments]]
"""The path of a module -> its calls while the network ran once."""

_Axes = frozenset[tuple[int, int]]
"""(which tensor of the input, which axis)"""


def calls_of_other_sizes(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> list[Calls]:
    """The calls for the inputs with all free sizes enlarged; nothing if none is free.

    The network runs on tensors without values where it can, so that a run costs no memory.
    """
    leaves, structure = tree_flatten((args, dict(kwargs)))
    runs = _Runs(module, leaves, structure)
    varied: _Axes = frozenset()
    found: list[Calls] = []
    tried: set[_Axes] = set()
    for axes in _candidates(leaves):
        if axes <= varied or axes in tried:
            continue
        tried.add(axes)
        if (calls := runs.calls(varied | axes)) is not None:
            varied |= axes
            found = [calls]
    return found


def _candidates(leaves: Sequence[Any]) -> Iterator[_Axes]:
    """Axes that may vary together: all but features, the batch, every axis, equal sizes."""
    axes = [(i, axis) for i, x in enumerate(leaves) for axis in range(getattr(x, "ndim", 0))]
    yield frozenset((i, axis) for i, axis in axes if axis != 1)
    yield frozenset((i, axis) for i, axis in axes if axis == 0)
    yield frozenset((i, axis) for i, axis in axes if axis > 1)
    for one in sorted({axis for _, axis in axes if axis}):
        yield frozenset((i, axis) for i, axis in axes if axis == one)
    for size in sorted({leaves[i].shape[axis] for i, axis in axes}):
        yield frozenset((i, axis) for i, axis in axes if leaves[i].shape[axis] == size)


class _Runs:
    """A network that can be run again and again with other sizes."""

    def __init__(self, module: nn.Module, leaves: Sequence[Any], structure: TreeSpec) -> None:
        self._tree = copied(module, share=True)
        self._leaves, self._structure = leaves, structure
        self._found: dict[str, list[Arguments]] = {}
        plain = set(plain_modules(self._tree))
        for path, child in self._tree.named_modules():
            if child in plain:
                child.register_forward_pre_hook(self._noted(path), prepend=True, with_kwargs=True)
        self._mode: Any = FakeTensorMode(allow_non_fake_inputs=True)
        self._runs = False
        """Whether the network is known to run in this mode."""

    def calls(self, enlarged: _Axes) -> Calls | None:
        """None if the network does not run at such a size."""
        try:
            found = self._run(enlarged)
        except Exception:  # whatever the network raises
            if self._runs or not self._wants_values():
                return None
            return self.calls(enlarged)
        self._runs = True
        return found

    def _wants_values(self) -> bool:
        """Whether the network does not run without values at any size; it gets them from now on."""
        self._runs = True
        try:
            self._run(frozenset())
        except Exception:  # whatever it raises
            self._mode = nullcontext()
            return True
        return False

    def _run(self, axes: _Axes) -> Calls:
        self._found = {}
        with quiet("torch"), torch.no_grad(), self._mode:  # it logs what fails, traces and all
            given = [self._enlarged(x, i, axes) for i, x in enumerate(self._leaves)]
            args, kwargs = tree_unflatten(given, self._structure)
            self._tree(*args, **kwargs)
        return self._found

    def _enlarged(self, leaf: Any, index: int, axes: _Axes) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if isinstance(self._mode, FakeTensorMode):
            leaf = self._mode.from_tensor(leaf)
        for axis in range(leaf.ndim):
            if (index, axis) in axes:
                leaf = torch.cat([leaf] * (3 if axis % 2 else 2), axis)
        return leaf

    def _noted(self, path: str) -> Any:
        def enter(called: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._found.setdefault(path, []).append(Arguments.of(args, kwargs))

        return enter
