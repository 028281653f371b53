"""Which stage of a candidate's making left the gate first, and which layer in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from bnfold.errors import UsageError
from bnfold.files import write_atomically
from bnfold.formats.model import Format, Model
from bnfold.isolation.runners import candidate_runners, runners_of
from bnfold.protocol import Protocol
from bnfold.runtimes import NotComputableError, Outputs, Sample
from bnfold.runtimes.samples import matched
from bnfold.verification import Measurement, Row, Verification
from bnfold.verification.attribution import Attribution, Layer, first_layer

_SUFFIXES = {Format.ONNX: ".onnx", Format.EXPORTED_PROGRAM: ".pt2"}
CANDIDATE = "candidate"
OTHER_RUNTIME = 8.0
"""How many times higher the floor of a conversion is: two runtimes sum in different ways. Over the
architectures of the tests ONNX Runtime is up to 6 floors of PyTorch's away."""


WITHIN = (
    "it is closer to the original than the original, optimised, is to itself, not optimised: the "
    "gate's floor may be at fault"
)


@dataclass(frozen=True, eq=False, slots=True)
class Stage:
    """A model on the way from the original to the candidate.

    `converted`: it is the original in another format, unfolded, so it gives the floor there; it is
    judged itself, by the floor of the original where that came from. `foreign`: nothing gives a
    floor in its runtime.
    """

    name: str
    model: Model
    converted: bool = False
    foreign: bool = False


def judged(stage: Stage, measurement: Measurement, protocol: Protocol, first: str) -> Verification:
    """The verdict on one stage; `first` is the runtime that the original itself runs in."""
    runners = candidate_runners(stage.model, protocol)
    if not (stage.converted or stage.foreign):
        return measurement.judge(runners)
    usual = measurement.allowing(OTHER_RUNTIME) if stage.converted else measurement
    found = usual.judge(runners, first)
    if found.passed:
        return found
    try:
        rows = list(_closely(stage.model, found, usual, protocol, first))
    except NotComputableError:
        return found
    return replace(found, rows=tuple(rows))


def _closely(
    model: Model, found: Verification, measurement: Measurement, protocol: Protocol, first: str
) -> Iterator[Row]:
    """Whether a model is right whose runtime only rounds more than the original's does.

    Where it left the gate, it has to compute in float64 what the original does; then it may lose
    half the digits in its runtime. A mean over an image does: ONNX Runtime adds one by one.
    """
    runners = candidate_runners(model, protocol)
    exact, wrong = model.truth(), {row.place.case for row in found.rows if not row.passed}
    yield from (row for row in found.rows if row.place.case not in wrong)
    for case in measurement.cases:
        if case.name in wrong:
            one = measurement.on(case.name)
            alone = one.allowing(1).in_float64(exact, first)
            yield from alone.rows
            yield from (one.roughly() if alone.passed else one).judge(runners, first).rows


def attribute(
    original: Model,
    stages: Sequence[Stage],
    failure: Row,
    measurement: Measurement,
    protocol: Protocol,
) -> Attribution:
    """Where the case of `failure` leaves the gate first; the last of `stages` is the candidate."""
    one = measurement.on(failure.place.case)
    first = runners_of(original, protocol)[0].name
    before = original
    for stage in stages:
        if one.measured:
            rows = judged(stage, one, protocol, first).rows
            if wrong := next((row for row in rows if not row.passed), None):
                found = _inside(before, stage, wrong, one)
                return replace(found, sample=one.cases[0].sample)
        before = stage.model
    why = failure.why if not one.measured else None
    return Attribution(stages[-1].name, failure.place.provider, None, why)


def _inside(before: Model, stage: Stage, wrong: Row, one: Measurement) -> Attribution:
    """The layer in which a stage parts from the one before it."""
    provider, (case,) = wrong.place.provider, one.cases
    if wrong.difference is None:
        return Attribution(stage.name, provider, None, wrong.why)
    if wrong.difference.absolute <= one.measured[0].apart(wrong.place.output):
        return Attribution(stage.name, provider, None, WITHIN)
    if before.format is not stage.model.format:
        why = f"the values inside of a {before.format} and of a {stage.model.format} do not match"
        return Attribution(stage.name, provider, None, why)
    try:
        layer = _layer(before, stage.model, provider, case.sample, one)
    except Exception as error:  # a model that shows its values may not run; the verdict stands
        return Attribution(stage.name, provider, None, f"its values cannot be shown: {error}")
    if layer is None:
        why = "no value inside leaves its floor"
        if one.judging.protocol.policy == "floor":
            why += ": an optimisation of the runtime may be at fault"
        return Attribution(stage.name, provider, None, why)
    return Attribution(stage.name, provider, layer)


def _layer(
    before: Model, after: Model, provider: str, sample: Sample, one: Measurement
) -> Layer | None:
    values = before.intermediates(provider), after.intermediates(provider)
    return first_layer(*values, sample, one.judging.protocol.k)


def save_failing(candidate: Model, found: Attribution, folder: Path) -> tuple[Path, Path] | None:
    """Keep what fails in `folder`: a model, and its inputs by name as .npz.

    The model is the smallest part of the candidate that goes wrong, from values that agree to the
    one that does not, or else the whole candidate. None if there is no input that shows it.
    """
    if found.sample is None:
        return None
    sample: Sample = matched(found.sample, [spec.name for spec in candidate.inputs])
    part = None
    if found.layer is not None and found.stage == CANDIDATE:
        part = candidate.part({**sample, **found.layer.given}, found.layer.value)
    model, given = (candidate, dict(sample)) if part is None else part
    prepare(folder)
    target = folder / f"failing{_SUFFIXES.get(model.format, '.pt')}"
    inputs = folder / "failing.npz"
    write_atomically(inputs, partial(_save_arrays, given))
    write_atomically(target, model.save)
    return target, inputs


def prepare(folder: Path) -> None:
    """Make the folder; raise UsageError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be a folder: {error.strerror or error}") from error


def _save_arrays(arrays: Outputs, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
