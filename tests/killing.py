"""A process that is killed at a chosen moment of its work with files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest

ACCESSES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir"}

NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")


def run_and_kill(steps: int, work: Callable[[], None]) -> bool:
    """Whether `work`, in a process that dies before its n-th access to files, came to its end."""
    child = os.fork()
    if child == 0:
        left = steps

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in ACCESSES:
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(count)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
