"""Write results so that a target is either the old file or the whole new one."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from bnfold.errors import ExportError, UsageError

LONGEST_NAME = 230
"""Bytes: of the 255 that file systems take, side files and temporary folders add some of theirs."""


def check_target(path: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Raise UsageError, before any work is done, if `path` cannot or must not be written."""
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "give the result a file name with -o")
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist", f"mkdir -p {folder}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is a device or a pipe", "give the result a file name with -o")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        hint = f"give a name of at most {LONGEST_NAME} bytes with -o"
        raise UsageError(f"the name {path.name[:20]}... is too long", hint)
    if not os.access(folder, os.W_OK):
        raise UsageError(f"the folder {folder} is not writable", "choose another with -o")
    same = source is not None and source.exists() and path.exists() and path.samefile(source)
    if same and not overwrite:
        raise UsageError(f"{path} is the input itself", "choose another name or add --overwrite")


def write_atomically(path: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write a file of the same name, and side files, elsewhere; then move them in.

    Side files (external data) go first, then the model, then the side files of the model that was
    there before are removed. Their names differ with their content, so that at any moment, should
    the process be killed, what is called `path` is the old model or the new one, and complete.
    """
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UsageError(
            f"the folder {path.parent} is not writable: {error.strerror}", "choose another with -o"
        ) from error
    try:
        save(staging / path.name)
        made = sorted(staging.iterdir(), key=lambda file: file.name == path.name)
        for file in made:
            _flush(file)
        for file in made:
            file.replace(path.parent / file.name)
        _flush(path.parent)
        for old in _side_files(path).difference(file.name for file in made):
            (path.parent / old).unlink()
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk itself."""
    if path.is_dir() and os.name != "posix":
        return  # only POSIX opens folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _side_files(path: Path) -> set[str]:
    """The data files beside `path` that are named after it and their content."""
    named = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.data")
    return {file.name for file in path.parent.iterdir() if named.fullmatch(file.name)}


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
