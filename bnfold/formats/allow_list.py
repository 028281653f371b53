"""What a user writes to allow names: entries, with commas or not, and files of them.

pkg.mod.Class, pkg, pkg.mod.*    names, packages, patterns
@FILE                            a line each; # begins a comment
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from bnfold.errors import UsageError


def allow_list(given: Iterable[str]) -> Iterator[str]:
    """Single entries, with dots for colons. Raises UsageError for a file that cannot be read."""
    for text in given:
        for entry in (part.strip() for part in text.split(",")):
            if entry.startswith("@"):
                yield from allow_list(_lines(Path(entry[1:])))
            elif entry:
                yield entry.replace(":", ".")


def packages(given: Iterable[str]) -> set[str]:
    """The packages that are allowed, or of which something is."""
    return {entry.partition(".")[0] for entry in allow_list(given)}


def files(given: Iterable[str]) -> set[Path]:
    """The files that entries are in."""
    parts = (part.strip() for text in given for part in text.split(","))
    return {Path(part[1:]) for part in parts if part.startswith("@")}


def _lines(path: Path) -> list[str]:
    """Those of a file, which names no further file."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"--allow @{path} cannot be read: {error}", "check the path") from error
    return [line.partition("#")[0].lstrip("@ ") for line in lines]
