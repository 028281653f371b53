"""The inputs of a model as a verb uses them: what is known of each, an example, and the cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from bnfold.formats.model import Model
from bnfold.inputs import Inputs
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import NOTHING_KNOWN, Sample, TensorSpec
from bnfold.verbs.input_resolution import resolve_inputs, says_something
from bnfold.verification import Case
from bnfold.verification.cases import probes
from bnfold.verification.input_files import recorded


def example(inputs: Inputs) -> dict[str, Any]:
    """Seeded noise (or the user's own data) to read and export a model with."""
    from bnfold.verification.cases import probes

    if inputs.data:
        return dict(inputs.sample)
    return dict(next(probes(inputs.specs, inputs.sample)).sample)


def inputs_of(original: Model, other: Model, given: Any, protocol: Protocol) -> Inputs:
    """The inputs by the reference's names, with shapes from whichever model tells them."""
    if says_something(given) or protocol.recorded or tells(original) or not tells(other):
        return known_inputs(original, given, protocol)
    found = known_inputs(other, None, protocol)
    names = [spec.name for spec in original.inputs]
    if len(names) != len(found.specs):
        return known_inputs(original, given, protocol)
    specs = tuple(replace(spec, name=name) for spec, name in zip(found.specs, names, strict=True))
    return Inputs(specs, dict(zip(names, found.sample.values(), strict=True)))


def cases(inputs: Inputs, protocol: Protocol = DEFAULT) -> Iterator[Case]:
    """The user's own data first, if there is any; then the sizes asked for, and the probes."""
    if inputs.given:
        yield Case("given", inputs.sample, given=True)
    yield from recorded(protocol.recorded, inputs.specs)
    for seed in protocol.seeds:
        made = [*sized(inputs, protocol.shapes, seed)]
        made += probes(_with_free(inputs, protocol.shapes), inputs.sample, seed)
        for case in made:
            several = len(protocol.seeds) > 1
            yield case.renamed(f", seed {seed}") if several else case


def sized(inputs: Inputs, shapes: Mapping[str, Sequence[int]], seed: int) -> Iterator[Case]:
    """Noise in every combination of `shapes`, which give each free size the values it takes."""
    for values in product(*shapes.values()) if shapes else ():
        sizes = dict(zip(shapes, values, strict=True))
        name = ", ".join(f"{name}={size}" for name, size in sizes.items())
        noise = next(probes(inputs.specs, inputs.sized(sizes), seed))
        yield Case(name, noise.sample, given=True)


def _with_free(inputs: Inputs, shapes: Mapping[str, Sequence[int]]) -> list[TensorSpec]:
    """The specs, but for the free sizes that `shapes` deals with: those are taken as fixed."""
    dynamic = inputs.dynamic
    return [
        replace(
            spec,
            shape=tuple(
                0 if dynamic[spec.name].get(axis) in shapes else size
                for axis, size in enumerate(spec.shape or ())
            ),
        )
        for spec in inputs.specs
    ]


def known_inputs(model: Model, given: Any, protocol: Protocol) -> Inputs:
    """The inputs, where what was recorded and the sizes asked for fill in what nothing else says.

    An input that picks rows of a table is known to be one.
    """
    if protocol.recorded and not says_something(given):
        first = next(recorded(protocol.recorded, model.inputs))
        inputs = replace(resolve_inputs(model, dict(first.sample)), given=False)
        inputs = replace(inputs, specs=tuple(map(partial(_constant, first.sample), inputs.specs)))
    else:
        inputs = resolve_inputs(model, given, protocol.shapes)
    if protocol.shapes and not inputs.given:
        sizes = {name: values[0] for name, values in protocol.shapes.items()}
        inputs = replace(inputs, sample=inputs.sized(sizes))
    picking = any(array.dtype.kind in "iu" for array in inputs.sample.values())
    known = model.integers(inputs.sample) if picking else {}
    specs = tuple(
        replace(spec, integers=known.get(spec.name, NOTHING_KNOWN)) for spec in inputs.specs
    )
    return replace(inputs, specs=specs)


def _constant(sample: Sample, spec: TensorSpec) -> TensorSpec:
    """An input without axes keeps the value that it was recorded with."""
    array = sample[spec.name]
    return replace(spec, value=array.item()) if array.ndim == 0 else spec


def tells(model: Model) -> bool:
    """Whether a model says how large its inputs are, but for their batch."""
    return all(
        spec.shape is not None and all(isinstance(s, int) for s in spec.shape[1:])
        for spec in model.inputs
    )
