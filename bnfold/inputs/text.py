"""An input as people type it: a name, sizes or a value, a type."""

from __future__ import annotations

import re

import numpy as np

from bnfold.algebra.graph import Size
from bnfold.algebra.rounding import numpy_dtype
from bnfold.errors import UsageError
from bnfold.runtimes import TensorSpec

DTYPES = (
    *("float32", "float16", "bfloat16", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)

_SPEC = re.compile(r"(?:(?P<name>[^=\s]+)=)?(?P<sizes>[\wx,]+)(?::(?P<dtype>\w+))?", re.ASCII)
_SCALAR = re.compile(r"(?:(?P<name>[^=\s]+)=)?:(?P<dtype>\w+)(?:=(?P<value>\S+))?", re.ASCII)
_SIZE = re.compile(r"[1-9][0-9]*|[A-Za-wyz_][A-Za-wyz_0-9]*")


def parse(text: str) -> TensorSpec:
    """The spec that `text` describes; its name is "" and its dtype "" where it gives none."""
    if found := _SCALAR.fullmatch(text.strip()):
        return scalar(text, found["name"] or "", found["dtype"], found["value"])
    found = _SPEC.fullmatch(text.strip())
    sizes = re.split("[x,]", found["sizes"]) if found else []
    if "0" in sizes:
        raise UsageError(f"{text!r} has a size of 0", "every size must be at least 1")
    if found is None or not all(_SIZE.fullmatch(size) for size in sizes):
        raise UsageError(
            f"{text!r} is no input shape",
            "write it like 1x3x224x224 or name=Nx3x224x224:float32; a size is a number above 0, "
            "or a name without an x if it is free; an input without axes is name=:int64=16000",
        )
    dtype = found["dtype"] or ""
    _require_type(text, dtype)
    shape: list[Size] = [int(size) if size.isdigit() else size for size in sizes]
    return TensorSpec(found["name"] or "", dtype, tuple(shape))


def _require_type(text: str, dtype: str) -> None:
    if dtype and dtype not in DTYPES:
        raise UsageError(f"{text!r}: {dtype!r} is no type", f"use one of {', '.join(DTYPES)}")


def scalar(text: str, name: str, dtype: str, value: str | None) -> TensorSpec:
    """The spec of an input without axes, with its value if one is given."""
    _require_type(text, dtype)
    if value is None:
        return TensorSpec(name, dtype, ())
    kind = numpy_dtype(dtype)
    try:
        if kind.kind == "b":
            return TensorSpec(name, dtype, (), value={"true": True, "false": False}[value.lower()])
        if kind.kind in "iu":
            return TensorSpec(name, dtype, (), value=int(np.array(int(value), kind)))
        return TensorSpec(name, dtype, (), value=float(value))
    except (KeyError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r}: {value!r} is no {dtype}", f"write it like {name or 'rate'}=:{dtype}=1"
        ) from error
