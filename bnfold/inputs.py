"""What the user says about inputs: shapes as text, arrays, tensors, or nothing at all.

1x3x224x224              the one input, float32 unless the model says otherwise
Nx3x224x224              N is free: any batch size
tokens=2x16:int64        a named input and its type
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.errors import UsageError
from bnfold.formats.model import Model
from bnfold.graph import Size
from bnfold.rounding import numpy_dtype
from bnfold.run import Sample, TensorSpec

FREE_SIZE = 3
"""What a free size is tried with first: neither 0 nor 1, which frameworks treat as special."""

_SPEC = re.compile(r"(?:(?P<name>[^=\s]+)=)?(?P<sizes>\w+(?:[x,]\w+)*)(?::(?P<dtype>\w+))?\Z")


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """The inputs of a model with all that is known: specs, an example, and if it is the user's."""

    specs: tuple[TensorSpec, ...]
    sample: Sample
    given: bool = False

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """Input name -> axis -> name, for every free size."""
        return {
            spec.name: {
                axis: str(size or f"{spec.name}_{axis}")
                for axis, size in enumerate(spec.shape or ())
                if not isinstance(size, int)
            }
            for spec in self.specs
        }


def parse(text: str) -> TensorSpec:
    """The spec that `text` describes; its name is "" and its dtype "" where it gives none."""
    found = _SPEC.match(text.strip())
    if found is None:
        raise UsageError(
            f"{text!r} is no input shape", "write it like 1x3x224x224 or name=1x3x224x224:float32"
        )
    sizes = re.split(r"x(?=\w)|,", found["sizes"])
    shape: list[Size] = [int(s) if s.isdigit() else s for s in sizes]
    if any(size == 0 for size in shape):
        raise UsageError(f"{text!r} has a size of 0", "every size must be at least 1")
    dtype = found["dtype"] or ""
    if dtype:
        try:
            numpy_dtype(dtype)
        except TypeError as error:
            raise UsageError(
                f"{text!r}: {dtype!r} is no type", "use float32, float16, int64, bool, ..."
            ) from error
    return TensorSpec(found["name"] or "", dtype, tuple(shape))


def resolve_inputs(model: Model, given: Any = None) -> Inputs:
    """Complete what the user gave with what the model says.

    `given` is None, a text as above or several, a tensor or array or several, or any of these by
    input name. Raises UsageError, with a shape that works where one is found, if it is not enough.
    """
    wanted = model.inputs
    if given is None or (isinstance(given, list | tuple | Mapping) and not given):
        return _from_model(model, wanted)
    if isinstance(given, Mapping):
        entries = [(str(name), value) for name, value in given.items()]
    else:
        values = list(given) if isinstance(given, list | tuple) else [given]
        if values and all(isinstance(v, int) for v in values):
            values = ["x".join(map(str, values))]
        entries = [("", value) for value in values]
    if all(isinstance(value, str) for _, value in entries):
        specs = _from_texts(entries, wanted)
        return Inputs(specs, {s.name: _zeros(s) for s in specs})
    names = _names([name for name, _ in entries], wanted)
    sample = {name: _array(value) for name, (_, value) in zip(names, entries, strict=True)}
    known = {spec.name: spec.shape for spec in wanted}
    specs = tuple(
        TensorSpec(name, array.dtype.name, known.get(name) or array.shape)
        for name, array in sample.items()
    )
    return Inputs(specs, sample, given=True)


def _from_model(model: Model, wanted: Sequence[TensorSpec]) -> Inputs:
    for spec in wanted:
        free = [a for a, size in enumerate(spec.shape or ()) if not isinstance(size, int)]
        if spec.shape is None or any(axis > 0 for axis in free):
            shape = model.suggest()
            example = "x".join(map(str, shape)) if shape else "1x3x224x224"
            raise UsageError(
                f"the model does not say what shape its input {spec.name!r} has",
                f"add --input {example}"
                + (" (it runs with that)" if shape else " with the shape that it was trained on"),
            )
    return Inputs(tuple(wanted), {spec.name: _zeros(spec) for spec in wanted})


def _from_texts(
    entries: Sequence[tuple[str, str]], wanted: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    parsed = [parse(text) for _, text in entries]
    names = _names(
        [key or spec.name for (key, _), spec in zip(entries, parsed, strict=True)], wanted
    )
    dtypes = {spec.name: spec.dtype for spec in wanted}
    return tuple(
        TensorSpec(name, spec.dtype or dtypes.get(name, "float32"), spec.shape)
        for name, spec in zip(names, parsed, strict=True)
    )


def _names(given: Sequence[str], wanted: Sequence[TensorSpec]) -> list[str]:
    """The names of the inputs given: their own, or those of the model in order."""
    order = [spec.name for spec in wanted]
    unnamed = [i for i, name in enumerate(given) if not name]
    free = [name for name in order if name not in given]
    if len(unnamed) > len(free):
        listed = ", ".join(map(str, wanted)) or "none"
        raise UsageError(
            f"{len(given)} inputs were given, the model takes {len(order)}: {listed}",
            "give one --input for each, as name=shape",
        )
    rest = iter(free)
    return [name or next(rest) for name in given]


def _zeros(spec: TensorSpec) -> Any:
    sizes = [size if isinstance(size, int) else FREE_SIZE for size in spec.shape or ()]
    return np.zeros(sizes, numpy_dtype(spec.dtype))


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        from bnfold.run.torch_eager import to_array

        return to_array(value)
    raise UsageError(
        f"an input is a {type(value).__name__}, not an array or a tensor",
        "models that take other things can be wrapped in a module whose forward takes tensors",
    )
