"""The renderings by name, and those that files get by their suffix.

Each is a module of this package, imported when it is used.
"""

from __future__ import annotations

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import UsageError
from bnfold.files import check_target, write_atomically
from bnfold.report import plot

if TYPE_CHECKING:
    from bnfold.report.document import Document

STYLES = ("text", "json", "junit", "markdown", "github")
"""What stdout can carry."""

SUFFIXES = {".txt": "text", ".json": "json", ".xml": "junit", ".md": "markdown", ".html": "html"}
"""What a file gets, by its suffix."""

REPORTS = (*SUFFIXES, *plot.SUFFIXES)
"""What the name of a report may end in."""


def render_document(document: Document, style: str) -> str:
    """The document in a rendering of STYLES or SUFFIXES. Raises UsageError for any other."""
    if style not in (*STYLES, *SUFFIXES.values()):
        raise UsageError(f"{style!r} is no rendering", f"choose from {', '.join(STYLES)}, html")
    if style == "json":
        return json.dumps(document.data, indent=2)
    rendered: str = import_module(f"bnfold.report.{style}").render(document)
    return rendered


def check_report(path: Path) -> None:
    """Raise BnfoldError, before any work is done, if no report can be written to `path`."""
    if path.suffix in plot.SUFFIXES:
        plot.check_plots()
    elif path.suffix not in REPORTS:
        *most, last = REPORTS
        hint = f"use {', '.join(most)} or {last}"
        raise UsageError(f"--report {path}: no report ends in {path.suffix!r}", hint)
    check_target(path, overwrite=True)


def write_report(document: Document, path: Path) -> None:
    """Write `document` to `path` in the rendering of its suffix; never half of it."""
    if path.suffix in plot.SUFFIXES:
        write_atomically(path, partial(plot.save, document))
        return
    content = render_document(document, SUFFIXES[path.suffix]) + "\n"
    write_atomically(path, partial(_write, content))


def _write(content: str, path: Path) -> None:
    path.write_text(content, encoding="utf-8", errors="backslashreplace")
