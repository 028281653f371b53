"""The verb `verify`: is one model the same function as another?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bnfold.errors import ModelError, UsageError
from bnfold.formats.capabilities import Decisions
from bnfold.formats.model import Format, Model, blaming
from bnfold.formats.opening import Opening, open_model, recognise
from bnfold.inputs import Inputs
from bnfold.isolation.runners import candidate_runners, runners_of
from bnfold.process_state import in_turn
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import NotComputableError, Runner, TensorSpec
from bnfold.verbs.attributing import CANDIDATE, Stage, attribute, judged
from bnfold.verbs.deciding import deciding
from bnfold.verbs.input_resolution import says_something
from bnfold.verbs.inputs import cases, inputs_of
from bnfold.verbs.places import placed
from bnfold.verbs.proving import proved
from bnfold.verification import Case, Measurement, NotDeterministicError, Verification, measure
from bnfold.verification.aiming import aimed, sides_of
from bnfold.verification.gate import Place, Row, failed
from bnfold.verification.golden import Free, Golden, is_golden, read_golden
from bnfold.verification.measuring import Ranges

Progress = Callable[[str], None]

_OF_INPUTS: Any = {name: getattr(DEFAULT, name) for name in ("seeds", "shapes", "recorded")}
"""The fields of a protocol that say what to run on, with their defaults."""


@in_turn
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
    and where, `protocol` says. The reference may also be a golden bundle or its path, which brings
    its own inputs. Raises BnfoldError if either cannot be opened or run at all.
    """
    golden = golden_of(reference)
    if golden is not None:
        if says_something(inputs) or replace(protocol, **_OF_INPUTS) != protocol:
            raise UsageError(
                "a golden bundle has its own inputs",
                "leave out --input, --inputs, --seed and --shape, or record another bundle",
            )
        return judge_recorded(golden, candidate, protocol, opening=opening, progress=progress)
    original = open_model(reference, opening)
    other = open_model(candidate, opening)
    with blaming(original), blaming(other):
        known = inputs_of(original, other, inputs, protocol)
        return judge_models(original, other, known, protocol, progress=progress)


def judge_models(
    original: Model,
    candidate: Model,
    inputs: Inputs,
    protocol: Protocol = DEFAULT,
    *,
    stages: Sequence[Stage] = (),
    rounded_from: Model | None = None,
    progress: Progress = lambda step: None,
) -> Verification:
    """Judge where the candidate runs; `stages` are the models on the way to it, in order.

    The truth is the original in float64, or the model that it was rounded from. A stage that is the
    original in the candidate's format gives the floor there, and is judged itself.
    """
    protocol = placed(protocol, [original.format, candidate.format])
    converted = [stage for stage in stages if stage.converted]
    apart = (original.format is Format.ONNX) != (candidate.format is Format.ONNX)
    way = [*stages, Stage(CANDIDATE, candidate, foreign=apart and not converted)]
    originals = runners_of(original, protocol)
    first, here = originals[0].name, {runner.name for runner in originals}
    originals += [  # where the original runs itself, its own floor holds, not a conversion's
        runner
        for stage in converted
        for runner in runners_of(stage.model, protocol)
        if runner.name not in here
    ]
    truth = (rounded_from or original).truth()
    tried = partial(cases, inputs, protocol)
    tells = [original, *(stage.model for stage in way if stage.converted or stage.foreign)]
    ranges = next((bounds for model in tells if (bounds := model.bounds())), ())
    measurement = measured(
        truth, originals, tried, protocol, progress, ranges, original.decisions()
    )
    before = [row for stage in converted for row in _told(stage, measurement, protocol, first)]
    found = replace(judged(way[-1], measurement, protocol, first), sides=measurement.sides)
    froze = frozen(inputs.dynamic, candidate.inputs, candidate.format)
    notes = (*found.notes, *_with_tf32(candidate, measurement, protocol))
    found = replace(found, rows=(*froze, *before, *found.rows), notes=notes)
    progress("verify: proving")
    found = replace(found, proof=proved(original, candidate))
    if found.passed and protocol.policy == "floor":
        found = replace(found, rows=(*found.rows, *deciding(original, candidate, measurement)))
    wrong = next((row for row in found.rows if not row.passed), None)
    if wrong is None:
        return found
    progress("verify: where it went wrong")
    return replace(found, attribution=attribute(original, way, wrong, measurement, protocol))


