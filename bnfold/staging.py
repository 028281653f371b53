"""Where a result is written before it is moved into place, and who may move or clear away what.

A writer works in a folder of its own beside its target, `.NAME.XXXXXXXX.bnfold`, and holds a lock
on it. The system drops the lock when the process ends, however it ends: a staging folder that can
be locked was left by a writer that died.

The folder of the target has a lock, too. Writers share it while they move files in, one after
another: no writer waits for another. Who clears away has it alone, so that nothing is taken for
left over that is just being moved in. On a file system without locks nobody can tell the dead from
the living: there, nothing is cleared away while another staging folder stands.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path

from bnfold.errors import ExportError

SUFFIX = ".bnfold"
"""What the name of a staging folder ends in."""

PATIENCE = 60.0
"""Seconds to wait for one who clears away, which takes none, to move files in."""

GRACE = 1.0
"""Seconds to wait for those who move files in, to clear away; after that it is left to the next."""

_STEP = 0.005


class Lock(Enum):
    """What became of an attempt to lock a folder."""

    HELD = "held"
    TAKEN = "another process, or thread, holds it"
    UNKNOWN = "the file system has no locks"


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A folder beside `path` for this writer alone, as long as it lives. Raises OSError."""
    with ExitStack() as stack:
        folder = _made(path, stack)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def moving_in(folder: Path) -> Iterator[None]:
    """While it lasts, nobody clears `folder`. Raises ExportError if somebody does not come to an
    end with that."""
    with _open(folder) as handle:
        if _patiently(handle, PATIENCE, shared=True) is Lock.TAKEN:
            raise ExportError(
                f"another process has been clearing up {folder} for {PATIENCE:g} s",
                "see what became of it, and try again",
            )
        yield


@contextmanager
def clearing(folder: Path) -> Iterator[bool]:
    """Whether `folder` may be cleared, while it lasts; what dead writers staged there is gone."""
    with _open(folder) as handle:
        match _patiently(handle, GRACE, shared=False):
            case Lock.HELD:
                _remove_dead(folder)
                yield True
            case Lock.TAKEN:
                yield False
            case Lock.UNKNOWN:
                yield not list(_staged(folder))


def _made(path: Path, stack: ExitStack) -> Path:
    """A new staging folder, locked; one that is cleared away before that does not count."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=SUFFIX, dir=path.parent))
        with suppress(FileNotFoundError), ExitStack() as attempt:
            handle = attempt.enter_context(_open(folder))
            if _lock(handle) is not Lock.TAKEN and _is(folder, handle):
                stack.push(attempt.pop_all())
                return folder


def _is(folder: Path, handle: int | None) -> bool:
    """Whether the folder that was opened is still the one of that name."""
    return handle is None or os.path.samestat(os.fstat(handle), folder.stat())


def _remove_dead(folder: Path) -> None:
    for staged in _staged(folder):
        with suppress(OSError), _open(staged) as handle:
            if _lock(handle) is Lock.HELD:
                shutil.rmtree(staged, ignore_errors=True)


def _staged(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith(".") and entry.name.endswith(SUFFIX) and entry.is_dir():
            yield entry


@contextmanager
def _open(folder: Path) -> Iterator[int | None]:
    if sys.platform == "win32":  # which opens no folders
        yield None
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        with suppress(OSError):  # a process that was forked meanwhile would keep the lock
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _patiently(handle: int | None, patience: float, *, shared: bool) -> Lock:
    deadline = time.monotonic() + patience
    while (found := _lock(handle, shared=shared)) is Lock.TAKEN and time.monotonic() < deadline:
        time.sleep(_STEP)
    return found


def _lock(handle: int | None, *, shared: bool = False) -> Lock:
    """Lock an open folder without waiting."""
    if sys.platform == "win32" or handle is None:
        return Lock.UNKNOWN
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.TAKEN
    except OSError:
        return Lock.UNKNOWN
    return Lock.HELD
