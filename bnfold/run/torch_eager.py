"""Run PyTorch callables on NumPy samples: as they are, or with every operation in float64.

The float64 run takes a copy of the model whose parameters are float64 already. A dispatch mode
sees each ATen operator, also those that TorchScript's interpreter calls, and hands it float64 in
place of any narrower float: a cast in the model's own code ("x.float()") or a constant in it stays
float64 too, so the result is the truth that the model approximates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from bnfold.run import Outputs, Sample

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class InFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, no operator computes in a float narrower than float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wide: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(self._widen, (args, dict(kwargs or {})))
        return tree_map(self._widen, func(*args, **kwargs))

    def _widen(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype in _NARROW:
            known = self._wide.get(id(value))
            if known is None or known[0] is not value:
                known = self._wide[id(value)] = (value, value.detach().to(torch.float64))
            return known[1]
        return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


class TorchRunner:
    """`function` called with the sample's tensors by the names of its parameters, without grad.

    `arguments` gives, for every input name in order, the parameter to pass it by keyword, or None
    to pass it by position. `wide` computes in float64, of a `function` with float64 parameters.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, str | None],
        *,
        wide: bool = False,
        device: str = "cpu",
    ) -> None:
        self._function = function
        self._arguments = arguments
        self._wide = wide
        self._device = device

    @property
    def name(self) -> str:
        return "float64" if self._wide else f"torch {self._device}"

    def __call__(self, sample: Sample) -> Outputs:
        positional: list[torch.Tensor] = []
        keywords: dict[str, torch.Tensor] = {}
        for name, array in sample.items():
            tensor = to_tensor(array).to(self._device)
            if self._wide and tensor.is_floating_point():
                tensor = tensor.double()
            keyword = self._arguments.get(name)
            if keyword is None:
                positional.append(tensor)
            else:
                keywords[keyword] = tensor
        with torch.no_grad():
            if not self._wide:
                return named_outputs(self._function(*positional, **keywords))
            with InFloat64():
                return named_outputs(self._function(*positional, **keywords))


def to_tensor(array: NDArray[Any]) -> torch.Tensor:
    """A tensor with its own memory; bfloat16 arrays are those of ml_dtypes."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def named_outputs(result: Any) -> Outputs:
    """The tensors of any nest of tuples, lists, dicts and dataclasses, named by their path."""
    named: Outputs = {}
    _collect(result, "", named)
    return named


def _collect(value: Any, path: str, named: Outputs) -> None:
    if isinstance(value, torch.Tensor):
        named[path or "output"] = to_array(value)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _collect(entry, f"{path}.{key}" if path else str(key), named)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        names = getattr(value, "_fields", None) or [f"output.{i}" for i in range(len(value))]
        for name, entry in zip(names, value, strict=True):
            _collect(entry, f"{path}.{name}" if path else name, named)
    elif isinstance(value, bool | int | float):
        named[path or "output"] = np.asarray(value)
    elif hasattr(value, "__dataclass_fields__"):
        _collect({name: getattr(value, name) for name in value.__dataclass_fields__}, path, named)
    elif value is not None:
        for i, leaf in enumerate(tree_flatten(value)[0]):
            if isinstance(leaf, torch.Tensor):
                named[f"{path or 'output'}.{i}"] = to_array(leaf)
