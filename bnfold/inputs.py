"""What the user says about inputs: shapes as text, arrays, tensors, or nothing at all.

1x3x224x224              the one input, float32 unless the model says otherwise
Nx3x224x224              N is free: any batch size
tokens=2x16:int64        a named input and its type
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.algebra.graph import Size
from bnfold.algebra.rounding import numpy_dtype
from bnfold.errors import UsageError
from bnfold.formats.model import MODULES, Model
from bnfold.run import Sample, TensorSpec

FREE_BATCH = 3
"""What a free first size is tried with: neither 0 nor 1, which frameworks treat as special."""

FREE_SIDE = 32
"""What any other free size is tried with, unless the model suggests another."""

DTYPES = (
    *("float32", "float16", "bfloat16", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)

_SPEC = re.compile(r"(?:(?P<name>[^=\s]+)=)?(?P<sizes>[\wx,]+)(?::(?P<dtype>\w+))?", re.ASCII)
_SIZE = re.compile(r"[1-9][0-9]*|[A-Za-wyz_][A-Za-wyz_0-9]*")


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """The inputs of a model with all that is known: specs, an example, and if it is the user's.

    `recorded` is an input that the model is known to run on, where the user recorded one: what a
    number may be, only that tells.
    """

    specs: tuple[TensorSpec, ...]
    sample: Sample
    given: bool = False
    recorded: Sample | None = None

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

    def sized(self, sizes: Mapping[str, int]) -> Sample:
        """Zeros with the free sizes that are named in `sizes`, and the others as in the sample."""
        dynamic = self.dynamic
        names = {name for axes in dynamic.values() for name in axes.values()}
        if unknown := [name for name in sizes if name not in names]:
            free = f"its free sizes are {', '.join(sorted(names))}" if names else "it has none"
            raise UsageError(
                f"{unknown[0]!r} is no free size of the model: {free}",
                "name the sizes that are free, such as --input NxCxHxW with numbers for the others",
            )
        return {
            name: np.zeros(
                [
                    sizes.get(dynamic.get(name, {}).get(axis, ""), size)
                    for axis, size in enumerate(array.shape)
                ],
                array.dtype,
            )
            for name, array in self.sample.items()
        }

    def of(self, specs: tuple[TensorSpec, ...]) -> Inputs:
        """The same inputs by other specs: in their types, and no free size of 1 in the example,
        which frameworks would take for fixed."""

        def like(sample: Sample) -> Sample:
            return {spec.name: _like(sample[spec.name], spec) for spec in specs}

        recorded = None if self.recorded is None else like(self.recorded)
        return Inputs(specs, like(self.sample), self.given, recorded)


def _like(array: Any, spec: TensorSpec) -> Any:
    for axis, size in enumerate(spec.shape or ()):
        if not isinstance(size, int) and array.shape[axis] == 1:
            array = np.repeat(array, FREE_BATCH, axis)
    return array.astype(numpy_dtype(spec.dtype))


def parse(text: str) -> TensorSpec:
    """The spec that `text` describes; its name is "" and its dtype "" where it gives none."""
    found = _SPEC.fullmatch(text.strip())
    sizes = re.split("[x,]", found["sizes"]) if found else []
    if "0" in sizes:
        raise UsageError(f"{text!r} has a size of 0", "every size must be at least 1")
    if found is None or not all(_SIZE.fullmatch(size) for size in sizes):
        raise UsageError(
            f"{text!r} is no input shape",
            "write it like 1x3x224x224 or name=Nx3x224x224:float32; a size is a number above 0, "
            "or a name without an x if it is free",
        )
    dtype = found["dtype"] or ""
    if dtype and dtype not in DTYPES:
        raise UsageError(f"{text!r}: {dtype!r} is no type", f"use one of {', '.join(DTYPES)}")
    shape: list[Size] = [int(size) if size.isdigit() else size for size in sizes]
    return TensorSpec(found["name"] or "", dtype, tuple(shape))


def resolve_inputs(model: Model, given: Any = None, known: Collection[str] = ()) -> Inputs:
    """Complete what the user gave with what the model says.

    `given` is None, a text as above or several, a tensor or array or several, or any of these by
    input name; the free sizes in `known` get their value elsewhere. Raises UsageError, with a shape
    that works where one is found, if it is not enough.
    """
    wanted = model.inputs
    if not says_something(given):
        return _from_model(model, wanted, known)
    if isinstance(given, Mapping):
        entries = [(str(name), _as_text(value)) for name, value in given.items()]
    else:
        values = [given] if _is_shape(given) or not isinstance(given, list | tuple) else given
        entries = [("", _as_text(value)) for value in values]
    if all(isinstance(value, str) for _, value in entries):
        specs = _from_texts(entries, model)
        return Inputs(specs, _samples(model, specs))
    named = dict(
        zip(_names([name for name, _ in entries], model), (v for _, v in entries), strict=True)
    )
    sample = {name: _array(named[name]) for name in _in_order(named, wanted)}
    known = {spec.name: spec.shape for spec in wanted}
    specs = tuple(
        TensorSpec(name, array.dtype.name, known.get(name) or array.shape)
        for name, array in sample.items()
    )
    return Inputs(specs, sample, given=True)


def says_something(given: Any) -> bool:
    """Whether there is anything in what the user gave; a tensor is."""
    return given is not None and not (isinstance(given, list | tuple | Mapping) and not given)


def _is_shape(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(type(size) is int for size in given)


def _as_text(given: Any) -> Any:
    """A shape of plain numbers as the text that says the same; anything else as it is."""
    return "x".join(map(str, given)) if _is_shape(given) else given


def _from_model(model: Model, wanted: Sequence[TensorSpec], known: Collection[str]) -> Inputs:
    for spec in wanted:
        free = [a for a, size in enumerate(spec.shape or ()) if not isinstance(size, int)]
        if spec.shape is None or any(axis > 0 and spec.shape[axis] not in known for axis in free):
            shape = model.suggest()
            example = "x".join(map(str, shape)) if shape else "1x3x224x224"
            raise UsageError(
                f"the model does not say what shape its input {spec.name!r} has",
                f"add --input {example}"
                + (" (it runs with that)" if shape else " with the shape that it was trained on"),
            )
    return Inputs(tuple(wanted), _samples(model, wanted))


def _from_texts(entries: Sequence[tuple[str, str]], model: Model) -> tuple[TensorSpec, ...]:
    parsed = [parse(text) for _, text in entries]
    given = [key or spec.name for (key, _), spec in zip(entries, parsed, strict=True)]
    dtypes = {spec.name: spec.dtype for spec in model.inputs}
    specs = {
        name: TensorSpec(name, spec.dtype or dtypes.get(name, "float32"), spec.shape)
        for name, spec in zip(_names(given, model), parsed, strict=True)
    }
    return tuple(specs[name] for name in _in_order(specs, model.inputs))


def _names(given: Sequence[str], model: Model) -> list[str]:
    """The names of the inputs given: their own, or those of the model in order.

    A module may have inputs beyond those it needs; any other model lists all of them.
    """
    order = [spec.name for spec in model.inputs]
    rest = iter([name for name in order if name not in given])
    names = [name or next(rest, "") for name in given]
    if double := [name for name in names if name and names.count(name) > 1]:
        raise UsageError(f"the input {double[0]!r} was given twice", "give one --input for each")
    unknown = [name for name in names if name not in order and model.format not in MODULES]
    missing = [name for name in order if name not in names]
    what = None
    if "" in names:
        what = f"{len(given)} inputs were given"
    elif unknown:
        what = f"{unknown[0]!r} is no input"
    elif missing:
        what = f"the input {missing[0]!r} was not given, only {', '.join(names)}"
    if what:
        listed = ", ".join(map(str, model.inputs)) or "none"
        raise UsageError(
            f"{what}; the model takes {len(order)}: {listed}",
            "give one --input for each, as name=shape",
        )
    return names


def _in_order(names: Iterable[str], wanted: Sequence[TensorSpec]) -> list[str]:
    """Names in the order of the model's inputs, others last."""
    order = [spec.name for spec in wanted]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _samples(model: Model, specs: Sequence[TensorSpec]) -> Sample:
    """Zeros of every spec, free sizes filled in; the model is asked for sides that it runs on."""
    free = [s for s in specs if any(not isinstance(size, int) for size in (s.shape or ())[1:])]
    suggested = model.suggest() if len(specs) == 1 and free else None
    return {spec.name: _zeros(spec, suggested) for spec in specs}


def _zeros(spec: TensorSpec, suggested: tuple[int, ...] | None) -> Any:
    shape = spec.shape or ()
    like = (FREE_BATCH, *[FREE_SIDE] * (len(shape) - 1))
    if suggested is not None and len(suggested) == len(shape):
        like = (FREE_BATCH, *suggested[1:])
    sizes = [
        size if isinstance(size, int) else side for size, side in zip(shape, like, strict=False)
    ]
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
