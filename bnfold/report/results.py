"""The report of any result, in any rendering."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from bnfold.report.document import Document
from bnfold.report.rendering import check_report, render_document, write_report

_DOCUMENTS = {
    "FoldResult": "bnfold.report.folding:fold_document",
    "ExportResult": "bnfold.report.folding:export_document",
    "BenchResult": "bnfold.report.speed:bench_document",
    "BuildResult": "bnfold.report.building:build_document",
}
"""By the name of a result's class, what makes its document."""


def document(result: Any) -> Document:
    """What a verb found, ready for any rendering. Raises TypeError for what is no such result."""
    kind = type(result).__name__
    if kind not in _DOCUMENTS or not type(result).__module__.startswith("bnfold."):
        raise TypeError(f"a {kind} is no result of bnfold.fold, export or bench")
    module, _, function = _DOCUMENTS[kind].partition(":")
    made: Document = getattr(import_module(module), function)(result)
    return made


def render(result: Any, style: str = "text", *, everything: bool = False) -> str:
    """The report of a result: "text", "json", "junit", "markdown", "github" or "html".

    `result` is one of `bnfold.fold`, `export` or `bench`; `everything` tells of each affine where
    many are alike. Raises TypeError for anything else, UsageError for a style that there is not.
    """
    return render_document(replace(document(result), everything=everything), style)


class Reports:
    """Writes the reports that `bnfold.verbs.building.build` is asked for."""

    def check(self, path: Path) -> None:
        """Raise BnfoldError, before any work is done, if no report can be written to `path`."""
        check_report(path)

    def write(self, result: Any, path: Path) -> None:
        """Write the report of `result` in the rendering that the suffix of `path` names."""
        write_report(document(result), path)
