"""Where what is printed goes, also by code that is not Python."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send Python's stdout, and file descriptor 1 for other code, to stderr meanwhile."""
    with _pointed(1, 2), redirect_stdout(sys.stderr):
        yield


@contextmanager
def without_stdout() -> Iterator[None]:
    """Drop what is printed on file descriptor 1 meanwhile."""
    with _dropped(1):
        yield


@contextmanager
def silent() -> Iterator[None]:
    """Drop what is printed on file descriptors 1 and 2 meanwhile: what a library says of a model
    that it stumbles over, as whole tracebacks, is no message to a person."""
    with _dropped(1), _dropped(2):
        yield


@contextmanager
def _dropped(descriptor: int) -> Iterator[None]:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with _pointed(descriptor, nowhere):
            yield
    finally:
        os.close(nowhere)


@contextmanager
def _pointed(descriptor: int, handle: int) -> Iterator[None]:
    _flush()
    try:
        saved = os.dup(descriptor)
    except OSError:  # it is closed: nothing to protect
        yield
        return
    try:
        os.dup2(handle, descriptor)
        yield
    finally:
        _flush()
        os.dup2(saved, descriptor)
        os.close(saved)


def _flush() -> None:
    """Write out what Python and the C library hold back of stdout."""
    if sys.stdout is not None:  # it was closed before the program began
        sys.stdout.flush()
    with suppress(OSError, TypeError, AttributeError):  # not every system has one C library
        ctypes.CDLL(None).fflush(None)
