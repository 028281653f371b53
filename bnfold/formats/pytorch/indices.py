"""What a PyTorch model does with its inputs of integers: found out by watching it run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold.processes.supervision import running
from bnfold.runtimes import Integers, Sample
from bnfold.runtimes.torch_eager import TorchRunner

_aten = torch.ops.aten
_PASSING = (
    *(_aten._to_copy.default, _aten.alias.default, _aten.clone.default, _aten.detach.default),
    *(_aten.expand.default, _aten.squeeze.dim, _aten.t.default, _aten.unsqueeze.default),
    *(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
)
"""What an index goes through as it is."""


_COMPARING = (
    *(_aten.eq, _aten.ne, _aten.lt, _aten.le, _aten.gt, _aten.ge),
    *(_aten.clamp, _aten.clamp_min, _aten.clamp_max, _aten.remainder),
)


def integers_taken(runner: Any, sample: Sample) -> Mapping[str, Integers]:
    """Input -> the rows of the smallest table that an embedding takes by its values, and the
    numbers that it is compared with.

    Empty where the model does not run on `sample`: what is wrong is said when it is compared.
    """
    assert isinstance(runner, TorchRunner)
    tensors = runner.tensors(sample)
    watch = _Watch(tensors)
    try:
        with running(runner, sample), watch:
            runner.call(tensors)
    except Exception:  # the model's own code can raise anything
        return {}
    return {
        name: Integers(watch.limits.get(name), tuple(sorted(watch.marks.get(name, ()))))
        for name in (*watch.limits, *watch.marks)
    }


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the inputs to the embeddings and the comparisons that they reach."""

    def __init__(self, inputs: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limits: dict[str, int] = {}
        self.marks: dict[str, set[int]] = {}
        self._known = [(tensor, name) for name, tensor in inputs.items()]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _PASSING and (name := self._name(args[0])):
            self._known.append((made, name))
        if func is _aten.embedding.default and (name := self._name(args[1])):
            rows = args[0].shape[0]
            self.limits[name] = min(rows, self.limits.get(name, rows))
        if func.overloadpacket in _COMPARING and (name := self._name(args[0])):
            numbers = [arg for arg in args[1:] if isinstance(arg, int | float)]
            numbers += [
                arg.item()
                for arg in args[1:]
                if isinstance(arg, torch.Tensor) and arg.numel() == 1 and self._name(arg) is None
            ]
            self.marks.setdefault(name, set()).update(map(int, numbers))
        return made

    def _name(self, tensor: Any) -> str | None:
        return next((name for known, name in self._known if known is tensor), None)
