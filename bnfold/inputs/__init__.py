"""What the user says about inputs: shapes as text, arrays, tensors, or nothing at all.

1x3x224x224              the one input, float32 unless the model says otherwise
Nx3x224x224              N is free: any batch size
tokens=2x16:int64        a named input and its type
rate=:int64              one without axes; with a value, which it keeps: rate=:int64=16000, or
                         rate=16000 where the model says that it has no axes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.algebra.rounding import numpy_dtype
from bnfold.errors import UsageError
from bnfold.runtimes import Sample, TensorSpec

FREE_BATCH = 3
"""What a free first size is tried with: neither 0 nor 1, which frameworks treat as special."""


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """The inputs of a model with all that is known: specs, and an example of them.

    `data`: the example holds the user's data, rather than nothing but sizes; `given`: it was given
    as such, to compare on.
    """

    specs: tuple[TensorSpec, ...]
    sample: Sample
    given: bool = False
    data: bool = False

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
            if array.ndim
            else array
            for name, array in self.sample.items()
        }

    def of(self, specs: tuple[TensorSpec, ...]) -> Inputs:
        """The same inputs by other specs: in their types, and no free size of 1 in the example,
        which frameworks would take for fixed."""
        sample = {spec.name: _like(self.sample[spec.name], spec) for spec in specs}
        return replace(self, specs=specs, sample=sample)


def _like(array: Any, spec: TensorSpec) -> Any:
    for axis, size in enumerate(spec.shape or ()):
        if not isinstance(size, int) and array.shape[axis] == 1:
            array = np.repeat(array, FREE_BATCH, axis)
    return array.astype(numpy_dtype(spec.dtype))
