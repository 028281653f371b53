"""The verb `export`: convert, simplify, fold, and verify every artefact against the original."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.algebra.plan import Plan
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.environment import versions
from bnfold.errors import ExportError, UsageError
from bnfold.files import sha256, write_atomically
from bnfold.formats.model import Model, blaming
from bnfold.formats.opening import Opening, open_model
from bnfold.inputs import Inputs
from bnfold.preprocessing import Preprocessing
from bnfold.process_state import in_turn
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import Sample
from bnfold.verbs.attributing import Stage
from bnfold.verbs.inference import refuse_broken, refuse_random
from bnfold.verbs.inputs import example, known_inputs
from bnfold.verbs.precision import in_precision
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
from bnfold.verbs.targets import Conversion, converted, freed, require_free, require_target
from bnfold.verbs.verifying import judge_models
from bnfold.verification import Verification

MADE_WITH = ("torch", "onnx", "onnxscript", "onnxsim")
"""The packages that have a say in what an artefact looks like."""


@dataclass(eq=False, slots=True)
class Export:
    """One artefact: a folded model in one format, and how it compares with the original."""

    target: str
    artefact: Model
    plan: Plan
    verification: Verification
    notes: tuple[str, ...] = ()
    written: Artefact | None = None

    @property
    def model(self) -> Any:
        """The framework's own object. Raises VerificationError if it is not equivalent."""
        self._require_pass()
        return self.artefact.native

    def save(self, path: str | Path) -> Artefact:
        self._require_pass()
        target = Path(path)
        write_atomically(target, self.artefact.save)
        self.written = Artefact(str(target), str(self.artefact.format), sha256(target))
        return self.written

    def _require_pass(self) -> None:
        if not self.verification.passed:
            raise VerificationError(
                f"the {self.target} artefact differs from its original: {self.verification.summary}"
            )


