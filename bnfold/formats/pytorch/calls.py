"""One ATen operator call as a reader hands it over, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bnfold.algebra.graph import Param, Shape
from bnfold.algebra.rounding import EPSILON


class NotCoveredError(Exception):
    """The call falls outside what the neutral graph can say; it is Opaque."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that is computed while the model runs."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Constant:
    """A tensor that is fixed: a parameter, a buffer, a literal."""

    name: str
    tensor: torch.Tensor

    def param(self) -> Param:
        tensor = self.tensor
        return Param(self.name, tuple(tensor.shape), dtype_of(self), lambda: float64(tensor))


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call. `op` is the name without namespace or overload: "conv2d".

    `arguments` maps the schema's names to Value, Constant, lists of these, or plain Python.
    """

    name: str
    op: str
    arguments: Mapping[str, Any]
    outputs: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        """An argument that the operator must have; another overload may not."""
        if name not in self.arguments:
            raise NotCoveredError
        return self.arguments[name]

    def get(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def values(self) -> tuple[str, ...]:
        """Every computed tensor among the arguments, in order."""
        found: list[str] = []
        for argument in self.arguments.values():
            entries = argument if isinstance(argument, list | tuple) else [argument]
            found += [entry.name for entry in entries if isinstance(entry, Value)]
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the reader knows of computed tensors: shapes, and dtypes as "float32".

    `sums_to_one` holds values whose entries sum to one along an axis, and that axis.
    """

    shapes: dict[str, Shape | None]
    dtypes: Mapping[str, str]
    sums_to_one: dict[str, int] = field(default_factory=dict)

    def rank(self, name: str) -> int | None:
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def keeps_float(self, call: Call) -> bool:
        """Whether the call surely gives the one floating type that all its values have."""
        types = self._types(call)
        return len(types) == 1 and "float" in types.pop()

    def may_keep_float(self, call: Call) -> bool:
        """Whether the call gives the one floating type of its values, as far as these are known."""
        known = self._types(call) - {""}
        return len(known) < 2 and all("float" in name for name in known)

    def _types(self, call: Call) -> set[str]:
        return {self.dtypes.get(name, "") for name in (*call.values, *call.outputs)}


def float64(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return tensor.detach().to("cpu", torch.float64).numpy()


def rank_of(call: Call, facts: Facts) -> int:
    rank = facts.rank(call.values[0]) if call.values else None
    if rank is None:
        raise NotCoveredError
    return rank


def axis_of(axis: Any, rank: int) -> int:
    if not isinstance(axis, int):
        raise NotCoveredError
    return axis % rank if rank else axis


def constant_of(argument: Any) -> Constant:
    """The argument, if it is fixed and of a type that values can be folded into."""
    if not isinstance(argument, Constant) or dtype_of(argument) not in EPSILON:
        raise NotCoveredError
    return argument


def dtype_of(constant: Constant) -> str:
    return str(constant.tensor.dtype).removeprefix("torch.")


def optional_param(argument: Any) -> Param | None:
    return None if argument is None else constant_of(argument).param()


def ints_of(argument: Any, rank: int) -> tuple[int, ...]:
    entries = list(argument) if isinstance(argument, list | tuple) else [argument]
    if not all(isinstance(entry, int) for entry in entries):
        raise NotCoveredError
    return tuple(entries * rank if len(entries) == 1 else entries)


def digit_of(op: str) -> str:
    return next(c for c in op if c.isdigit())
