"""One ATen operator call as a reader hands it over, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload

from bnfold.algebra.graph import Shape
from bnfold.formats.meaning.operands import (
    Constant,
    Operand,
    Tensor,
    computed,
    not_linear,
    number,
)
from bnfold.formats.pytorch.tensors import dtype_of


@dataclass(frozen=True, eq=False, slots=True)
class Stored(Constant):
    """A tensor that is fixed: a parameter, a buffer, a literal."""

    tensor: torch.Tensor

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Stored:
        dtype = dtype_of(tensor)

        def load() -> np.ndarray[Any, Any]:
            return float64(tensor) if tensor.is_floating_point() else tensor.cpu().numpy()

        return cls(name, tuple(tensor.shape), dtype, load, tensor)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the reader knows of computed tensors: shapes, and dtypes as "float32".

    `sums_to_one` holds values whose entries sum to one along an axis, and that axis.
    """

    shapes: dict[str, Shape | None]
    dtypes: Mapping[str, str]
    sums_to_one: dict[str, int] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        sums = self.sums_to_one.get(name)
        return Tensor(name, self.shapes.get(name), self.dtypes.get(name, ""), sums)


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call. `op` is the name without namespace or overload: "conv2d".

    `arguments` maps the schema's names to Tensor, Stored, lists of these, plain Python, or whatever
    else a reader has for what is computed; `outputs` are the names of what it makes.
    """

    name: str
    op: str
    arguments: Mapping[str, Any]
    outputs: tuple[str, ...]
    facts: Facts

    def has(self, name: str) -> bool:
        """Whether the argument is there, and not None."""
        return self.arguments.get(name) is not None

    def __getitem__(self, name: str) -> Any:
        """An argument that the operator must have; another overload may not."""
        if name not in self.arguments:
            raise not_linear(f"it has no argument {name}")
        return self.arguments[name]

    def get(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def tensors(self) -> list[Tensor]:
        """Every computed tensor among the arguments, in order."""
        found: list[Tensor] = []
        for argument in self.arguments.values():
            entries = argument if isinstance(argument, list | tuple) else [argument]
            found += [entry for entry in entries if isinstance(entry, Tensor)]
        return found

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def x(self) -> Tensor:
        """The first argument, which is computed."""
        first = next(iter(self.arguments.values()), None)
        if not isinstance(first, Tensor):
            raise not_linear("what it works on is fixed")
        return first

    @property
    def made(self) -> Tensor:
        return self.facts.tensor(self.outputs[0])

    @property
    def results(self) -> list[Tensor]:
        return [self.facts.tensor(name) for name in self.outputs]

    def operand(self, name: str) -> Operand:
        """A tensor, or a Python number as a constant."""
        argument = self[name]
        if isinstance(argument, Tensor | Constant):
            return argument
        return number(self.number(name))

    def optional(self, name: str) -> Operand | None:
        return self.operand(name) if self.has(name) else None

    def operands(self, name: str) -> list[Operand]:
        entries = self[name]
        if not isinstance(entries, list) or not all(
            isinstance(entry, Tensor | Constant) for entry in entries
        ):
            raise computed(f"its list of {name}")
        return entries

    def number(self, name: str, default: float | None = None) -> float:
        """A Python number, which a trace may have written as a tensor without axes."""
        argument = self[name] if default is None else self.get(name)
        if argument is None and default is not None:
            return default
        if isinstance(argument, Stored) and argument.tensor.ndim == 0:
            argument = argument.tensor.item()
        if isinstance(argument, bool) or not isinstance(argument, int | float):
            raise computed(f"its {name}")
        return float(argument)

    def flag(self, name: str) -> bool:
        argument = self.get(name)
        if not isinstance(argument, bool | int | None):
            raise computed(f"its {name}")
        return bool(argument)

    def ints(self, name: str, rank: int = 1) -> tuple[int, ...]:
        """Whole numbers; a single one stands for all of `rank`."""
        argument = self[name]
        entries = list(argument) if isinstance(argument, list | tuple) else [argument]
        if not all(isinstance(entry, int) for entry in entries):
            raise computed(f"its {name}")
        return tuple(entries * rank if len(entries) == 1 else entries)

    def whole(self, name: str, default: int | None = None) -> int:
        """One whole number; the default stands for None, too."""
        if default is not None and not self.has(name):
            return default
        (entry,) = self.ints(name)
        return entry


def name_of(op: OpOverload) -> str:
    """The name of an operator without namespace and overload: "conv2d"."""
    return op._schema.name.removeprefix("aten::")


def arguments_of(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names in the schema; a default for what is not given."""
    named = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False))
    return {
        argument.name: named.get(argument.name, kwargs.get(argument.name, argument.default_value))
        for argument in op._schema.arguments
    }


def float64(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return tensor.detach().to("cpu", torch.float64).numpy()
