"""Hold a sample against what a model wants before it runs, to name what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.errors import UsageError
from bnfold.runtimes import Sample, TensorSpec


def check_sample(specs: Sequence[TensorSpec], sample: Sample) -> None:
    """Raise UsageError unless `sample` has an array of the right type and shape for every input."""
    for spec in specs:
        if spec.name not in sample:
            given = ", ".join(sample) or "nothing"
            raise UsageError(f"the input {spec.name!r} is missing: given {given}", f"give {spec}")
        array = sample[spec.name]
        given = f"{'x'.join(map(str, array.shape)) or 'a scalar'}:{array.dtype}"
        text = spec.dtype == "str" and array.dtype.kind in "OU"
        if spec.dtype != "object" and array.dtype.name != spec.dtype and not text:
            raise UsageError(f"the input {spec.name!r} is {given}, wanted {spec}", "cast it")
        if not _fits(spec, array.shape):
            raise UsageError(f"the input {spec.name!r} is {given}, wanted {spec}", "reshape it")
    known = {spec.name for spec in specs}
    for name in sample:
        if name not in known:
            hint = f"its inputs are {', '.join(map(str, specs)) or 'none'}"
            raise UsageError(f"the model has no input {name!r}", hint)


def matched(sample: Sample, names: Sequence[str]) -> Sample:
    """`sample` under the input names of another model, matched in order unless it has them."""
    if set(names) >= set(sample) or len(names) < len(sample):
        return sample
    return dict(zip(names, sample.values(), strict=False))


def _fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    if spec.shape is None:
        return True
    return len(spec.shape) == len(shape) and all(
        not isinstance(wanted, int) or wanted == size
        for wanted, size in zip(spec.shape, shape, strict=True)
    )
