"""The verb `fold`: open, read, plan, write, verify."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bnfold.algebra.graph import Graph
from bnfold.algebra.plan import Outcome, Plan, compare
from bnfold.algebra.planner import make_plan
from bnfold.algebra.rounding import Weights, make_rounded_plan
from bnfold.errors import UsageError
from bnfold.files import sha256, write_atomically
from bnfold.formats.model import MODULES, WEIGHTS, Format, Model, blaming
from bnfold.formats.opening import Opening, open_model
from bnfold.inputs import Inputs
from bnfold.preprocessing import Preprocessing
from bnfold.process_state import in_turn
from bnfold.protocol import DEFAULT, Protocol
from bnfold.verbs.attributing import Stage
from bnfold.verbs.inference import refuse_broken, refuse_random
from bnfold.verbs.input_resolution import says_something
from bnfold.verbs.inputs import example, known_inputs
from bnfold.verbs.precision import Precision, in_precision, read_exactly, require_precision
from bnfold.verbs.preprocess import measured_by, with_preprocessing
from bnfold.verbs.results import (
    SCHEMA_VERSION,
    Artefact,
    Clock,
    Progress,
    VerificationError,
    copies_told,
    counts,
    describe,
    moves_told,
)
from bnfold.verbs.targets import AS_IT_IS, converted, require_target
from bnfold.verbs.verifying import judge_models
from bnfold.verification import Verification

Form = Literal["auto", "module", "graph"]

IN_PRECISION = (
    "weights and inputs are {} now; the fold is judged by what that type itself costs, which only "
    "the accuracy tells"
)

UNCHANGED = (
    "nothing folds, so the result is the file as it was, byte for byte, and nothing is to be "
    "verified (--verify-anyway does)"
)


@dataclass(eq=False, slots=True)
class FoldResult:
    """A folded model, how it came about, and whether it is right.

    `plan` has the fate of every affine. `verification` is None if it was not wanted, or if
    `unchanged`: there was nothing to fold in a file, which is saved as it was, byte for byte.
    """

    original: Model
    folded: Model
    inputs: Inputs | None
    plan: Plan
    verification: Verification | None
    source: Artefact
    clock: Clock
    unchanged: bool = False
    result: Artefact | None = None

    @property
    def model(self) -> Any:
        """The folded model, of the kind that went in. Raises if it failed its verification."""
        self._require_pass()
        return self.folded.native

    @property
    def passed(self) -> bool:
        """Whether no gate failed; without verification there was none."""
        return self.verification is None or self.verification.passed

    @property
    def verdict(self) -> str:
        if self.unchanged and self.verification is None:
            return "unchanged"
        if self.verification is None:
            return "unverified"
        return "pass" if self.passed else "fail"

    @property
    def notes(self) -> tuple[str, ...]:
        path = self.result and self.result.path
        loading = self.folded.how_to_load(Path(path)) if path else ()
        verified = self.verification.notes if self.verification else ()
        same = (UNCHANGED,) if self.verdict == "unchanged" else ()
        return (*self.folded.notes, *same, *verified, *loading)

    def save(self, path: str | Path) -> Artefact:
        """Write the folded model; the target is never left half-written."""
        self._require_pass()
        target = Path(path)
        write_atomically(target, self._copy if self.unchanged else self.folded.save)
        self.result = Artefact(str(target), str(self.folded.format), sha256(target))
        return self.result

    def _copy(self, target: Path) -> None:
        assert self.original.origin is not None
        shutil.copyfile(self.original.origin[0], target)

    def _require_pass(self) -> None:
        if not self.passed:
            assert self.verification is not None
            raise VerificationError(
                f"the folded model differs from its original: {self.verification.summary}",
                "this is a bug in bnfold or a model that is not deterministic: please report it",
            )

    def to_json(self) -> dict[str, Any]:
        result = self.result or Artefact(None, str(self.folded.format), None)
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "source": self.source.to_json(),
            "result": result.to_json(),
            **counts(self.plan),
            "sites": [site.to_json() for site in self.plan.sites],
            "verification": None if self.verification is None else self.verification.to_json(),
            "stages": self.clock.to_json(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """One line; `bnfold.render` has the report."""
        found = self.plan.batchnorms
        return f"{found.folded} of {found.found} BatchNorms folded: {self.verdict}"


@in_turn
def fold(
    model: Any,
    inputs: Any = None,
    *,
    to: str | None = None,
    form: Form = "auto",
    keep_classes: bool = False,
    compact: bool = False,
    outputs: Sequence[str] = (),
    dtype: Precision | None = None,
    preprocessing: Preprocessing | None = None,
    move: bool = True,
    verify: bool = True,
    verify_anyway: bool = False,
    protocol: Protocol = DEFAULT,
    opening: Opening | None = None,
    progress: Progress = lambda step: None,
) -> FoldResult:
    """Fold every affine that algebra allows, and verify the result against the original.

    `model` is a path, an nn.Module, a ScriptModule, an ExportedProgram or an onnx.ModelProto; it is
    left as it is. `inputs` is what `bnfold.inputs` describes, needed where the model does not say.
    `form` matters for an nn.Module: "module" (and "auto") give a module, in which the smallest
    submodules whose classes stand in the way become generated ones, unless `keep_classes`; "graph"
    gives an ExportedProgram. Weights stay such as their class can load, and fold as far as it has
    places for the result; `compact` folds on, for `bnfold.load` alone. Unless `move` is False, 1x1
    convolutions and linear layers go to where they cost least, in forms that can hold it. With `to`
    ("onnx", "torchscript", "pt2") the model is converted first and folded in that format. Of an
    ONNX model, `outputs` names those that stay, without what only others need. `dtype` ("float32",
    "float16", "bfloat16") is the type of all floats of the result and of its inputs: new parameters
    are computed in float64 from those of the original and rounded to it once. With `preprocessing`
    the model does that itself, and it is folded as well. `protocol` says how the result is
    verified. A file in which nothing folds stays byte for byte what it is, and there is nothing to
    verify, except with `verify_anyway`. Raises BnfoldError.
    """
    if to is not None:
        require_target(to)
    require_precision(dtype)
    clock = Clock(progress)
    with clock.stage("open"):
        original = open_model(model, opening)
    source = describe(model, original)
    as_it_was = preprocessing is None and not outputs and _is_one_file(original)
    with blaming(original):
        original = original.selecting(outputs) if outputs else original
        with clock.stage("read"):
            told = _tells_inputs(original) and preprocessing is None
            needed = to is not None or (verify and not told)
            own = measured_by(protocol, preprocessing)
            found = _inputs_for(original, inputs, needed, own)
            if preprocessing is not None:
                _require_place(original, to, form)
                original, found = with_preprocessing(original, found, preprocessing)
            exact = _base(original, found, to, form)
            base, wanted = in_precision(exact, found, dtype)
            _wish(base, keep_classes=keep_classes, compact=compact)
            graph = _read(base, wanted, exact, found)
        with clock.stage("plan"):
            plan, weights = _planned(base, graph, move)
        unchanged = plan.idle and base is original and as_it_was
        verify &= verify_anyway or not unchanged
        if verify:
            refuse_random(graph)
        with clock.stage("write"):
            folded = original if unchanged else base.write(plan, weights)
            plan, further = _beside_graph_form(base, plan)
            known = () if unchanged else (*original.notes, *base.notes, *base.told())
            further = (*moves_told(plan), *copies_told(plan), *further)
            known += () if base is exact else (IN_PRECISION.format(dtype),)
            folded.notes = tuple(dict.fromkeys((*known, *further)))
        verification = None
        if verify:
            with clock.stage("verify"):
                wanted = wanted or known_inputs(base, inputs, protocol)
                converted = to is not None and base is not original and base is exact
                verification = judge_models(
                    original if base is exact else base,
                    folded,
                    wanted,
                    protocol,
                    stages=[Stage("exported", base, True)] if converted else [],
                    rounded_from=None if base is exact else original,
                    progress=progress,
                )
    return FoldResult(original, folded, wanted, plan, verification, source, clock, unchanged)


def _read(base: Model, wanted: Inputs | None, exact: Model, found: Inputs | None) -> Graph:
    """The graph of `base`, which is `exact` itself or that in another type."""
    if base is exact:
        graph = base.read(_example(found))
    else:
        graph = read_exactly(base, _example(wanted), exact.read(_example(found)))
    refuse_broken(graph)
    return graph


@in_turn
def inspect(
    model: Any,
    inputs: Any = None,
    *,
    form: Form = "auto",
    keep_classes: bool = False,
    compact: bool = False,
    move: bool = True,
    opening: Opening | None = None,
) -> tuple[Model, Plan]:
    """What `fold` would do with every affine of a model, without doing it."""
    original = open_model(model, opening)
    with blaming(original):
        found = _inputs_for(original, inputs, original.format in MODULES)
        if form == "graph" and original.format in MODULES:
            original = _captured(original, found)
        _wish(original, keep_classes=keep_classes, compact=compact)
        graph = original.read(_example(found))
        plan, _ = _planned(original, graph, move)
        plan, further = _beside_graph_form(original, plan)
        told = (*original.told(), *moves_told(plan), *copies_told(plan))
        original.notes = (*original.notes, *told, *further)
    return original, plan


def _planned(model: Model, graph: Graph, move: bool) -> tuple[Plan, Weights]:
    free = model.free() if move else frozenset()
    return make_rounded_plan(graph, model.locked(), model.veto, merging=model.merging, free=free)


def _example(inputs: Inputs | None) -> dict[str, Any] | None:
    return None if inputs is None else example(inputs)


def _inputs_for(
    model: Model, given: Any, needed: bool, protocol: Protocol = DEFAULT
) -> Inputs | None:
    """The inputs; None where they are neither known nor needed."""
    if _tells_inputs(model) and not needed and not says_something(given):
        return None
    try:
        return known_inputs(model, given, protocol)
    except UsageError:
        if needed or says_something(given) or model.format in MODULES:
            raise
        return None


def _require_place(model: Model, to: str | None, form: Form) -> None:
    if model.format in WEIGHTS and to is None and form != "graph":
        raise UsageError(
            f"a {model.format} holds weights alone, no preprocessing", "add --to onnx, or another"
        )


def _tells_inputs(model: Model) -> bool:
    return model.format in (Format.ONNX, Format.EXPORTED_PROGRAM)


def _is_one_file(model: Model) -> bool:
    """Whether the model is what a single file holds, with nothing done to it on the way in."""
    if model.origin is None or model.notes:
        return False
    path = model.origin[0]
    return path.is_file() and model.stored in (None, path.stat().st_size)


def _base(original: Model, inputs: Inputs | None, to: str | None, form: Form) -> Model:
    """The model that is folded: the original, or what it is converted to."""
    if form == "module" and original.format not in MODULES:
        raise UsageError(f"a {original.format} has no modules", "leave out --form")
    if to is not None:
        if form != "auto":
            raise UsageError("a model that is converted is folded as a graph", "leave out --form")
        assert inputs is not None
        return converted(original, to, inputs, example(inputs), AS_IT_IS)
    if form == "graph" and original.format in MODULES:
        return _captured(original, inputs)
    return original


def _wish(model: Model, *, keep_classes: bool, compact: bool) -> None:
    """Have a module folded in place alone, or weights without regard to their class.

    Raises UsageError for what is none.
    """
    if keep_classes and model.format not in MODULES:
        raise UsageError(f"a {model.format} has no classes to keep", "leave out --keep-classes")
    if compact and model.format not in WEIGHTS:
        raise UsageError(f"a {model.format} is loaded without a class", "leave out --compact")
    model.keep_classes |= keep_classes
    model.compact |= compact


def _captured(model: Model, inputs: Inputs | None) -> Model:
    from bnfold.formats.pytorch.nn_module import ModuleModel

    assert isinstance(model, ModuleModel)
    assert inputs is not None
    return model.capture(example(inputs), inputs.dynamic)


def _beside_graph_form(model: Model, plan: Plan) -> tuple[Plan, tuple[str, ...]]:
    """The plan of a module with what the graph form makes of the sites it keeps; and a note."""
    if model.format not in MODULES or not model.whole:
        return plan, ()
    graph_plan = make_plan(plan.before)
    fates = {site.name: site for site in graph_plan.sites}
    sites = tuple(
        replace(site, graph_form=fates[site.name]) if site.outcome is Outcome.KEPT else site
        for site in plan.sites
    )
    ops = compare(plan.after, graph_plan.after)
    note = f"--form graph goes further: ops {ops}"
    return replace(plan, sites=sites), (note,) if ops.after < ops.before else ()
