"""Settings of Sphinx: `make docs` builds the site from this folder."""

from __future__ import annotations

import inspect
import re
import sys
from itertools import cycle
from pathlib import Path

import click
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent.parent))

import bnfold
from docs.catalogue import paragraphs

project = "bnfold"
copyright = "The bnfold maintainers"
release = version = bnfold.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
root_doc = "index"
default_role = "code"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
smartquotes = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"bnfold {release}"
html_show_sphinx = False


def _readable(
    app: Sphinx, what: str, name: str, subject: object, options: object, lines: list[str]
) -> None:
    """Docstrings are prose, and tables in columns, which stay as they are."""
    source = list(lines)
    lines.clear()
    for text, aligned in paragraphs(inspect.cleandoc("\n".join(source))):
        if aligned:
            lines += ["::", "", *(f"    {line}" for line in text.splitlines()), ""]
        else:
            lines += [*_escaped(text).splitlines(), ""]


def _escaped(text: str) -> str:
    """Prose in which only backticks have a meaning."""
    return "`".join(
        part if inside else re.sub(r"[*|_]", r"\\\g<0>", part)
        for part, inside in zip(text.split("`"), cycle((False, True)), strict=False)
    )


def _examples(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """The examples of a command as a block of code."""
    first = next((i for i, line in enumerate(lines) if line.startswith("| bnfold ")), len(lines))
    examples = [line.removeprefix("| ") for line in lines[first:]]
    lines[first:] = [".. code-block:: bash", "", *(f"    {line}" for line in examples), ""]


def setup(app: Sphinx) -> None:
    app.connect("sphinx-click-process-description", _examples)
    app.connect("autodoc-process-docstring", _readable)
