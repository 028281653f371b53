"""The verb `verify`: is one model the same function as another?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from bnfold.errors import ModelError, UsageError
from bnfold.formats.model import Format, Model, blaming
from bnfold.formats.opening import Opening, open_model, recognise
from bnfold.inputs import Inputs, resolve_inputs, says_something
from bnfold.process_state import in_turn
from bnfold.protocol import DEFAULT, Protocol
from bnfold.run import NOTHING_KNOWN, NotComputableError, Runner, Sample, TensorSpec
from bnfold.run.isolated import runners_of
from bnfold.verbs.attributing import CANDIDATE, Stage, attribute, judged
from bnfold.verbs.deciding import deciding
from bnfold.verbs.proving import proved
from bnfold.verification import Case, Measurement, NotDeterministicError, Verification, measure
from bnfold.verification.aiming import aimed, sides_of
from bnfold.verification.bundle import is_golden, read_golden
from bnfold.verification.cases import probes
from bnfold.verification.decisions import Decisions
from bnfold.verification.gate import Place, Row, failed
from bnfold.verification.golden import Free, Golden
from bnfold.verification.measuring import Ranges
from bnfold.verification.recorded import recorded

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
    originals = original.runners(protocol)
    first = originals[0].name
    originals += [runner for stage in converted for runner in stage.model.runners(protocol)]
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
        found = measurement.judge(candidate.runners(apart), "cuda")
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
        from bnfold.run.external_data import check_external_data
        from bnfold.run.isolated import isolated_sessions
        from bnfold.run.ort import sessions

        check_external_data(Path(candidate))
        form, load = Format.ONNX, isolated_sessions if protocol.isolate else sessions
        made = load(Path(candidate), placed(protocol, [form]))
        runners, declared = list[Runner](made), made[0].inputs
    else:
        other = open_model(candidate, opening)
        form, declared = other.format, other.inputs
        runners = runners_of(other, placed(protocol, [form]))
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


def placed(protocol: Protocol, formats: Sequence[Format]) -> Protocol:
    """The protocol with its providers named, be they asked for or what loads."""
    if protocol.providers is not None:
        return protocol
    return replace(protocol, providers=tuple(loadable(formats)))


def loadable(formats: Sequence[Format]) -> Iterator[str]:
    """The providers that load here, of those that models of any of the formats could run on."""
    yield "cpu"
    if Format.ONNX in formats:
        from bnfold.run.ort import available_providers

        if available_providers().get("cuda", "not listed") is None:
            yield "cuda"
