"""The directory of a zip archive, checked before anything in it is read.

Python and torch each have a reader of zip files; what both understand alike has each name once
(torch's does not tell upper from lower case), plain names, and sizes that the file can hold.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import IO

from bnfold.errors import ModelError

MOST = 64 << 20
EXPANSION = 100
"""A file may unpack to 64 MiB and 100 times its own size: weights hardly shrink, code tenfold."""


_PIECE = 1 << 20


def most_memory(path: Path) -> int:
    """The bytes that the content of a file may take; more is no model but an attack."""
    return MOST + EXPANSION * path.stat().st_size


def members(path: Path) -> list[str]:
    """The names in an archive. Raises ModelError if its directory is damaged or made to deceive."""
    return members_of(path, path, most_memory(path))


def members_of(stream: Path | IO[bytes], path: Path, most: int) -> list[str]:
    """The names in an archive at `path`, or inside of that; it may unpack to `most` bytes."""
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile has many ways to stumble over damaged headers
        raise ModelError(
            f"{path} is a damaged or truncated zip archive: {error}", "save or download it again"
        ) from error
    if problem := _problem(entries, most):
        raise ModelError(
            f"{path} is a zip archive that torch does not write: {problem}",
            "do not use it, unless you know how it was made; save it again with torch",
        )
    return [entry.filename for entry in entries]


def content(archive: zipfile.ZipFile, name: str) -> bytearray:
    """A member, of which no more is unpacked than its header says.

    Raises KeyError if there is none, zipfile.BadZipFile if it is another size, or damaged.
    """
    size = archive.getinfo(name).file_size
    found = bytearray()
    with archive.open(name) as stream:
        while piece := stream.read(min(_PIECE, size + 1 - len(found))):
            found += piece
    if len(found) != size:
        raise zipfile.BadZipFile(f"{name} does not have the size that its header says")
    return found


def _problem(entries: list[zipfile.ZipInfo], most: int) -> str | None:
    for entry in entries:
        name = entry.orig_filename
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/") or not name.isprintable() or "\\" in name:
            return f"it has a member called {name!r}"
        if entry.flag_bits & 1:
            return f"its member {name} is encrypted"
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"its member {name} is compressed in another way"
    twice = [n for n, k in Counter(e.filename.lower() for e in entries).items() if k > 1]
    if twice:
        return f"it has {twice[0]} more than once"
    size = sum(entry.file_size for entry in entries)
    if size > most:
        return f"it would unpack to {size / 1e9:.1f} GB, more than its own size explains"
    return None
