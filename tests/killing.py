"""A process that is killed, or pauses, at a chosen moment of its work with files."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

import pytest

ACCESSES = {
    *("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.chmod"),
    "fcntl.flock",
}

NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")


def run_and_kill(steps: int, work: Callable[[], None]) -> bool:
    """Whether `work`, in a process that dies before its n-th access to files, came to its end."""
    return _ended(_started(steps, work, lambda: os._exit(9)))


def run_and_pause(steps: int, work: Callable[[], None], meanwhile: Callable[[], None]) -> bool:
    """Do `meanwhile` while another process pauses before the n-th access to files of `work`.

    Whether it paused: in the end there is no n-th access.
    """
    child = _started(steps, work, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        assert os.waitstatus_to_exitcode(status) == 0
        return False
    try:
        meanwhile()
    finally:
        os.kill(child, signal.SIGCONT)
    assert _ended(child)
    return True


def _started(steps: int, work: Callable[[], None], stop: Callable[[], None]) -> int:
    """A process that does `work`, and `stop` before its n-th access to files."""
    child = os.fork()
    if child == 0:
        left = steps

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in ACCESSES:
                left -= 1
                if left == -1:
                    stop()

        sys.addaudithook(count)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def _ended(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
