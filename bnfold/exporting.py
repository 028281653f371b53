"""The verb `export`: convert, simplify, fold, and verify every artefact against the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError
from bnfold.files import sha256, write_atomically
from bnfold.folding import (
    SCHEMA_VERSION,
    Artefact,
    Clock,
    Progress,
    VerificationError,
    counts,
    describe,
    example,
)
from bnfold.formats.model import Format, Model, blaming
from bnfold.formats.opening import Opening, open_model
from bnfold.inputs import Inputs
from bnfold.plan import Plan
from bnfold.protocol import DEFAULT, Protocol
from bnfold.rounding import make_rounded_plan
from bnfold.verification import Verification
from bnfold.verifying import judge_models, known_inputs

if TYPE_CHECKING:
    from bnfold.report.document import Document

TARGETS = {
    "onnx": Format.ONNX,
    "torchscript": Format.TORCHSCRIPT,
    "pt2": Format.EXPORTED_PROGRAM,
}
SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript.pt", "pt2": ".pt2"}


@dataclass(eq=False, slots=True)
class Export:
    """One artefact: a folded model in one format, and how it compares with the original."""

    target: str
    artefact: Model
    plan: Plan
    verification: Verification
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

    def document(self, *, everything: bool = False) -> Document:
        """This result for the renderings of `bnfold.report`."""
        from bnfold.report.document import Document, Section

        sections = tuple(
            Section(
                name,
                plan=export.plan,
                verification=export.verification,
                notes=self.notes,
                artefact=export.written or _unwritten(export),
            )
            for name, export in self.exports.items()
        )
        return Document(
            "bnfold export",
            self.source.path or "",
            sections,
            self.to_json(),
            self.clock.stages,
            everything,
        )

    def __str__(self) -> str:
        from bnfold.report.text import render

        return render(self.document())


def export(
    model: Any,
    inputs: Any = None,
    *,
    to: Sequence[str] = ("onnx",),
    opset: int = 20,
    simplify: bool = True,
    protocol: Protocol = DEFAULT,
    opening: Opening | None = None,
    progress: Progress = lambda step: None,
) -> ExportResult:
    """Fold `model` and export it to each format in `to`: "onnx", "torchscript", "pt2".

    The model is converted as it is and folded in the target's own graph, where nothing needs to
    stay for a module's sake; so the unfolded conversion gives the noise floor in the very runtime
    that the artefact is judged in. ONNX is simplified before it is folded, which replaces what an
    exporter computes in roundabout ways, unless `simplify` is off. Raises BnfoldError.
    """
    if unknown := [name for name in to if name not in TARGETS]:
        raise UsageError(f"{unknown[0]!r} is no target", f"choose from {', '.join(TARGETS)}")
    clock = Clock(progress)
    with clock.stage("open"):
        original = open_model(model, opening)
    exports: dict[str, Export] = {}
    with blaming(original):
        known = known_inputs(original, inputs, protocol)
        for target in to:
            job = _Job(original, known, opset, simplify, protocol, clock)
            exports[target] = job.run(target)
    return ExportResult(describe(model, original), exports, clock, original.notes)


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    original: Model
    inputs: Inputs
    opset: int
    simplify: bool
    protocol: Protocol
    clock: Clock

    def run(self, target: str) -> Export:
        sample = example(self.inputs)
        with self.clock.stage(f"convert to {target}"):
            unfolded = self._converted(TARGETS[target], sample)
        plain = unfolded
        if target == "onnx" and self.simplify:
            with self.clock.stage("simplify"):
                plain = _simplified(unfolded)
        with self.clock.stage(f"fold {target}"):
            graph = plain.read(sample)
            plan, weights = make_rounded_plan(graph, plain.locked(), plain.veto)
            artefact = plain.write(plan, weights)
        with self.clock.stage(f"verify {target}"):
            verification = judge_models(
                self.original,
                artefact,
                self.inputs,
                self.protocol,
                floor_model=unfolded if unfolded is not self.original else None,
                progress=self.clock.progress,
            )
        return Export(target, artefact, plan, verification)

    def _converted(self, to: Format, sample: Any) -> Model:
        if self.original.format is to:
            return self.original
        if self.original.format is Format.ONNX:
            raise UsageError(
                f"an ONNX model cannot be exported to {to}", "start from the PyTorch model instead"
            )
        from bnfold.formats.conversion import convert

        return convert(self.original, to, self.inputs, sample, self.opset)


def _simplified(model: Model) -> Model:
    from bnfold.formats.onnx.model import OnnxModel
    from bnfold.formats.onnx.simplification import simplified

    assert isinstance(model, OnnxModel)
    return simplified(model)


def _unwritten(export: Export) -> Artefact:
    return Artefact(None, str(export.artefact.format), None)
