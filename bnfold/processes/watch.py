"""Work on a model in a process that its parent watches: it may crash, hang, or take all memory.

The parent forks where the work begins, before anything of a framework has run, and waits; the child
goes on as if nothing had happened. What the child is about to do, it says on a pipe first
(supervision.py). If it crashes in a run of the model, the parent lets another child begin again, to
which that one run is a RunLostError; lost anywhere else, or for too long, it is a ProcessLostError
to the parent. A child never outlives its parent, and what it left in the folder for temporary files
is removed.

Where there is no fork, the work is done in the process itself.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import current_thread, main_thread
from typing import NoReturn, TypeVar

from bnfold.processes.child import CRASHES, ProcessLostError, ended
from bnfold.processes.supervision import Channel, become

MOST_LOST = 24
"""How many runs may crash before it is the model that does, on whatever it is given."""

FIRST_LOST = 4
"""How many may, where no run has come to its end."""

PATIENCE = 1.0
"""Seconds in which a child that is asked to end must say that it is clearing up."""

CLEARING = 5.0
"""Seconds that it then has for that."""

_LOOK = 0.05

T = TypeVar("T")


class Finished(Exception):  # noqa: N818 (it is no error)
    """The child did all the work; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def supervised(what: str, timeout: float | None = None) -> None:
    """Go on in a child, with `timeout` seconds for each step and run of a model; None: any time.

    Returns in the child alone, which says `finish` at its end. The parent raises Finished then, or
    ProcessLostError if the child was lost; `what` names its work in the sentence.
    """
    for channel in _children(what, timeout):
        become(channel)
        return


def apart(work: Callable[[], T], what: str, timeout: float | None = None) -> T:
    """What `work` returns, done in a child; it may raise nothing but an interrupt, which is then
    this process's own. Raises ProcessLostError."""
    if not hasattr(os, "fork") or current_thread() is not main_thread():
        return work()  # among threads a fork is no copy that works
    try:
        for channel in _children(what, timeout):
            _work(channel, work)
    except _Result as found:
        made: T = pickle.loads(found.content)
        return made
    raise AssertionError("a child neither ended nor was lost")


def _work(channel: Channel, work: Callable[[], object]) -> NoReturn:
    """The whole life of a child that has one thing to do."""
    try:
        become(channel)
        channel.say("result", pickle.dumps(work()).hex())
    except KeyboardInterrupt:
        channel.say("stopped", "")
    finally:
        os._exit(0)


def holds() -> bool:
    """Whether the child of this process, if it has one, is at what it does as a whole."""
    return _watch is not None and _watch.held


_watch: _Watch | None = None
"""Of the child of this process, as long as there is one."""


class _Result(Exception):  # noqa: N818 (it is no error)
    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content


def _children(what: str, timeout: float | None) -> Iterator[Channel]:
    """In each child, its channel; in the parent nothing is yielded, and something raised."""
    global _watch
    if not hasattr(os, "fork"):
        return
    lost: dict[str, str] = {}
    came_through = False
    parent, folder = os.getpid(), Path(tempfile.mkdtemp(prefix="bnfold-"))
    try:
        while True:
            here, there = os.pipe()
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            child = os.fork()
            if child == 0:
                os.close(here)
                yield Channel(there, dict(lost), folder, parent)
                return
            os.close(there)
            with os.fdopen(here, "rb", buffering=0) as pipe:
                _watch = _Watch(child, pipe.fileno(), what, timeout)
                key, why = _watch.until_lost()
            came_through |= _watch.came_through
            if key in lost or len(lost) >= (MOST_LOST if came_through else FIRST_LOST):
                raise ProcessLostError(f"{what}: {why}, again and again")
            lost[key] = why
            if key.startswith("torch"):
                import_module("torch")  # once, rather than by every child to come
    finally:
        _watch = None
        if os.getpid() == parent:
            shutil.rmtree(folder, ignore_errors=True)


class _Watch:
    """Waits for a child, and reads what it says."""

    def __init__(self, child: int, pipe: int, what: str, timeout: float | None) -> None:
        self._child = child
        self._pipe = pipe
        self._what = what
        self._timeout = timeout
        self._step = ""
        self._run: str | None = None
        self._code: int | None = None
        self._stopped = False
        self.came_through = False
        self.held = False
        self._clearing = False
        self._result: bytes | None = None
        self._heard = time.monotonic()
        self._rest = b""
        os.set_blocking(pipe, False)

    def until_lost(self) -> tuple[str, str]:
        """The run in which the child crashed, and how. Raises whatever else it comes to."""
        try:
            while (status := self._look(0.5)) is None:
                self._require_time()
        except KeyboardInterrupt:
            self._stop()
            if self._code is None and self._result is None:
                raise
            status = 0
        if self._result is not None:
            raise _Result(self._result)
        if self._stopped:
            raise KeyboardInterrupt
        if self._code is not None:
            raise Finished(self._code)
        if self._run is not None and -status in CRASHES:
            return self._run, f"its process {ended(status)}"
        during = f" at {self._step!r}" if self._step else ""
        hint = "it may have run out of memory" if status == -signal.SIGKILL else None
        raise ProcessLostError(f"{self._what}: its process {ended(status)}{during}", hint)

    def _look(self, wait: float) -> int | None:
        """Hear what the child says; its exit status once it is gone."""
        select.select([self._pipe], [], [], wait)
        found, status = os.waitpid(self._child, os.WNOHANG)
        with suppress(BlockingIOError):
            while data := os.read(self._pipe, 1 << 16):
                self._read(data)
            if not found:  # it said all it will
                time.sleep(0.01)
        return os.waitstatus_to_exitcode(status) if found else None

    def _read(self, data: bytes) -> None:
        self._heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                kind, text = json.loads(line)
            except ValueError:  # nothing, or what an interrupt cut short
                continue
            match kind:
                case "step":
                    self._step = text
                case "run" | "ran":
                    self._run = text if kind == "run" else None
                    self.came_through |= kind == "ran"
                case "code":
                    self._code = int(text)
                case "hold":
                    self.held = bool(text)
                case "clearing":
                    self._clearing = True
                case "stopped":
                    self._stopped = True
                case "unlimited":
                    self._timeout = None
                case "result":
                    self._result = bytes.fromhex(text)

    def _require_time(self) -> None:
        """End the child and raise ProcessLostError if it takes too long for what it is at."""
        if self._timeout is None or self._code is not None:
            return
        if time.monotonic() < self._heard + self._timeout:
            return
        self._kill()
        at = f" past {self._step!r}" if self._step else ""
        raise ProcessLostError(
            f"{self._what} did not get{at or ' anywhere'} within {self._timeout:g} s",
            "give it more time with --timeout",
        )

    def _stop(self) -> None:
        """Let the child clear up, and end it if that takes long, once it holds nothing together.

        What counts is time in which this process got to look: where it did not, on a machine that
        has too much to do, the child got to do nothing either.
        """
        os.kill(self._child, signal.SIGTERM)
        waited = 0.0
        while self.held or waited < (CLEARING if self._clearing else PATIENCE):
            start = time.monotonic()
            try:
                if self._look(_LOOK) is not None:
                    return
            except KeyboardInterrupt:  # another one, which the child may wait for
                os.kill(self._child, signal.SIGTERM)
            waited += min(time.monotonic() - start, _LOOK)
        self._kill()

    def _kill(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