def _with_tf32(candidate: Model, measurement: Measurement, protocol: Protocol) -> Iterator[str]:
    """On CUDA, what TF32 would cost, which the verdict leaves out."""
    if candidate.format is Format.ONNX and "cuda" in protocol.places:
        apart = replace(protocol, providers=("cuda tf32",), levels=("optimised",))
        found = measurement.judge(runners_of(candidate, apart), "cuda")
        yield f"with TF32 on, the error on CUDA is up to {found.smallest_k:.3g} floors; not judged"


def _told(stage: Stage, measurement: Measurement, protocol: Protocol, first: str) -> Iterator[Row]:
    """The rows of a stage before the candidate, which say which stage it is."""
    for row in judged(stage, measurement, protocol, first).rows:
        yield replace(row, place=replace(row.place, provider=f"{row.place.provider}, {stage.name}"))


def judge_recorded(
    golden: Golden,
    candidate: Any,
    protocol: Protocol = DEFAULT,
    *,
    opening: Opening | None = None,
    progress: Progress = lambda step: None,
) -> Verification:
    """Judge `candidate` by what was recorded; an ONNX file needs ONNX Runtime and nothing more."""
    if isinstance(candidate, str | Path) and recognise(Path(candidate)) is Format.ONNX:
        from bnfold.isolation.runners import isolated_sessions
        from bnfold.runtimes.external_data import check_external_data
        from bnfold.runtimes.ort import sessions

        check_external_data(Path(candidate))
        form, load = Format.ONNX, isolated_sessions if protocol.isolate else sessions
        made = load(Path(candidate), placed(protocol, [form]))
        runners, declared = list[Runner](made), made[0].inputs
    else:
        other = open_model(candidate, opening)
        form, declared = other.format, other.inputs
        runners = candidate_runners(other, placed(protocol, [form]))
    tried = partial(iter, golden.cases)
    exact, originals = golden.float64, golden.originals
    found = measured(exact, originals, tried, protocol, progress, golden.bounds).judge(runners)
    notes = tuple(dict.fromkeys((*golden.notes, *found.notes)))
    return replace(found, rows=(*frozen(golden.free, declared, form), *found.rows), notes=notes)


def measured(
    truth: Runner,
    originals: Sequence[Runner],
    tried: Callable[[], Iterator[Case]],
    protocol: Protocol,
    progress: Progress = lambda step: None,
    ranges: Ranges = (),
    decisions: Decisions | None = None,
) -> Measurement:
    """The truth; where it cannot be computed, the original as it is stands for it."""

    def announced() -> Iterator[Case]:
        smallest = None
        for case in tried():
            progress(f"verify: {case.name}")
            yield case
            if not case.given and (smallest is None or _elements(case) < _elements(smallest)):
                smallest = case
        sides = sides_of(truth)
        if smallest is not None and sides is not None and sides.unseen:
            progress("verify: aiming at what no probe reached")
            yield from aimed(truth, smallest.sample)

    try:
        try:
            found = measure(truth, originals, announced(), protocol, ranges, decisions)
            return replace(found, sides=sides_of(truth))
        except NotComputableError as error:
            coarse = measure(None, originals, announced(), protocol, ranges, decisions)
            note = f"not computable in float64 ({error}); judged by half the digits instead"
            return replace(coarse, notes=(*coarse.notes, note))
    except NotDeterministicError as error:
        raise ModelError(
            str(error), "random operators such as an active dropout must go; export in eval mode"
        ) from error


def _elements(case: Case) -> int:
    return sum(array.size for array in case.sample.values())


def golden_of(reference: Any) -> Golden | None:
    """The golden bundle that `reference` is or names, if it is one."""
    if isinstance(reference, Golden):
        return reference
    if isinstance(reference, str | Path) and is_golden(Path(reference)):
        return read_golden(Path(reference))
    return None


def frozen(free: Free, declared: Sequence[TensorSpec], form: Format) -> Iterator[Row]:
    """A failure for every size that is free in the original and fixed in the candidate."""
    own = {spec.name: spec for spec in declared}
    in_order = dict(zip(free, declared, strict=False))
    for name, axes in free.items():
        spec = own.get(name) or in_order.get(name)
        for axis, size in axes.items():
            found = spec.shape[axis] if spec and spec.shape and axis < len(spec.shape) else None
            if isinstance(found, int):
                place = Place("declared sizes", str(form), name)
                why = f"its size on axis {axis} froze to {found}; in the original it is free"
                yield failed(place, f"{why} ({size})")
