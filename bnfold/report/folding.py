"""A folded model, and each artefact of an export, as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.report.document import Document, Section
from bnfold.verbs.results import Artefact

if TYPE_CHECKING:
    from bnfold.verbs.exporting import Export, ExportResult
    from bnfold.verbs.folding import FoldResult


def fold_document(result: FoldResult, *, require_folded: bool = False) -> Document:
    """It fails as well where `require_folded` and a BatchNorm is kept."""
    section = Section(
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
    return Section(
        name,
        plan=export.plan,
        verification=export.verification,
        notes=(*result.notes, *export.notes),
        artefact=export.written or Artefact(None, str(export.artefact.format), None),
    )