@dataclass(eq=False, slots=True)
class ExportResult:
    """Every artefact of an export, by target name."""

    source: Artefact
    exports: dict[str, Export]
    clock: Clock
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return all(export.verification.passed for export in self.exports.values())

    def __getitem__(self, target: str) -> Export:
        return self.exports[target]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": "pass" if self.passed else "fail",
            "source": self.source.to_json(),
            "results": [
                {
                    "target": export.target,
                    "result": (export.written or _unwritten(export)).to_json(),
                    **counts(export.plan),
                    "sites": [site.to_json() for site in export.plan.sites],
                    "verification": export.verification.to_json(),
                }
                for export in self.exports.values()
            ],
            "stages": self.clock.to_json(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """One line; `bnfold.render` has the report."""
        return ", ".join(
            f"{name}: {'pass' if each.verification.passed else 'fail'}"
            for name, each in self.exports.items()
        )


@in_turn
def export(
    model: Any,
    inputs: Any = None,
    *,
    to: Sequence[str] = ("onnx",),
    how: Conversion = Conversion(),  # noqa: B008 (it is frozen)
    outputs: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    move: bool = True,
    protocol: Protocol = DEFAULT,
    opening: Opening | None = None,
    progress: Progress = lambda step: None,
) -> ExportResult:
    """Fold `model` and export it to each format in `to`: "onnx", "torchscript", "pt2".

    The model is converted as it is and folded in the target's own graph, where nothing needs to
    stay for a module's sake; so the unfolded conversion gives the noise floor in the very runtime
    that the artefact is judged in. ONNX is simplified before it is folded, which replaces what an
    exporter computes in roundabout ways. `how` has the wishes for all of that; `move` is that of
    `fold`, and so are `outputs`. With `preprocessing` the artefacts do that themselves, folded too.
    Raises BnfoldError.
    """
    for name in to:
        require_target(name)
    if how.meta and "onnx" not in to:
        raise UsageError("only ONNX has metadata to be set", "leave them out, or export to onnx")
    clock = Clock(progress)
    with clock.stage("open"):
        original = open_model(model, opening)
    source = describe(model, original)
    exports: dict[str, Export] = {}
    with blaming(original):
        original = original.selecting(outputs) if outputs else original
        known = known_inputs(original, inputs, measured_by(protocol, preprocessing))
        known = freed(known, how.dynamic)
        require_free(original, known)
        cast, wanted = in_precision(original, known, how.dtype)
        assert wanted is not None
        if preprocessing is not None:
            original, _ = with_preprocessing(original, known, preprocessing)
            cast, wanted = with_preprocessing(cast, wanted, preprocessing)
        sample = example(wanted)
        for target in to:
            job = _Job(original, cast, wanted, sample, how, move, protocol, clock)
            exports[target] = job.run(target, source)
    return ExportResult(source, exports, clock, original.notes)


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    """`cast` is the original in the type that was asked for, and what `inputs` fit.

    All jobs have the same `sample`, so that the model is captured once.
    """

    original: Model
    cast: Model
    inputs: Inputs
    sample: Sample
    how: Conversion
    move: bool
    protocol: Protocol
    clock: Clock

    def run(self, target: str, source: Artefact) -> Export:
        sample, notes = self.sample, []
        with self.clock.stage(f"convert to {target}"):
            unfolded = plain = converted(self.cast, target, self.inputs, sample, self.how)
            notes += [note for note in unfolded.notes if note not in self.original.notes]
        if target == "onnx" and self.how.simplify:
            with self.clock.stage("simplify"):
                try:
                    plain = _simplified(unfolded)
                except ExportError as error:
                    if not self.how.keep_going:
                        raise
                    notes.append(f"not simplified: {error}")
        with self.clock.stage(f"fold {target}"):
            graph = plain.read(sample)
            refuse_broken(graph)
            refuse_random(graph)
            free = plain.free() if self.move else frozenset()
            plan, weights = make_rounded_plan(graph, plain.locked(), plain.veto, free=free)
            notes += (*moves_told(plan), *copies_told(plan))
            artefact = plain.write(plan, weights)
            if target == "onnx":
                artefact = self._finished(artefact, plan, source)
        with self.clock.stage(f"verify {target}"):
            verification = judge_models(
                self.cast,
                artefact,
                self.inputs,
                self.protocol,
                stages=self._stages(unfolded, plain),
                rounded_from=self.original,
                progress=self.clock.progress,
            )
        return Export(target, artefact, plan, verification, tuple(notes))

    def _stages(self, unfolded: Model, plain: Model) -> list[Stage]:
        """What the artefact was before it was folded, as far as it is not the original."""
        converted = [] if unfolded is self.cast else [Stage("exported", unfolded, True)]
        return [*converted, *([] if plain is unfolded else [Stage("simplified", plain)])]

    def _finished(self, artefact: Model, plan: Plan, source: Artefact) -> Model:
        from bnfold.formats.onnx.finishing import finished
        from bnfold.formats.onnx.model import OnnxModel

        assert isinstance(artefact, OnnxModel)
        return finished(
            artefact,
            {**provenance(source, plan), **self.how.meta},
            names=(self.how.input_names, self.how.output_names),
            ir_version=self.how.ir_version,
            external=self.how.external_data,
        )


def _simplified(model: Model) -> Model:
    from bnfold.formats.onnx.model import OnnxModel
    from bnfold.formats.onnx.simplification import simplified

    assert isinstance(model, OnnxModel)
    return simplified(model)


def provenance(source: Artefact, plan: Plan) -> dict[str, str]:
    """What an artefact says of where it is from; the same input gives the same words."""
    sites = json.dumps([site.to_json() for site in plan.sites], sort_keys=True)
    found = versions()
    facts = {
        "bnfold.version": found["bnfold"],
        "bnfold.plan.sha256": hashlib.sha256(sites.encode()).hexdigest(),
        "bnfold.source.format": source.format,
        "bnfold.packages": ", ".join(
            f"{name} {found[name]}" for name in MADE_WITH if name in found
        ),
    }
    if source.sha256 is not None:
        facts["bnfold.source.sha256"] = source.sha256
    return facts


def _unwritten(export: Export) -> Artefact:
    return Artefact(None, str(export.artefact.format), None)
