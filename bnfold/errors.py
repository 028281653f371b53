"""One exception tree. Each class carries the exit code of the command line (0 and 1 are verdicts).

2  usage            the call itself is wrong or incomplete
3  refused          the model cannot be read, or must not be
4  environment      a provider or a package that was asked for is not there
5  failure          export, simplification or bnfold itself failed
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Any

LONGEST_WORD = 1000
"""Letters of a name that is told whole; no path is as long on most systems."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

_LONG = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


def shortened(text: str) -> str:
    """`text` with the beginning and end of every name in it that nobody would read."""
    return _LONG.sub(lambda found: f"{found[0][:60]}...{found[0][-20:]}", text)


def first_line(error: BaseException) -> str:
    """The first line that an error says, without colours; its type if it says nothing."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


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


_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command ended without a result: the sentence, what to type next, the exit code."""

    code: int
    kind: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that an exception means; what bnfold did not raise itself is internal."""
        kind = type(error).__name__
        if isinstance(error, BnfoldError):
            return cls(error.exit_code, kind, str(error), error.hint)
        if isinstance(error, ModuleNotFoundError) and not f"{error.name}.".startswith("bnfold."):
            return cls.of(
                EnvironmentLacksError(
                    f"the package {error.name} is not installed, which this needs",
                    f"pip install {str(error.name).partition('.')[0]}, or pip install bnfold for "
                    "all of it; bnfold doctor says what this host can do",
                )
            )
        if isinstance(error, OSError) and error.errno in _FULL:
            where = f" for {error.filename}" if error.filename else ""
            return cls.of(ExportError(f"there is no space left on the disk{where}", "make some"))
        first = (str(error).splitlines() or [""])[0]
        hint = "run it again with --debug and report what it prints"
        return cls(BnfoldError.exit_code, kind, f"bnfold itself failed: {kind}: {first}", hint)

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "kind": self.kind, "message": self.message, "hint": self.hint}
