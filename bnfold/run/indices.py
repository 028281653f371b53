"""Which inputs of a PyTorch model pick rows of a table: found out by watching it run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bnfold.run import Sample
from bnfold.run.supervision import running
from bnfold.run.torch_eager import TorchRunner

_aten = torch.ops.aten
_PASSING = (
    *(_aten._to_copy.default, _aten.alias.default, _aten.clone.default, _aten.detach.default),
    *(_aten.expand.default, _aten.squeeze.dim, _aten.t.default, _aten.unsqueeze.default),
    *(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
)
"""What an index goes through as it is."""


def index_limits(runner: Any, sample: Sample) -> Mapping[str, int]:
    """Input -> the rows of the smallest table that an embedding takes by its values.

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
    return watch.limits


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the inputs to the embeddings that they reach."""

    def __init__(self, inputs: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limits: dict[str, int] = {}
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
        return made

    def _name(self, tensor: Any) -> str | None:
        return next((name for known, name in self._known if known is tensor), None)
