"""The renderings by name, and those that files get by their suffix."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bnfold.errors import UsageError
from bnfold.files import check_target, write_atomically
from bnfold.report import github, html, junit, markdown, plot, text
from bnfold.report.document import Document


def to_json(document: Document) -> str:
    return json.dumps(document.data, indent=2)


RENDERINGS: dict[str, Callable[[Document], str]] = {
    "text": text.render,
    "json": to_json,
    "junit": junit.render,
    "markdown": markdown.render,
    "github": github.render,
}

SUFFIXES = {
    ".txt": text.render,
    ".json": to_json,
    ".xml": junit.render,
    ".md": markdown.render,
    ".html": html.render,
}

REPORTS = (*SUFFIXES, *plot.SUFFIXES)
"""What the name of a report may end in."""


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
    content = SUFFIXES[path.suffix](document) + "\n"
    write_atomically(path, partial(_write, content))


def _write(content: str, path: Path) -> None:
    path.write_text(content, encoding="utf-8")
