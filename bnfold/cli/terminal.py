"""A document as text on stdout, as wide as the terminal if it is one."""

from __future__ import annotations

import sys

from rich.console import Console

from bnfold.report import text
from bnfold.report.document import Document


class Terminal(Console):
    """Raises BrokenPipeError where rich would end the process with the code of a failed gate."""

    def on_broken_pipe(self) -> None:
        raise


def show(document: Document) -> None:
    terminal = sys.stdout is not None and sys.stdout.isatty()
    text.show(Terminal(width=None if terminal else text.WIDTH), text.parts(document))
