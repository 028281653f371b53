"""The verb `fold`: open, read, plan, write, verify."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bnfold.algebra.cost import cost
from bnfold.algebra.plan import Outcome, Plan, compare
from bnfold.algebra.planner import make_plan
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.errors import BnfoldError, UsageError
from bnfold.files import sha256, write_atomically
from bnfold.formats.model import MODULES, WEIGHTS, Format, Model, blaming
from bnfold.formats.opening import Opening, open_model
from bnfold.inputs import Inputs, says_something
from bnfold.process_state import in_turn
from bnfold.protocol import DEFAULT, Protocol
from bnfold.verbs.attributing import Stage
from bnfold.verbs.inference import refuse_broken, refuse_random
from bnfold.verbs.targets import AS_IT_IS, converted, require_target
from bnfold.verbs.verifying import judge_models, known_inputs
from bnfold.verification import Verification

if TYPE_CHECKING:
    from bnfold.report.document import Document

Form = Literal["auto", "module", "graph"]
Progress = Callable[[str], None]
SCHEMA_VERSION = 1


class VerificationError(BnfoldError):
    """A result was asked for that did not pass its verification."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Artefact:
    """A model as reports name it; `path` and `sha256` are None for an object in memory."""

    path: str | None
    format: str
    sha256: str | None

    def to_json(self) -> dict[str, str | None]:
        return {"path": self.path, "format": self.format, "sha256": self.sha256}


@dataclass(slots=True)
class Clock:
    """The stages of a run with their seconds; tells `progress` when each begins."""

    progress: Progress
    stages: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name)
        start = time.perf_counter()
        yield
        self.stages.append((name, time.perf_counter() - start))

    def to_json(self) -> list[dict[str, Any]]:
        return [{"name": name, "seconds": round(seconds, 4)} for name, seconds in self.stages]


@dataclass(eq=False, slots=True)
class FoldResult:
    """A folded model, how it came about, and whether it is right.

    `plan` has the fate of every affine; `verification` is None if it was not wanted.
    """

    original: Model
    folded: Model
    inputs: Inputs | None
    plan: Plan
    verification: Verification | None
    source: Artefact
    clock: Clock
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
        if self.verification is None:
            return "unverified"
        return "pass" if self.passed else "fail"

    @property
    def notes(self) -> tuple[str, ...]:
        path = self.result and self.result.path
        loading = self.folded.how_to_load(Path(path)) if path else None
        verified = self.verification.notes if self.verification else ()
        return (*self.folded.notes, *verified, *((loading,) if loading else ()))

    def save(self, path: str | Path) -> Artefact:
        """Write the folded model; the target is never left half-written."""
        self._require_pass()
        target = Path(path)
        write_atomically(target, self.folded.save)
        self.result = Artefact(str(target), str(self.folded.format), sha256(target))
        return self.result

    def _require_pass(self) -> None:
        if not self.passed:
            assert self.verification is not None
            raise VerificationError(
                f"the folded model differs from its original: {self.verification.summary}",
                "this is a bug in bnfold or a model that is not deterministic: please report it",
            )

    def document(self, *, everything: bool = False, require_folded: bool = False) -> Document:
        """This result for the renderings of `bnfold.report`."""
        from bnfold.report.document import Document, Section

        section = Section(
            plan=self.plan,
            verification=self.verification,
            notes=self.notes,
            require_folded=require_folded,
            artefact=self.result or Artefact(None, str(self.folded.format), None),
        )
        data = self.to_json()
        if not section.passed:
            data["verdict"] = "fail"
        return Document(
            "bnfold fold",
            self.source.path or "",
            (section,),
            data,
            self.clock.stages,
            everything,
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
        from bnfold.report.text import render

        return render(self.document())


@in_turn
def fold(
    model: Any,
    inputs: Any = None,
    *,
    to: str | None = None,
    form: Form = "auto",
    keep_classes: bool = False,
    compact: bool = False,
    verify: bool = True,
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
    places for the result; `compact` folds on, for `bnfold.load` alone. With `to` ("onnx",
    "torchscript", "pt2") the model is converted first and folded in that format. `protocol` says
    how the result is verified. Raises BnfoldError.
    """
    if to is not None:
        require_target(to)
    clock = Clock(progress)
    with clock.stage("open"):
        original = open_model(model, opening)
    source = describe(model, original)
    with blaming(original):
        with clock.stage("read"):
            found = _inputs_for(original, inputs, verify or to is not None, protocol)
            base = _base(original, found, to, form)
            _wish(base, keep_classes=keep_classes, compact=compact)
            graph = base.read(_example(found))
            refuse_broken(graph)
            if verify:
                refuse_random(graph)
        with clock.stage("plan"):
            plan, weights = make_rounded_plan(graph, base.locked(), base.veto, merging=base.merging)
        with clock.stage("write"):
            folded = base.write(plan, weights)
            plan, further = _beside_graph_form(base, plan)
            known = (*original.notes, *base.notes, *base.told(), *further)
            folded.notes = tuple(dict.fromkeys(known))
        verification = None
        if verify:
            assert found is not None
            with clock.stage("verify"):
                converted = to is not None and base is not original
                stages = [Stage("exported", base, True)] if converted else []
                verification = judge_models(
                    original, folded, found, protocol, stages=stages, progress=progress
                )
    return FoldResult(original, folded, found, plan, verification, source, clock)


@in_turn
def inspect(
    model: Any,
    inputs: Any = None,
    *,
    form: Form = "auto",
    keep_classes: bool = False,
    compact: bool = False,
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
        plan, _ = make_rounded_plan(
            graph, original.locked(), original.veto, merging=original.merging
        )
        plan, further = _beside_graph_form(original, plan)
        original.notes = (*original.notes, *original.told(), *further)
    return original, plan


def describe(given: Any, model: Model) -> Artefact:
    if isinstance(given, str | Path):
        return Artefact(str(given), str(model.format), sha256(Path(given)))
    return Artefact(None, str(model.format), None)


def example(inputs: Inputs) -> dict[str, Any]:
    """Seeded noise (or the user's own data) to read and export a model with."""
    from bnfold.verification.cases import probes

    if inputs.data:
        return dict(inputs.sample)
    return dict(next(probes(inputs.specs, inputs.sample)).sample)


def _example(inputs: Inputs | None) -> dict[str, Any] | None:
    return None if inputs is None else example(inputs)


def _inputs_for(
    model: Model, given: Any, needed: bool, protocol: Protocol = DEFAULT
) -> Inputs | None:
    """The inputs; None where they are neither known nor needed."""
    told_by_itself = model.format in (Format.ONNX, Format.EXPORTED_PROGRAM)
    if told_by_itself and not needed and not says_something(given):
        return None
    try:
        return known_inputs(model, given, protocol)
    except UsageError:
        if needed or says_something(given) or model.format in MODULES:
            raise
        return None


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


def counts(plan: Plan) -> dict[str, Any]:
    """How many BatchNorms, affines of any kind, ops of every kind, and what they cost."""
    return {
        "batchnorms": asdict(plan.batchnorms),
        "affines": asdict(plan.affines),
        "ops": plan.ops.to_json(),
        "cost": {"before": asdict(cost(plan.before)), "after": asdict(cost(plan.after))},
    }
