"""An object served by a process of its own: whatever happens to it, the caller lives to tell.

Parent and child speak in pickles over the child's stdin and stdout; what libraries print in the
child goes to stderr. A crash, an exit, a kill and a time-out all raise ProcessLostError, then and
at every further request. A child that is at work ends with its parent, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Event, Timer, current_thread, main_thread
from typing import Any, BinaryIO

from bnfold.errors import BnfoldError, ModelError

_SERVE = "import sys; from bnfold.processes.child import serve; serve(*sys.argv[1:])"

EXPENDABLE = 500
"""Linux, out of memory, kills the process with the highest score: the child before the parent."""

CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGFPE", "SIGSEGV", "SIGBUS", "SIGILL", "SIGABRT")
    if hasattr(signal, name)
)
"""Signals with which compiled code ends a process for what one input made it do."""

_PARENT_DEATH = 1
"""The option of Linux's prctl that names the signal for a child whose parent has ended."""


class ProcessLostError(ModelError):
    """A model took the process that ran it with it, or did not answer in time."""


class RunLostError(ModelError):
    """A run on one input took its process with it; the model runs again on the next."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """What the served object raised; `kind` is None for what is no BnfoldError."""

    kind: type[BnfoldError] | None
    message: str
    hint: str | None


class Process:
    """The parent's side of an object of the class `served`, which is importable by its name.

    `what` names the model in sentences, `environment` is added to this process's own, and an
    answer may take `timeout` seconds; None: any time.
    """

    def __init__(
        self,
        served: type,
        what: str,
        environment: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> None:
        self._what = what
        self._timeout = timeout
        self._lost: ProcessLostError | None = None
        # Linux ends a child with the thread that made it, which may be done before the child is
        parent = os.getpid() if current_thread() is main_thread() else 0
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        self._child = Popen(
            [sys.executable, "-c", _SERVE, served.__module__, served.__qualname__, str(parent)],
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, **(environment or {}), "PYTHONPATH": paths},
            start_new_session=True,  # an interrupt is for the parent, which ends the child
        )
        self.close = weakref.finalize(self, _end, self._child)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the served object's `method` returns; what it raises, as a BnfoldError."""
        if self._lost is not None:
            raise self._lost
        overdue = Event()
        timer = Timer(self._timeout or 0.0, self._give_up, [overdue])
        if self._timeout is not None:
            timer.start()
        try:
            answer = self._exchange(method, arguments)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            self._lost = self._told(overdue.is_set())
            raise self._lost from error
        finally:
            timer.cancel()
        if isinstance(answer, _Failure):
            if answer.kind is None:
                raise ModelError(f"{self._what} does not run: {answer.message}")
            raise answer.kind(answer.message, answer.hint)
        return answer

    def _exchange(self, method: str, arguments: tuple[Any, ...]) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        pickle.dump((method, arguments), self._child.stdin)
        self._child.stdin.flush()
        return pickle.load(self._child.stdout)

    def _give_up(self, overdue: Event) -> None:
        overdue.set()
        self._child.kill()

    def _told(self, overdue: bool) -> ProcessLostError:
        self._child.kill()
        code = self._child.wait()
        if overdue:
            why = f"{self._what} did not answer within {self._timeout:g} s"
            return ProcessLostError(why, "give it more time with --timeout")
        hint = "it may have run out of memory" if code == -signal.SIGKILL else None
        return ProcessLostError(f"the process that runs {self._what} {ended(code)}", hint)

    @property
    def crashed(self) -> bool:
        """Whether the child ended by a signal with which compiled code ends a process."""
        return self._lost is not None and -(self._child.poll() or 0) in CRASHES


def ended(code: int) -> str:
    """How a process ended, by its exit code; that of a signal is negative."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"ended by signal {-code}"


def _end(child: Popen[bytes]) -> None:
    child.kill()
    with suppress(OSError):  # a pipe to a process that is gone cannot be flushed
        child.communicate()


def end_with(parent: int) -> None:
    """Let this process end when `parent` has ended (0: not), and before it if memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(EXPENDABLE))
    if sys.platform == "linux" and parent:
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it could be told
            os._exit(1)


def serve(module: str, name: str, parent: str) -> None:
    """The child's side: make the object and answer requests until stdin ends."""
    requests, answers = sys.stdin.buffer, _own_stdout()
    end_with(parent=int(parent))
    served = getattr(import_module(module), name)()
    while True:
        try:
            method, arguments = pickle.load(requests)
        except (EOFError, KeyboardInterrupt):
            return
        pickle.dump(_answer(served, method, arguments), answers)
        answers.flush()


def _answer(served: object, method: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return getattr(served, method)(*arguments)
    except BnfoldError as error:
        return _Failure(type(error), str(error), error.hint)
    except Exception as error:  # whatever a runtime raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return _Failure(None, lines[-1], None)


def _own_stdout() -> BinaryIO:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers
