"""What the user gave for inputs, completed with what the model says."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnfold.algebra.graph import Size
from bnfold.algebra.rounding import numpy_dtype
from bnfold.errors import ModelError, UsageError
from bnfold.formats.model import MODULES, Model
from bnfold.inputs import FREE_BATCH, Inputs
from bnfold.inputs.text import parse, scalar
from bnfold.protocol import Protocol
from bnfold.runtimes import Sample, TensorSpec

FREE_SIDE = 32
"""What any other free size has, where the model does not tell what it runs on."""


MOST_BYTES = 1 << 34
"""Of one input that a model declares."""

_RANKS = 8
"""More axes than any input has."""


SIDES = (224, 32, 28, 64, 128, 256, 16, 8, 512)
"""What the other free sizes are tried with, likeliest first."""


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
    return Inputs(specs, sample, given=True, data=True)


def says_something(given: Any) -> bool:
    """Whether there is anything in what the user gave; a tensor is."""
    return given is not None and not (isinstance(given, list | tuple | Mapping) and not given)


def _is_shape(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(type(size) is int for size in given)


def _as_text(given: Any) -> Any:
    """A shape of plain numbers as the text that says the same; anything else as it is."""
    return "x".join(map(str, given)) if _is_shape(given) else given


def _from_model(model: Model, wanted: Sequence[TensorSpec], known: Collection[str]) -> Inputs:
    unsaid = next((spec for spec in wanted if not _is_told(spec, known)), None)
    if unsaid is None:
        return Inputs(tuple(wanted), _samples(model, wanted))
    sample = _that_runs(model, wanted)
    if sample is None:
        shape = model.suggest()
        raise UsageError(
            f"the model does not say what shape its input {unsaid.name!r} has",
            f"add {_proposed(wanted, shape)}"
            + (" (it runs with that)" if shape else " with the sizes that it was trained on"),
        )
    sizes = ", ".join(f"{name}={'x'.join(map(str, a.shape))}" for name, a in sample.items())
    note = f"its sizes are free and no --input names any: it was run with {sizes} and around that"
    model.notes = (*model.notes, note)
    return Inputs(tuple(wanted), sample)


def _is_told(spec: TensorSpec, known: Collection[str]) -> bool:
    """Whether all sizes are known but the first."""
    return spec.shape is not None and all(
        isinstance(size, int) or size in known for size in spec.shape[1:]
    )


def _proposed(wanted: Sequence[TensorSpec], shape: tuple[int, ...] | None) -> str:
    """What to type for the inputs, with numbers where the model has none; `shape` is of one."""
    texts = []
    for spec in wanted:
        usual: tuple[Size, ...] = (1, 16) if spec.dtype.startswith("int") else (1, 3, 224, 224)
        sizes = shape or (usual if spec.shape is None else spec.shape)
        side = SIDES[0] if len(sizes) > 3 else 16
        text = "x".join(
            str(size if isinstance(size, int) else side if axis else 1)
            for axis, size in enumerate(sizes)
        )
        name = f"{spec.name}=" if len(wanted) > 1 or not sizes else ""
        texts.append(f"--input {name}{text}" + ("" if sizes else f":{spec.dtype}"))
    return " ".join(texts)


def _that_runs(model: Model, specs: Sequence[TensorSpec]) -> Sample | None:
    """Zeros of the usual sizes that the model runs on, where it declares every rank."""
    if any(spec.shape is None for spec in (*specs, *model.inputs)):
        return None
    runner = model.runners(Protocol(levels=("unoptimised",)))[0]
    for batch in (FREE_BATCH, 1):
        for side in SIDES:
            sample = _zeros(specs, (batch, *[side] * _RANKS))
            try:
                runner(sample)
            except ModelError:
                continue
            return sample
    return None


def _from_texts(entries: Sequence[tuple[str, str]], model: Model) -> tuple[TensorSpec, ...]:
    declared = {spec.name: spec for spec in model.inputs}
    parsed = [_parsed(key, text, declared) for key, text in entries]
    given = [key or spec.name for (key, _), spec in zip(entries, parsed, strict=True)]
    specs = {
        name: replace(spec, name=name, dtype=spec.dtype or _dtype(declared.get(name)))
        for name, spec in zip(_names(given, model), parsed, strict=True)
    }
    return tuple(specs[name] for name in _in_order(specs, model.inputs))


def _parsed(key: str, text: str, declared: Mapping[str, TensorSpec]) -> TensorSpec:
    """What `text` says; a number, where the model says that the input has no axes, is its value."""
    name, _, value = text.strip().rpartition("=")
    name = key or name or (next(iter(declared)) if len(declared) == 1 else "")
    own = declared.get(name)
    if own is not None and own.shape == () and value and ":" not in text:
        return scalar(text, name, own.dtype, value)
    return parse(text)


def _dtype(declared: TensorSpec | None) -> str:
    return "float32" if declared is None else declared.dtype


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
    """Zeros of every spec, free sizes filled in; the model is asked for sizes that it runs on."""
    if all(_is_told(spec, ()) for spec in specs):
        return _zeros(specs)
    if (found := _that_runs(model, specs)) is not None:
        return found
    suggested = model.suggest() if len(specs) == 1 else None
    like = None if suggested is None else (FREE_BATCH, *suggested[1:])
    return _zeros(specs, like)


def _zeros(specs: Sequence[TensorSpec], like: Sequence[int] | None = None) -> Sample:
    """Zeros for every input; the same name is the same size everywhere."""
    known: dict[str, int] = {}
    return {spec.name: _filled(spec, like, known) for spec in specs}


def _filled(spec: TensorSpec, like: Sequence[int] | None, known: dict[str, int]) -> Any:
    """Zeros, or the value of an input without axes; free sizes are those of `like`, if it fits."""
    shape = spec.shape or ()
    if like is None or len(like) < len(shape):
        like = (FREE_BATCH, *[FREE_SIDE] * len(shape))
    sizes = [
        size if isinstance(size, int) else known.setdefault(size, side) if size else side
        for size, side in zip(shape, like, strict=False)
    ]
    dtype = numpy_dtype(spec.dtype)
    if (taken := math.prod(sizes) * dtype.itemsize) > MOST_BYTES:
        raise ModelError(
            f"the input {spec.name!r} of {'x'.join(map(str, sizes))} takes {taken / 1e9:,.0f} GB",
            "no network needs that: the file is damaged, or made to do harm",
        )
    return np.full(sizes, spec.value or 0, dtype)


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        from bnfold.runtimes.torch_eager import to_array

        return to_array(value)
    raise UsageError(
        f"an input is a {type(value).__name__}, not an array or a tensor",
        "models that take other things can be wrapped in a module whose forward takes tensors",
    )
