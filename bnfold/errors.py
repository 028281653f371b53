"""One exception tree. Each class carries the exit code of the command line (0 and 1 are verdicts).

2  usage            the call itself is wrong or incomplete
3  refused          the model cannot be read, or must not be
4  environment      a provider or a package that was asked for is not there
5  failure          export, simplification or bnfold itself failed
"""

from __future__ import annotations

import re

LONGEST_WORD = 1000
"""Letters of a name that is told whole; no path is as long on most systems."""

_LONG = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


def shortened(text: str) -> str:
    """`text` with the beginning and end of every name in it that nobody would read."""
    return _LONG.sub(lambda found: f"{found[0][:60]}...{found[0][-20:]}", text)


class BnfoldError(Exception):
    """Base of every error that bnfold raises on purpose.

    `str(error)` is one sentence on what was found and where; `hint` says what to type next.
    """

    exit_code = 5

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(shortened(message))
        self.hint = None if hint is None else shortened(hint)


class UsageError(BnfoldError):
    """The call is wrong or lacks something that only the user knows, such as an input shape."""

    exit_code = 2


class ModelError(BnfoldError):
    """The model cannot be read, is damaged, or must not be opened as asked."""

    exit_code = 3


class UntrustedError(ModelError):
    """The file would run code that nobody allowed; `needed` lists the globals it asks for."""

    def __init__(self, message: str, hint: str | None, needed: tuple[str, ...]) -> None:
        super().__init__(message, hint)
        self.needed = needed


class EnvironmentLacksError(BnfoldError):
    """An execution provider, a package or a permission of this machine is missing."""

    exit_code = 4


class ExportError(BnfoldError):
    """Exporting, simplifying or writing an artefact failed."""

    exit_code = 5
