"""Write results so that a target is either the old file or the whole new one.

A target that is a symbolic link is written where the link points. It keeps its mode; a new file
gets what the umask says.
"""

from __future__ import annotations

import atexit
import hashlib
import mmap
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from bnfold.errors import ExportError, UsageError
from bnfold.staging import SUFFIX, clearing, moving_in, staging

LONGEST_NAME = 230
"""Bytes: of the 255 that file systems take, side files and temporary folders add some of theirs."""


def check_target(path: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Raise UsageError, before any work is done, if `path` cannot or must not be written."""
    target = resolved(path)
    folder = target.parent
    if path.is_dir():
        hint = "name another" if source and source.is_dir() else "give the result a file name"
        raise UsageError(f"{path} is a folder", f"{hint} with -o")
    if target.is_symlink():
        raise UsageError(f"{path} is a link that leads to itself", "remove it, or name another")
    if path.is_symlink() and not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist", f"mkdir -p {folder}")
    folder = existing(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", "choose another with -o")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is a device or a pipe", "give the result a file name with -o")
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        hint = f"give a name of at most {LONGEST_NAME} bytes with -o"
        raise UsageError(f"the name {target.name[:20]}... is too long", hint)
    _check_writable(folder)
    same = source is not None and source.exists() and path.exists() and path.samefile(source)
    if same and not overwrite:
        raise UsageError(f"{path} is the input itself", "choose another name or add --overwrite")


def existing(folder: Path) -> Path:
    """The folder itself, or of those that it would lie in the last that is there."""
    return next((each for each in (folder, *folder.parents) if os.path.lexists(each)), folder)


def _check_writable(folder: Path) -> None:
    """By an attempt: what permissions say is not true of every file system."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".", suffix=SUFFIX, dir=folder))
    except OSError as error:
        raise UsageError(
            f"the folder {folder} is not writable: {error.strerror}", "choose another with -o"
        ) from error


_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def special(path: Path) -> str | None:
    """What `path` is if it is no plain file: "a pipe", "a folder", ...; None also if it is absent.

    To open a pipe is to wait for whoever writes to it; a device may have no end.
    """
    try:
        return _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except (OSError, ValueError):  # of a name with a character that no name has
        return None


def resolved(path: Path) -> Path:
    """Where what is called `path` lies, or would: the end of its links."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def spelled(path: Path) -> Path:
    """`path`, or where its bytes are no UTF-8, a link to it, as long as this process lives.

    Libraries that are not Python's take no other names.
    """
    return path if _is_utf8(os.fspath(path)) else _linked(path.absolute())


@cache
def _linked(path: Path) -> Path:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = Path(folder) / _utf8(path.name)
    link.symlink_to(path)
    return link


def _is_utf8(text: str) -> bool:
    return text.isascii() or text == text.encode(errors="replace").decode()


def _utf8(name: str) -> str:
    return name if _is_utf8(name) else name.encode("ascii", "replace").decode().replace("?", "_")


def write_atomically(path: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write a file of the same name, and side files, or a folder, elsewhere; then move
    them in.

    Side files (external data) go first, then the model, then the side files that the model does not
    name are removed. Their names differ with their content, so that at any moment, should the
    process be killed or another write the same, what is called `path` is one model, and complete.
    What writers that died left in the folder is removed. A name whose bytes are no UTF-8 is given
    to the file in the end: `save` and the model, which names its side files, know another. Raises
    UsageError, ExportError.
    """
    target = resolved(path)
    if not os.access(existing(target.parent), os.W_OK):
        raise UsageError(f"the folder {target.parent} is not writable", "choose another with -o")
    name, left = _utf8(target.name), set[str]()
    try:
        with _folder(target.parent), staging(target) as folder:
            mode = _mode(target, folder)
            save(folder / name)
            side_files = sorted(file.name for file in folder.iterdir() if file.name != name)
            left.update(side_files)
            for file in filter(Path.is_file, folder.rglob("*")):
                _finish(file, mode)
            with moving_in(target.parent):
                for side_file in side_files:
                    (folder / side_file).replace(target.parent / side_file)
                (folder / name).replace(target)
                _flush(target.parent)
        left = _side_files(target)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # what is left now is removed by the next who writes here
            _clear(target, left)


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make the folder that a result goes to, and those it lies in; gone again if nothing does."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it has content of somebody else
            for each in missing:
                each.rmdir()
        raise


def _clear(target: Path, candidates: Iterable[str]) -> None:
    """Remove those of the side files that what is called `target` now does not name."""
    with clearing(target.parent) as may:
        for name in [name for name in candidates if may and not _names(target, name)]:
            (target.parent / name).unlink(missing_ok=True)


def _names(target: Path, side_file: str) -> bool:
    if not target.exists() or not target.stat().st_size:
        return False
    with target.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(side_file.encode()) >= 0


def _mode(target: Path, folder: Path) -> int:
    """The permissions of `target`; before there is one, those of any new file."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    new = folder / "new"
    new.touch()
    mode = stat.S_IMODE(new.stat().st_mode)
    new.unlink()
    return mode


def _finish(file: Path, mode: int) -> None:
    if stat.S_IMODE(file.stat().st_mode) != mode:
        file.chmod(mode)
    _flush(file)


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
    named = re.compile(re.escape(_utf8(path.name)) + r"\.[0-9a-f]{12}\.data")
    return {file.name for file in path.parent.iterdir() if named.fullmatch(file.name)}


def stamp(path: Path) -> tuple[int, ...] | None:
    """What tells whether something was written to `path` between two looks; None: it is absent."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def sha256(path: Path) -> str:
    """The hash of a file's content, or of the names and contents of a folder's, in hexadecimal."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
