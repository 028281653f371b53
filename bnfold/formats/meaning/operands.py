"""What a builder is told of the values that an op reads, and how it says no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import Param, Shape
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rounding import EPSILON


class NotCoveredError(Exception):
    """The call falls outside what the neutral graph can say: it is Opaque, for this reason.

    `is_affine` says that it would have been an affine, and is listed as one that stays.
    """

    def __init__(self, reason: Reason, why: str, *, is_affine: bool = False) -> None:
        super().__init__(why)
        self.reason, self.why, self.is_affine = reason, why, is_affine


def unknown(what: str) -> NotCoveredError:
    return NotCoveredError(Reason.UNKNOWN_SHAPE, f"{what} is not known")


def computed(what: str) -> NotCoveredError:
    return NotCoveredError(Reason.NOT_CONSTANT, f"{what} is computed at run time")


def not_linear(why: str = "no affine is known to pass through it") -> NotCoveredError:
    return NotCoveredError(Reason.NOT_LINEAR, why)


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A value that is computed while the model runs, as far as it is known before.

    One without a name is made between two steps of an op. `dtype` is "float32" and the like, ""
    where not known; its entries sum to one along the axis `sums_to_one`, if it has one.
    """

    name: str
    shape: Shape | None = None
    dtype: str = ""
    sums_to_one: int | None = None

    @property
    def known(self) -> Shape:
        """The sizes, one for each axis; raises where not even the rank is known."""
        if self.shape is None:
            raise unknown(f"the rank of {self.name}")
        return self.shape

    @property
    def rank(self) -> int:
        return len(self.known)

    def axis(self, axis: int) -> int:
        """An axis counted from the left."""
        if axis >= 0 and self.shape is None:
            return axis
        if not -self.rank <= axis < max(self.rank, 1):
            raise unknown(f"axis {axis} of {self.name}")
        return axis % self.rank if self.rank else 0

    def size(self, axis: int) -> int:
        size = self.known[axis]
        if not isinstance(size, int):
            raise unknown(f"the size of axis {axis} of {self.name}")
        return size

    def between(self, shape: Shape | None) -> Tensor:
        """What a step makes of it on the way to the result, of the same type."""
        return Tensor("", shape, self.dtype)


@dataclass(frozen=True, eq=False, slots=True)
class Constant:
    """A fixed tensor of type `dtype`: a parameter, a literal, or made of these.

    `load` gives it as numpy, a floating type as it is or in float64.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], NDArray[Any]]

    def numbers(self) -> Array:
        """Its values in float64, which holds real numbers only."""
        if self.dtype not in EPSILON and not self.dtype.startswith(("int", "uint")):
            raise NotCoveredError(Reason.PRECISION, f"{self.name} is of type {self.dtype}")
        return np.asarray(self.load(), np.float64)

    def integers(self) -> list[int]:
        """Its elements in order, as indices, sizes or axes."""
        array = self.load()
        if array.dtype.kind not in "iu":
            raise not_linear(f"{self.name} holds {array.dtype.name}, not whole numbers")
        return [int(i) for i in array.reshape(-1).tolist()]

    def param(
        self,
        change: Callable[[Array], Array] = lambda a: a,
        shape: tuple[int, ...] | None = None,
    ) -> Param:
        """As a parameter, not loaded yet. `change` brings it into a layout of `shape`."""
        if self.dtype not in EPSILON:
            raise NotCoveredError(Reason.PRECISION, f"{self.name} is of type {self.dtype}")
        own = self.shape if shape is None else shape
        return Param(self.name, own, self.dtype, lambda: change(self.numbers()))


Operand = Tensor | Constant


def constant(operand: object, role: str) -> Constant:
    """The operand, which must be fixed."""
    if isinstance(operand, Constant):
        return operand
    raise computed(f"its {role}{f' {operand.name}' if isinstance(operand, Tensor) else ''}")


def number(value: float) -> Constant:
    """A plain number as a constant without axes."""
    return Constant(str(value), (), "float64", lambda: np.array(value, np.float64))


def keep_type(*tensors: Tensor, surely: bool = False) -> None:
    """Require that all are of one floating type, as far as that is known, or `surely`."""
    known = list(dict.fromkeys(t.dtype for t in tensors if t.dtype))
    if len(known) > 1:
        raise NotCoveredError(Reason.PRECISION, f"it turns {known[0]} into {known[-1]}")
    if any("float" not in name for name in known):
        raise not_linear(f"it computes with {known[0]}")
    if surely and any(not t.dtype for t in tensors):
        raise NotCoveredError(Reason.PRECISION, "the type of what it makes is not known")
