"""A folded model, and each artefact of an export, as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.algebra.plan import Plan
from bnfold.report.document import Document, Section
from bnfold.report.units import bytes_of, size
from bnfold.verbs.results import Artefact
from bnfold.verification import Verification

if TYPE_CHECKING:
    from bnfold.verbs.exporting import Export, ExportResult
    from bnfold.verbs.folding import FoldResult


def headline(
    plan: Plan,
    verification: Verification | None,
    seconds: float,
    sizes: tuple[int | None, int | None] = (None, None),
) -> str:
    """What came of it, in a line: counts, bytes before and after, error, time."""
    found = plan.batchnorms
    said = [f"{found.folded} of {found.found} BatchNorms folded"] if found.found else []
    said.append(f"ops {plan.ops.before} -> {plan.ops.after}")
    before, after = sizes
    if before is not None and after is not None:
        said.append(f"{size(before)} -> {size(after)}")
    if (off := None if verification is None else verification.relative_error) is not None:
        said.append(f"error {off:.0e} of the output")
    return ", ".join([*said, f"{seconds:.1f} s"])


def _path(artefact: Artefact | None) -> str | None:
    return None if artefact is None else artefact.path


def fold_document(result: FoldResult, *, require_folded: bool = False) -> Document:
    """It fails as well where `require_folded` and a BatchNorm is kept."""
    taken = sum(seconds for _, seconds in result.clock.stages)
    sizes = bytes_of(result.source.path), bytes_of(_path(result.result))
    section = Section(
        lines=(headline(result.plan, result.verification, taken, sizes),),
        plan=result.plan,
        verification=result.verification,
        notes=result.notes,
        require_folded=require_folded,
        artefact=result.result or Artefact(None, str(result.folded.format), None),
    )
    data = result.to_json()
    if not section.passed:
        data["verdict"] = "fail"
    path = result.source.path or ""
    return Document("bnfold fold", path, (section,), data, result.clock.stages)


def export_document(result: ExportResult) -> Document:
    sections = tuple(_exported(result, name, export) for name, export in result.exports.items())
    path = result.source.path or ""
    return Document("bnfold export", path, sections, result.to_json(), result.clock.stages)


def _exported(result: ExportResult, name: str, export: Export) -> Section:
    taken = sum(s for stage, s in result.clock.stages if name in stage or " " not in stage)
    sizes = bytes_of(result.source.path), bytes_of(_path(export.written))
    return Section(
        name,
        lines=(headline(export.plan, export.verification, taken, sizes),),
        plan=export.plan,
        verification=export.verification,
        notes=(*result.notes, *export.notes),
        artefact=export.written or Artefact(None, str(export.artefact.format), None),
    )
