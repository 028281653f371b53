"""Which submodules another module can stand in for, one that computes the same inside otherwise.

A submodule has a stand-in only if
    ONE_CALL   it is called once when the network runs, with tensors and plain values
    CLOSED     nobody calls a module inside it, or reads a tensor of it, from outside, and the code
               around it does not name what lies inside
    PURE       nothing inside leaves a tensor behind on a module
    UNSEEN     neither it nor anything inside has hooks, or is TorchScript
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from bnfold.formats.pytorch.capture import copied
from bnfold.formats.pytorch.recording import PLAIN, Arguments, plain_modules, record
from bnfold.formats.pytorch.surroundings import reaches_into
from bnfold.formats.pytorch.tensors import escaped, holders
from bnfold.formats.pytorch.variation import Calls, calls_of_other_sizes


class Enclosures:
    """What is known of the submodules of one network that ran on one input."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self._tree = copied(module, share=True)
        self._paths = dict(self._tree.named_modules(remove_duplicate=False))
        with escaped(self._tree) as left:
            self._record = record(self._tree, args, kwargs)
        self._leaving = holders(self._tree, left)
        self._network = module, args, kwargs
        self._plain = list(plain_modules(self._tree))
        self._known: dict[str, str | None] = {}
        self._sizeless: dict[str, Arguments | None] = {}

    @cached_property
    def _runs(self) -> list[Calls]:
        """The calls of every submodule, for the input as given and then for other sizes."""
        first = {path: self._record.calls.get(m, ()) for path, m in self._tree.named_modules()}
        return [first, *calls_of_other_sizes(*self._network)]

    def calls(self, path: str) -> Sequence[Arguments]:
        """The one call of the submodule for each size of the input, the largest first."""
        return [run[path][0] for run in reversed(self._runs)]

    def unfit(self, path: str) -> str | None:
        """Why nothing can stand in for the submodule; None if something can."""
        if path not in self._known:
            self._known[path] = self._barred(path) or self._varies(path)
        return self._known[path]

    def only_call(self, path: str) -> Arguments | None:
        """The call of a submodule that takes a tensor and gives one, and asks for no size."""
        if path not in self._sizeless:
            self._sizeless[path] = None if self._barred(path) else self._call_without_sizes(path)
        return self._sizeless[path]

    def _call_without_sizes(self, path: str) -> Arguments | None:
        module = self._paths[path]
        calls = self._record.calls.get(module, [])
        if len(calls) != 1 or module in self._record.asking or not self._record.giving[module]:
            return None
        return calls[0] if calls[0].is_plain() and len(calls[0].tensors) == 1 else None

    def refuse(self, path: str, why: str) -> None:
        """Let the submodule be unfit from now on."""
        self._known[path] = why

    def _barred(self, path: str) -> str | None:
        module = self._paths.get(path)
        name = path or "the model"
        if module is None:
            return f"there is no module {path}"
        if any(isinstance(each, torch.jit.ScriptModule) for each in module.modules()):
            return f"there is TorchScript in {name}"
        if not self._leaving.isdisjoint(module.modules()):
            return f"{name} leaves a tensor behind on a module"
        if any(map(self._has_hooks, module.modules())):
            return f"hooks look into {name}"
        if not _is_writable(module):
            return f"the signature of {name} has defaults that are no plain values"
        if visitor := next(self._record.visitors(module), None):
            inner = {each: name for name, each in module.named_modules()}[visitor]
            return f"{inner} in {name} is used from outside as well"
        if path and (chain := reaches_into(module, self._plain)):
            return f"the code around {name} gets at what is in it ({chain})"
        return None

    def _varies(self, path: str) -> str | None:
        """What speaks against it at other sizes, or in the way that it is called."""
        name = path or "the model"
        if any(len(run.get(path, ())) != 1 for run in self._runs):
            return f"{name} is not called exactly once"
        first, *others = self.calls(path)
        if not first.is_plain() or not all(call.is_like(first) for call in others):
            return f"{name} takes other inputs than tensors and numbers"
        return None

    def _has_hooks(self, module: nn.Module) -> bool:
        """Whether there are more than those that recorded the calls."""
        return len(module._forward_hooks) > 1 or len(module._forward_pre_hooks) > 1


def _is_writable(module: nn.Module) -> bool:
    """Whether the signature of its forward can be written down."""
    parameters = inspect.signature(module.forward).parameters.values()
    return all(p.default is p.empty or type(p.default) in PLAIN for p in parameters)
