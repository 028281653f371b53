"""What a child says to the parent that watches it (watch.py), and the memory that it keeps to.

Steps of the work and runs of a model are said before they begin, so that the parent knows where its
child was lost, and for how long it has been at it. In a process that nobody watches all of this
does nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from bnfold.processes.child import RunLostError, end_with
from bnfold.processes.memory import available_memory, limit, limited

MOST_BYTES = 640 << 20
EXPANSION = 1000
"""The memory of one run: 640 MiB, and 1000 times what the model's files and its input take. A
convolution of 3 channels into 64 makes 21 times what it reads, and a network has dozens."""

MOST_TO_LOAD = 448 << 20
EXPANSION_TO_LOAD = 100
"""The memory to open a file: what a framework takes for itself, and what the file may unpack to."""

Handler = Callable[[int, Any], object]
Run = TypeVar("Run", bound=Callable[..., Any])


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


@dataclass(eq=False, slots=True)
class Channel:
    """The child's end of the pipe, and the runs in which children before it were lost."""

    pipe: int
    lost: Mapping[str, str]
    folder: Path
    parent: int
    running: bool = False
    stored: int = 0
    speaking: bool = False
    numbers: WeakKeyDictionary[Any, int] = field(default_factory=WeakKeyDictionary)
    counter: Iterator[int] = field(default_factory=count)

    def say(self, kind: str, text: str) -> None:
        """Write a line; a line break before it ends one that an interrupt has cut short."""
        line = memoryview(b"\n" + json.dumps([kind, text]).encode() + b"\n")
        self.speaking = True
        try:
            while line:
                line = line[os.write(self.pipe, line) :]
        finally:
            self.speaking = False


_channel: Channel | None = None
_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


def become(channel: Channel) -> None:
    """Be the child: end with the parent, keep to the memory there is, and leave no files."""
    global _channel
    _channel = channel
    end_with(channel.parent)
    tempfile.tempdir = os.environ["TMPDIR"] = str(channel.folder)
    limit(available_memory())
    for number in (getattr(signal, name) for name in _STOPPING):
        if callable(handler := signal.getsignal(number)):
            signal.signal(number, _announced(channel, handler))


def _announced(channel: Channel, handler: Handler) -> Handler:
    """The handler of a signal that asks to end, which says first that it clears up."""

    def handle(number: int, frame: object) -> None:
        with suppress(OSError):  # the parent has ended
            if not channel.speaking:
                channel.say("clearing", "")
        handler(number, frame)

    return handle


def _digest(sample: Mapping[str, Any]) -> str:
    """What tells one input from another."""
    found = hashlib.blake2b(digest_size=8)
    for name, array in sample.items():
        content = repr(array).encode() if array.dtype.hasobject else array.tobytes()
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(content)
    return found.hexdigest()
