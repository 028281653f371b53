"""What every command shares: progress on stderr, a clean stdout, exit codes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import click

from bnfold.cli.output import Output, leave_stdout, tell_failure
from bnfold.errors import Failure, ModelError
from bnfold.streams import stdout_to_stderr

INTERRUPTED = 130
GATE_FAILED = 1


DEFAULT_TIMEOUT = 3600.0
"""Seconds: what takes longer for one step or one run of a model does not end by itself."""


ROOM = 2.0
"""Seconds that who keeps the time has to tell of it."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """Whether the work is done in a process of its own, and how long a step or run may take."""

    apart: bool = True
    timeout: float | None = None

    def with_room(self) -> Isolation:
        """For work that keeps the time of a part of it itself."""
        return self if self.timeout is None else replace(self, timeout=self.timeout + ROOM)


class Stop:
    """A signal handler of a process that is the command's own; it clears up on the way out.

    It remembers that it was `asked`, for compiled code may turn the interrupt into its own error.
    `finish` is told the exit code.
    """

    asked = False

    def __init__(self) -> None:
        self.finish: Callable[[int], None] = lambda code: None
        self._last = -AT_ONCE

    def __call__(self, number: int, frame: object) -> None:
        before, self._last = self._last, time.monotonic()
        self.asked = True
        if self._last - before >= AT_ONCE:
            raise KeyboardInterrupt


AT_ONCE = 0.5
"""Seconds within which signals are one: a terminal sends it to a child, and its parent does too."""

_own: ContextVar[Stop | None] = ContextVar("own", default=None)
"""The handler, where this process is the command's own: its work can be done in a child of it."""


@contextmanager
def working(
    what: object = "", isolation: Isolation | None = None
) -> Iterator[Callable[[str], None]]:
    """The step and the time so far on stderr, if that is a terminal; what libraries print, too.

    With `isolation`, the work on `what` and all that comes after it are done in a child process.
    """
    told: Callable[[str], None] = lambda step: None  # noqa: E731
    own = _own.get()
    if isolation is not None and isolation.apart and own is not None:
        from bnfold.processes import supervision, watch

        told, own.finish = supervision.step, supervision.finish
        try:
            watch.supervised(str(what), isolation.timeout or DEFAULT_TIMEOUT)
        except watch.Finished as finished:
            raise click.exceptions.Exit(finished.code) from None
    try:
        with stdout_to_stderr(), _shown(told) as progress:
            yield progress
    except SystemExit as error:
        raise ModelError(f"the code of {what} ends the program", "let it return instead") from error


@contextmanager
def _shown(told: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """What tells a terminal of a step, and `told`."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield told
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as shown:
        task = shown.add_task("open", total=None)

        def progress(step: str) -> None:
            shown.update(task, description=step)
            told(step)

        yield progress


def _show_traceback() -> None:
    from rich.console import Console

    Console(stderr=True).print_exception()


def _interrupted(output: Output, error: BaseException) -> Failure:
    """What was written, and what the interrupt has to add to that; click wraps it in an Abort."""
    first = error.__cause__ if isinstance(error, click.Abort) else error
    added = str(first) if isinstance(first, KeyboardInterrupt) else ""
    return Failure(INTERRUPTED, "Interrupted", f"interrupted; {output.outcome()}", added or None)


def run_guarded(command: click.Command, stop: Stop | None = None) -> int:
    """Run a command; every way it can end becomes an exit code and at most a few lines."""
    output = Output.read(sys.argv[1:])
    _own.set(stop)
    try:
        code = command.main(standalone_mode=False, prog_name="bnfold", obj=output)
        if code and stop is not None and stop.asked:
            return INTERRUPTED
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"{context.command_path} --help lists what there is" if context else None
        failure = Failure(error.exit_code, type(error).__name__, error.format_message(), hint)
    except (click.Abort, KeyboardInterrupt) as error:
        failure = _interrupted(output, error)
    except BrokenPipeError:
        leave_stdout()
        return 0
    except Exception as error:
        if output.debug:
            _show_traceback()
        stopped = stop is not None and stop.asked
        failure = _interrupted(output, error) if stopped else Failure.of(error)
    tell_failure(output, failure)
    return failure.code
