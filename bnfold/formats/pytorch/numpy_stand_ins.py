"""Numbers and arrays of NumPy in a pickle, made by functions that check what they are given.

NumPy's own would follow a hostile description of a type into memory that is not there. Here a type
is one of plain numbers, and the bytes must be as many as the shape needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CODE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|\?)")


class _Type:
    """The type of numbers that a pickle describes, as numpy.dtype(code) and then a state."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise ValueError(f"{code!r} is no type of plain numbers")
        self.found = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, order, *_ = state
        if version != 3 or order not in ("<", ">", "|", "="):
            raise ValueError("a type of numbers has an unknown description")
        self.found = self.found.newbyteorder(order)


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """An array that checks its state; it is written like any other."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        _check(kind, shape, content)
        whole: Any = (1, tuple(shape), kind.found, bool(fortran), content)
        super().__setstate__(whole)

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()


def _check(kind: Any, shape: Sequence[int], content: Any) -> None:
    if type(kind) is not _Type or not isinstance(content, bytes | bytearray):
        raise ValueError("an array of NumPy holds other things than plain numbers")
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("an array of NumPy has no proper shape")
    if math.prod(shape) * kind.found.itemsize != len(content):
        raise ValueError("an array of NumPy has more or fewer numbers than its shape says")


def _scalar(kind: Any, content: bytes = b"") -> Any:
    _check(kind, (), content)
    return np.frombuffer(content, kind.found)[0]


def _empty(kind: Any, shape: Any, code: Any) -> NDArray[Any]:
    return np.empty(0).view(_Array)


def _no_bytes() -> bytes:
    """What protocol 2 calls for the bytes of an array without any."""
    return b""


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> NDArray[Any]:
    shape = shape if isinstance(shape, tuple) else (shape,)
    _check(kind, shape, content)
    if order not in ("C", "F") or axes is not None:
        raise ValueError("an array of NumPy has an unknown order")
    return np.frombuffer(bytearray(content), kind.found).reshape(shape, order=order)


STAND_INS: Mapping[str, Any] = {
    "numpy.dtype": _Type,
    "builtins.bytes": _no_bytes,
    "numpy.ndarray": "numpy.ndarray",  # only named, as an argument
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")
        for name, function in {
            "multiarray.scalar": _scalar,
            "multiarray._reconstruct": _empty,
            "numeric._frombuffer": _from_buffer,
        }.items()
    },
}
"""What pickles call NumPy's functions, in its older and newer versions, and what is called."""

TYPES: Mapping[str, Any] = {"bnfold array": _Array}
"""The class of arrays that are built in two steps, which no file can name."""
