"""An object for a process of its own, in a module that is quick to import."""

from __future__ import annotations

import ctypes
import os
import time

from bnfold.errors import UsageError


class Object:
    """Does what a runtime may do to its process."""

    def add(self, one: int, two: int) -> int:
        return one + two

    def talk(self) -> str:
        os.write(1, b"to nobody\n")
        print("to nobody")  # noqa: T201
        return "done"

    def refuse(self) -> None:
        raise UsageError("not like this", "like that")

    def fail(self) -> None:
        raise ValueError("first\nlast")

    def end(self, code: int) -> None:
        os._exit(code)

    def crash(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def read_nowhere(self) -> None:
        ctypes.string_at(0)

    def hang(self) -> None:
        time.sleep(600)
