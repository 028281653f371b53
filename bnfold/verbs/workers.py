"""Processes that work side by side, end with their parent, however it ends, and can be stopped.

Each worker waits in a thread for the end of a pipe that the parent holds open. The end comes when
the parent closes it, or is no more. What the worker is doing is interrupted then, but for what
`uninterrupted` holds together; after GRACE the process ends by itself, and where even that is held
up by compiled code, the parent kills it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

from bnfold.processes.supervision import hold
from bnfold.processes.watch import holds

GRACE = 5.0
"""Seconds that a worker has to stop by itself."""

STOPPED = 130
"""The exit code of a worker that did not."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class StoppedError(Exception):
    """The work was interrupted, or not begun any more."""


@dataclass(slots=True)
class _Stop:
    """A signal handler: it interrupts the work, or waits for the end of what must be whole."""

    asked: bool = False
    working: bool = False
    held: bool = False

    def __call__(self, number: int, frame: object) -> None:
        self.asked = True
        if self.working and not self.held:
            raise KeyboardInterrupt


_STOP = _Stop()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """In a worker, what is done here is done as a whole, or not at all."""
    _STOP.held = True
    hold(True)
    try:
        if _STOP.asked:  # and the interrupt was lost in a library
            raise KeyboardInterrupt
        yield
    finally:
        _STOP.held = False
        hold(False)


@contextmanager
def workers(jobs: int) -> Iterator[Executor]:
    """An executor on processes. Where the work ends early, by an interrupt, they have ended too."""
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    others = set(active_children())
    executor = ProcessPoolExecutor(jobs, context, _begin, (threads, theirs))
    hold(True)
    try:
        yield executor
    except BaseException:
        ours.close()
        _end(executor, others)
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()
        hold(False)


def work(do: Callable[[Argument], Result], argument: Argument) -> Result:
    """What a worker is given to do. Raises StoppedError."""
    _STOP.working = True
    try:
        if _STOP.asked:
            raise StoppedError
        return do(argument)
    except KeyboardInterrupt as error:
        raise StoppedError from error
    finally:
        _STOP.working = False


def _end(executor: Executor, others: set[BaseProcess]) -> None:
    """Wait until the processes of `executor` have stopped; a second interrupt kills them."""
    executor.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + 2 * GRACE
    try:
        while (left := set(active_children()) - others) and time.monotonic() < deadline:
            time.sleep(0.02)
    except KeyboardInterrupt:
        left = set(active_children()) - others
    for process in left:
        process.kill()


def _begin(threads: int, theirs: Connection) -> None:
    """A worker keeps to its share of the cores, and leaves stdout and interrupts to its parent."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.dup2(2, 1)
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _STOP)
    threading.Thread(target=_watch, args=(theirs,), daemon=True).start()


def _watch(theirs: Connection) -> None:
    with suppress(EOFError, OSError):
        theirs.recv()
    if hasattr(signal, "pthread_kill"):  # which wakes the main thread where it waits
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        signal.raise_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while _STOP.held or holds() or (_STOP.working and time.monotonic() < deadline):
        time.sleep(0.02)
    os._exit(STOPPED)
