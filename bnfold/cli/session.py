"""What every command shares: progress on stderr, a clean stdout, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from bnfold.cli.telling import Telling, leave_stdout, tell_failure
from bnfold.errors import Failure
from bnfold.streams import stdout_to_stderr

INTERRUPTED = 130
GATE_FAILED = 1


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """The step and the time so far on stderr, if that is a terminal; what libraries print, too."""
    from rich.console import Console

    console = Console(stderr=True)
    with stdout_to_stderr():
        if not console.is_terminal:
            yield lambda step: None
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False)
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as shown:
            task = shown.add_task("open", total=None)
            yield lambda step: shown.update(task, description=step)


def _show_traceback() -> None:
    from rich.console import Console

    Console(stderr=True).print_exception()


class Stop:
    """A signal handler: what is half done is cleared away on the way out.

    It remembers that it was `asked`, for compiled code may turn the interrupt into its own error.
    """

    asked = False

    def __call__(self, number: int, frame: object) -> None:
        self.asked = True
        raise KeyboardInterrupt


def _interrupted(telling: Telling, error: BaseException) -> Failure:
    """What was written, and what the interrupt has to add to that; click wraps it in an Abort."""
    first = error.__cause__ if isinstance(error, click.Abort) else error
    added = str(first) if isinstance(first, KeyboardInterrupt) else ""
    return Failure(INTERRUPTED, "Interrupted", f"interrupted; {telling.outcome()}", added or None)


def run_guarded(command: click.Command, stop: Stop | None = None) -> int:
    """Run a command; every way it can end becomes an exit code and at most a few lines."""
    telling = Telling.read(sys.argv[1:])
    try:
        code = command.main(standalone_mode=False, prog_name="bnfold", obj=telling)
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
        failure = _interrupted(telling, error)
    except BrokenPipeError:
        leave_stdout()
        return 0
    except Exception as error:
        if telling.debug:
            _show_traceback()
        stopped = stop is not None and stop.asked
        failure = _interrupted(telling, error) if stopped else Failure.of(error)
    tell_failure(telling, failure)
    return failure.code
