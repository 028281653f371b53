"""The verb `verify`: is one model the same function as another?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from bnfold.errors import ModelError
from bnfold.formats.model import Format, Model, blaming
from bnfold.formats.opening import Opening, open_model
from bnfold.inputs import Inputs, resolve_inputs
from bnfold.protocol import DEFAULT, Protocol
from bnfold.run import NotComputableError
from bnfold.verification import (
    Case,
    Gate,
    NotDeterministicError,
    Verification,
    compare,
)
from bnfold.verification.cases import probes

Progress = Callable[[str], None]


def verify(
    reference: Any,
    candidate: Any,
    inputs: Any = None,
    *,
    protocol: Protocol = DEFAULT,
    opening: Opening | None = None,
    progress: Progress = lambda step: None,
) -> Verification:
    """Judge `candidate` against `reference`, each a path or a model of any format.

    The truth is the reference in float64; how far from it the candidate may be, on which inputs
    and where, `protocol` says. Raises BnfoldError if either cannot be opened or run at all.
    """
    original = open_model(reference, opening)
    other = open_model(candidate, opening)
    with blaming(original), blaming(other):
        known = _inputs_of(original, other, inputs)
        return judge_models(original, other, known, protocol, progress=progress)


def _inputs_of(original: Model, other: Model, given: Any) -> Inputs:
    """The inputs by the reference's names, with shapes from whichever model tells them."""
    if given or tells(original) or not tells(other):
        return resolve_inputs(original, given)
    found = resolve_inputs(other)
    names = [spec.name for spec in original.inputs]
    if len(names) != len(found.specs):
        return resolve_inputs(original, given)
    specs = tuple(replace(spec, name=name) for spec, name in zip(found.specs, names, strict=True))
    return Inputs(specs, dict(zip(names, found.sample.values(), strict=True)))


def judge_models(
    original: Model,
    candidate: Model,
    inputs: Inputs,
    protocol: Protocol = DEFAULT,
    *,
    floor_model: Model | None = None,
    progress: Progress = lambda step: None,
) -> Verification:
    """Judge where the candidate runs; `floor_model` is the original in the candidate's format."""
    if protocol.providers is None:
        protocol = replace(protocol, providers=tuple(loadable([original, candidate])))
    originals = original.runners(protocol)
    originals += floor_model.runners(protocol) if floor_model else []
    candidates = candidate.runners(protocol)

    def announced() -> Iterator[Case]:
        for case in cases(inputs, protocol.seeds):
            progress(f"verify: {case.name}")
            yield case

    try:
        try:
            return compare(original.truth(), originals, candidates, announced(), Gate(protocol.k))
        except NotComputableError as error:
            coarse = compare(
                originals[0],
                originals,
                candidates,
                announced(),
                Gate(protocol.k, "half the digits"),
            )
            note = f"not computable in float64 ({error}); judged by half the digits instead"
            return replace(coarse, notes=(*coarse.notes, note))
    except NotDeterministicError as error:
        raise ModelError(
            str(error), "random operators such as an active dropout must go; export in eval mode"
        ) from error


def cases(inputs: Inputs, seeds: Sequence[int] = (0,)) -> Iterator[Case]:
    """The user's own data first, if it was given; then the probes of each seed."""
    if inputs.given:
        yield Case("given", inputs.sample)
    for seed in seeds:
        for case in probes(inputs.specs, inputs.sample, seed):
            yield replace(case, name=f"{case.name}, seed {seed}") if len(seeds) > 1 else case


def tells(model: Model) -> bool:
    """Whether a model says how large its inputs are, but for their batch."""
    return all(
        spec.shape is not None and all(isinstance(s, int) for s in spec.shape[1:])
        for spec in model.inputs
    )


def loadable(models: Sequence[Model]) -> Iterator[str]:
    """The providers that load here, of those that any of the models could run on."""
    yield "cpu"
    if Format.ONNX in [model.format for model in models]:
        from bnfold.run.ort import available_providers

        if available_providers().get("cuda", "not listed") is None:
            yield "cuda"
