"""What every module of a network is called with while the network runs once.

What a part of a network computes can change inside, if its results stay, only where nobody else
looks inside: the record also tells who called the part's modules and who read its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

PLAIN = (bool, int, float, str, type(None))
"""What may be passed beside tensors: it is the same value in every call, or the calls differ."""


@dataclass(frozen=True, eq=False, slots=True)
class Arguments:
    """The arguments of one call, flat: tensors on the device "meta", where they take no memory."""

    leaves: tuple[Any, ...]
    structure: TreeSpec
    devices: tuple[torch.device, ...]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        leaves, structure = tree_flatten((args, dict(kwargs)))
        devices = tuple(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
        light = tuple(_without_memory(x) if isinstance(x, torch.Tensor) else x for x in leaves)
        return cls(light, structure, devices)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]

    @property
    def others(self) -> list[Any]:
        return [None if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]

    def is_plain(self) -> bool:
        return all(isinstance(leaf, (torch.Tensor, *PLAIN)) for leaf in self.leaves)

    def is_like(self, other: Arguments) -> bool:
        """Whether one captured call can stand for both: they differ in sizes alone."""
        return (
            self.structure == other.structure
            and self.devices == other.devices
            and self.others == other.others
            and [(t.dtype, t.ndim) for t in self.tensors]
            == [(t.dtype, t.ndim) for t in other.tensors]
        )


@dataclass(eq=False)
class Record:
    """The calls of every module, each with the modules that were running, outermost first."""

    calls: dict[nn.Module, list[Arguments]] = field(default_factory=dict)
    callers: dict[nn.Module, list[tuple[nn.Module, ...]]] = field(default_factory=dict)
    readers: dict[int, set[tuple[nn.Module, ...]]] = field(default_factory=dict)
    """storage of a parameter or buffer -> the modules that were running when it was read"""
    asking: set[nn.Module] = field(default_factory=set)
    """the modules that asked a tensor for more than its type and rank, such as a size"""
    giving: dict[nn.Module, bool] = field(default_factory=dict)
    """whether the last call of a module gave one tensor, and nothing around it"""

    def visitors(self, part: nn.Module) -> Iterator[nn.Module]:
        """The modules inside `part` that were called, or whose tensors were read, past it."""
        inside = set(part.modules())
        for module in part.modules():
            if any(
                part not in running and not _is_shared((*running, module), inside)
                for running in self.callers.get(module, ())
                if module is not part
            ):
                yield module
            for tensor in _own_tensors(module):
                for running in self.readers.get(_storage(tensor), ()):
                    if part not in running and not _is_tied(tensor, running, inside):
                        yield module


def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Record:
    """Run `module`, a copy that is not used for anything else: the hooks stay on it."""
    found, running = Record(), []  # type: ignore[var-annotated]

    def enter(called: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        found.calls.setdefault(called, []).append(Arguments.of(args, kwargs))
        found.callers.setdefault(called, []).append(tuple(running))
        running.append(called)

    def leave(called: nn.Module, args: Any, output: Any) -> None:
        running.pop()
        found.giving[called] = isinstance(output, torch.Tensor)

    for child in plain_modules(module):
        child.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        child.register_forward_hook(leave, always_call=True)
    stored = {_storage(t) for child in module.modules() for t in _own_tensors(child)}
    with torch.no_grad(), _Readers(stored, running, found.readers), _Asking(running, found.asking):
        module(*args, **kwargs)
    return found


def _without_memory(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, FakeTensor):
        return tensor.detach().to("meta")
    with _disable_current_modes():
        size, stride = tuple(tensor.shape), tensor.stride()
        return torch.empty_strided(size, stride, dtype=tensor.dtype, device="meta")


def plain_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that run as Python: what was scripted, and all in it, does not."""
    seen: set[nn.Module] = set()
    waiting = [module]
    while waiting:
        each = waiting.pop()
        if each not in seen and not isinstance(each, torch.jit.ScriptModule):
            seen.add(each)
            waiting.extend(each.children())
            yield each


class _Readers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which modules are running whenever an operator reads one of the stored tensors."""

    def __init__(
        self,
        stored: set[int],
        running: list[nn.Module],
        readers: dict[int, set[tuple[nn.Module, ...]]],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stored, self._running, self._readers = stored, running, readers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and (key := _storage(leaf)) in self._stored:
                self._readers.setdefault(key, set()).add(tuple(self._running))
        return func(*args, **(kwargs or {}))


_TYPES_AND_RANKS = {
    *(torch.Tensor.dim, torch.Tensor.ndim.__get__, torch.Tensor.dtype.__get__),  # type: ignore[attr-defined]
    *(torch.Tensor.device.__get__, torch.Tensor.is_floating_point, torch.is_floating_point),
    torch._assert,  # of what was asked before
}


class _Asking(TorchFunctionMode):
    """Notes which modules are running whenever a tensor is asked for what is no tensor."""

    def __init__(self, running: list[nn.Module], asking: set[nn.Module]) -> None:
        super().__init__()
        self._running, self._asking = running, asking

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, torch.Tensor) and func not in _TYPES_AND_RANKS:
            self._asking.update(self._running)
        return result


def _own_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_shared(running: tuple[nn.Module, ...], inside: set[nn.Module]) -> bool:
    """Whether the call that got inside did so from a module that has the called one as a child."""
    entry = next(place for place, module in enumerate(running) if module in inside)
    return entry > 0 and running[entry] in running[entry - 1].children()


def _is_tied(tensor: torch.Tensor, running: tuple[nn.Module, ...], inside: set[nn.Module]) -> bool:
    """Whether the module that ran last has a reference of its own to the tensor."""
    last = running[-1] if running else None
    if last is None or last in inside:
        return False
    return any(_storage(own) == _storage(tensor) for own in _own_tensors(last))
