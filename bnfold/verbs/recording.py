"""The verb `golden`: record what a model computes, to judge candidates where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bnfold.environment import versions
from bnfold.errors import BnfoldError, ModelError
from bnfold.formats.model import Format, Model, blaming
from bnfold.formats.opening import Opening, open_model
from bnfold.inputs import Inputs
from bnfold.isolation.runners import runners_of
from bnfold.process_state import in_turn
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import NotComputableError
from bnfold.verbs.attributing import Stage, judged
from bnfold.verbs.inputs import cases, example, known_inputs
from bnfold.verbs.places import placed
from bnfold.verbs.results import describe
from bnfold.verbs.targets import AS_IT_IS, converted
from bnfold.verbs.verifying import measured
from bnfold.verification import Measurement
from bnfold.verification.golden import Golden
from bnfold.verification.recorder import Recorder
from bnfold.verification.scatter import scatter


@in_turn
def golden(
    model: Any,
    inputs: Any = None,
    *,
    protocol: Protocol = DEFAULT,
    opening: Opening | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Golden:
    """Record inputs, float64 outputs and the outputs of `model` as it is, on every case.

    `model`, `inputs` and `protocol` are those of `bnfold.verify`, which takes the result, or the
    file that its `save` writes, as its reference. Raises BnfoldError.
    """
    original = open_model(model, opening)
    source = describe(model, original)
    with blaming(original):
        known = known_inputs(original, inputs, protocol)
        protocol = placed(protocol, [original.format])
        exact = Recorder(original.truth())
        originals = [Recorder(runner) for runner in runners_of(original, protocol)]
        tried = list(cases(known, protocol))
        bounds = original.bounds()
        found = measured(exact, originals, partial(iter, tried), protocol, progress, bounds)
        originals += _exported(original, known, found, protocol)
    if found.unusable:  # a case that the user asked for cannot be judged
        place = found.unusable[0].place
        raise ModelError(f"{place.case}: {found.unusable[0].why}", "leave that input out")
    whole = [runner for runner in (exact, *originals) if runner.inexact is None]
    kept = [case for case in found.cases if all(id(case.sample) in r.taken for r in whole)]

    def taken(recorder: Recorder) -> tuple[dict[str, Any], ...]:
        return tuple(recorder.taken[id(case.sample)] for case in kept)

    scattered = {}
    if exact.inexact is None:
        scattered = {
            recorder.name: tuple(
                tuple(scatter(recorder.runner, case.sample, exact.taken[id(case.sample)]))
                for case in kept
            )
            for recorder in originals
        }
    return Golden(
        replace(source, path=source.path and Path(source.path).name).to_json(),
        tuple(kept),
        {recorder.name: taken(recorder) for recorder in originals},
        known.dynamic,
        taken(exact) if exact.inexact is None else None,
        exact.inexact,
        protocol.seeds,
        versions(),
        found.notes,
        scattered,
        bounds,
    )


def _exported(
    original: Model, inputs: Inputs, found: Measurement, protocol: Protocol
) -> list[Recorder]:
    """The original in ONNX Runtime too, where it can be exported and passes: its floor there.

    A host that runs ONNX alone would else judge by the floor of PyTorch, which sums otherwise.
    """
    if original.format is Format.ONNX or found.unusable:
        return []
    protocol = placed(protocol, [Format.ONNX])
    try:
        model = converted(original, "onnx", inputs, example(inputs), AS_IT_IS)
        first = runners_of(original, protocol)[0].name
        if not judged(Stage("exported", model, converted=True), found, protocol, first).passed:
            return []
        recorders = [Recorder(runner) for runner in runners_of(model, protocol)]
        for recorder in recorders:
            for case in found.cases:
                recorder(case.sample)
    except (BnfoldError, NotComputableError):
        return []
    return recorders
