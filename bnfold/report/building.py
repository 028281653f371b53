"""What became of the models of a pipeline, as a document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnfold.report.document import Check, Document, Section, Table

if TYPE_CHECKING:
    from bnfold.verbs.building import BuildResult, Built

HEADINGS = ("model", "state", "BatchNorms", "folded", "ratio", "artefacts")


def build_document(result: BuildResult) -> Document:
    """A row for each model; those that failed say why below the table."""
    rows = tuple(_row(built) for built in result.models)
    wanting = frozenset(i for i, built in enumerate(result.models) if built.code)
    table = Table(HEADINGS, rows, frozenset(HEADINGS[2:5]), wanting)
    checks = tuple(Check("models", built.name, built.why) for built in result.models)
    notes = tuple(
        f"{built.name}: {built.why}" + (f"; {built.hint}" if built.hint else "")
        for built in result.models
        if built.why
    )
    section = Section(tables=(table,), notes=notes, checks=checks)
    return Document("bnfold build", result.source, (section,), result.to_json())


def _row(built: Built) -> tuple[str, ...]:
    parts = built.data.get("results", [built.data] if built.data else [])
    counts = [part["batchnorms"] for part in parts if "batchnorms" in part]
    ratios = [ratio for part in parts for ratio in _ratios(part)]
    return (
        built.name,
        built.state,
        str(counts[0]["found"]) if counts else "",
        str(min(count["folded"] for count in counts)) if counts else "",
        f"{max(ratios):.2f}" if ratios else "",
        "\n".join(built.artefacts),
    )


def _ratios(part: Mapping[str, Any]) -> list[float]:
    cases = (part.get("verification") or {}).get("cases", [])
    return [case["ratio"] for case in cases if isinstance(case.get("ratio"), int | float)]
