"""The inputs that several models take alike, at the batch sizes to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnfold.errors import UsageError
from bnfold.formats.model import MODULES, Model
from bnfold.inputs import Inputs
from bnfold.runtimes import Sample, TensorSpec
from bnfold.verbs.input_resolution import resolve_inputs
from bnfold.verbs.inputs import example, tells


def common_inputs(models: Mapping[str, Model], given: Any) -> Inputs:
    """The inputs that all models take, by the names of the first that tells their shapes.

    Raises UsageError if there are none.
    """
    every = list(models.values())
    teller = every[0] if given else next((model for model in every if tells(model)), every[0])
    found = resolve_inputs(teller, given)
    for name, model in models.items():
        if model is teller or (model.format in MODULES and given):
            continue
        if len(model.inputs) != len(found.specs) or not all(map(_agree, model.inputs, found.specs)):
            own, others = (", ".join(map(str, specs)) for specs in (model.inputs, found.specs))
            raise UsageError(
                f"{name} takes {own or 'nothing'}, another model takes {others or 'nothing'}",
                "only models with the same inputs can be measured side by side",
            )
    return found


def _agree(one: TensorSpec, other: TensorSpec) -> bool:
    """Whether an array can fit both; what either leaves open fits anything."""
    if one.shape is None or other.shape is None:
        return True
    return (
        one.dtype == other.dtype
        and len(one.shape) == len(other.shape)
        and all(
            a == b or not (isinstance(a, int) and isinstance(b, int))
            for a, b in zip(one.shape, other.shape, strict=True)
        )
    )


def has_free_batch(specs: Sequence[TensorSpec]) -> bool:
    """Whether the first size of any input is free."""
    return any(spec.shape and not isinstance(spec.shape[0], int) for spec in specs)


def at_batch(inputs: Inputs, batch: int | None) -> Sample:
    """Noise with `batch` for every free first size, and wherever else its name stands."""
    if inputs.given or batch is None:
        return example(inputs)
    sample = dict(inputs.sample)
    names = {spec.shape[0] for spec in inputs.specs if spec.shape} - {None}
    for spec in (spec for spec in inputs.specs if spec.shape):
        shape = tuple(
            batch if not isinstance(wanted, int) and (axis == 0 or wanted in names) else size
            for axis, (wanted, size) in enumerate(
                zip(spec.shape or (), sample[spec.name].shape, strict=True)
            )
        )
        sample[spec.name] = np.zeros(shape, sample[spec.name].dtype)
    return example(replace(inputs, sample=sample))
