"""Work on a model in a process that its parent watches: it may crash, hang, or take all memory.

The parent forks where the work begins, before anything of a framework has run, and waits; the child
goes on as if nothing had happened. What the child is about to do, it says on a pipe first. If it
crashes in a run of the model, the parent lets another child begin again, to which that one run is a
RunLostError; lost anywhere else, or for too long, it is a ProcessLostError to the parent. A child
never outlives its parent, and what it left in the folder for temporary files is removed.

Where there is no fork, the work is done in the process itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from itertools import count
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, NoReturn, TypeVar, cast
from weakref import WeakKeyDictionary

from bnfold.processes.child import CRASHES, ProcessLostError, RunLostError, end_with, ended
from bnfold.processes.memory import available_memory, limit, limited

MOST_LOST = 24
"""How many runs may crash before it is the model that does, on whatever it is given."""

FIRST_LOST = 4
"""How many may, where no run has come to its end."""

MOST_BYTES = 640 << 20
EXPANSION = 1000
"""The memory of one run: 640 MiB, and 1000 times what the model's files and its input take. A
convolution of 3 channels into 64 makes 21 times what it reads, and a network has dozens."""

MOST_TO_LOAD = 448 << 20
EXPANSION_TO_LOAD = 100
"""The memory to open a file: what a framework takes for itself, and what the file may unpack to."""

PATIENCE = 1.0
"""Seconds that a child has to clear up once it is asked to end."""

T = TypeVar("T")
Run = TypeVar("Run", bound=Callable[..., Any])


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
        _become(channel)
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


def _work(channel: _Channel, work: Callable[[], object]) -> NoReturn:
    """The whole life of a child that has one thing to do."""
    try:
        _become(channel)
        channel.say("result", pickle.dumps(work()).hex())
    except KeyboardInterrupt:
        channel.say("stopped", "")
    finally:
        os._exit(0)


def step(name: str) -> None:
    """Say that the work has come to `name`: the time for it begins."""
    if _channel is not None and not _channel.running:
        _channel.say("step", name)


def finish(code: int) -> None:
    """Say that the work is done, and with which exit code the process is about to end."""
    if _channel is not None:
        _channel.say("code", str(code))


@contextmanager
def running(runner: object, sample: Mapping[str, Any]) -> Iterator[None]:
    """A run of a model. Raises RunLostError if a child before this one was lost in it."""
    channel = _channel
    if channel is None or channel.running:  # a run inside of another is a part of it
        yield
        return
    if runner not in channel.numbers:  # a number is never given again: runners come and go
        channel.numbers[runner] = next(channel.counter)
    given = sum(array.nbytes for array in sample.values())
    on_device = "cuda" in str(getattr(runner, "name", ""))  # whose driver takes what it likes
    with trying(f"{channel.numbers[runner]} {_digest(sample)}", None if on_device else given):
        yield


@contextmanager
def trying(name: str, given: int | None) -> Iterator[None]:
    """A run that is called `name`, of a model on `given` bytes; None: its memory has no limit."""
    channel = _channel
    if channel is None or channel.running:
        yield
        return
    key = f"{'torch' if 'torch' in sys.modules else 'onnx'} {name}"
    if key in channel.lost:
        raise RunLostError(channel.lost[key])
    channel.say("run", key)
    channel.running = True
    try:
        with limited(None if given is None else memory_of_run(channel.stored + given)):
            yield
    finally:
        channel.running = False
        channel.say("ran", key)


def memory_of_run(given: int) -> int:
    """The bytes that a run may take: of a model whose files and inputs take `given`."""
    return MOST_BYTES + EXPANSION * given


def opened(size: int) -> None:
    """Say that a model is at hand whose files take `size` bytes: its runs may take more memory."""
    if _channel is not None:
        _channel.stored += size


def watched(run: Run) -> Run:
    """A runner's call, as a run that is watched."""

    @wraps(run)
    def call(self: object, sample: Mapping[str, Any]) -> Any:
        with running(self, sample):
            return run(self, sample)

    return cast(Run, call)


@contextmanager
def loading(size: int) -> Iterator[None]:
    """Open a file of `size` bytes: with memory for that, not for what a damaged one asks for."""
    if _channel is None or _channel.running:
        yield
        return
    with limited(MOST_TO_LOAD + EXPANSION_TO_LOAD * size):
        yield


def hold(whole: bool) -> None:
    """Say that what is done now is done as a whole: who stops this process waits for it."""
    if _channel is not None:
        _channel.say("hold", "whole" if whole else "")


def unlimited() -> None:
    """Say that from now on others keep the time."""
    if _channel is not None:
        _channel.say("unlimited", "")


def holds() -> bool:
    """Whether the child of this process, if it has one, is at what it does as a whole."""
    return _watch is not None and _watch.held


@dataclass(eq=False, slots=True)
class _Channel:
    """The child's end of the pipe, and the runs in which children before it were lost."""

    pipe: int
    lost: Mapping[str, str]
    folder: Path
    parent: int
    running: bool = False
    stored: int = 0
    numbers: WeakKeyDictionary[Any, int] = field(default_factory=WeakKeyDictionary)
    counter: Iterator[int] = field(default_factory=count)

    def say(self, kind: str, text: str) -> None:
        line = memoryview(json.dumps([kind, text]).encode() + b"\n")
        while line:
            line = line[os.write(self.pipe, line) :]


_channel: _Channel | None = None
_watch: _Watch | None = None
"""Of the child of this process, as long as there is one."""


class _Result(Exception):  # noqa: N818 (it is no error)
    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content


def _children(what: str, timeout: float | None) -> Iterator[_Channel]:
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
                yield _Channel(there, dict(lost), folder, parent)
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


def _become(channel: _Channel) -> None:
    """Be the child: end with the parent, keep to the memory there is, and leave no files."""
    global _channel
    _channel = channel
    end_with(channel.parent)
    tempfile.tempdir = os.environ["TMPDIR"] = str(channel.folder)
    limit(available_memory())


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
            kind, text = json.loads(line)
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
        """Let the child clear up, and end it if that takes long, once it holds nothing together."""
        os.kill(self._child, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while self.held or time.monotonic() < until:
            try:
                if self._look(0.05) is not None:
                    return
            except KeyboardInterrupt:  # another one, which the child may wait for
                os.kill(self._child, signal.SIGTERM)
        self._kill()

    def _kill(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)


def _digest(sample: Mapping[str, Any]) -> str:
    """What tells one input from another."""
    found = hashlib.blake2b(digest_size=8)
    for name, array in sample.items():
        content = repr(array).encode() if array.dtype.hasobject else array.tobytes()
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(content)
    return found.hexdigest()
