"""Where a result goes: one rendering to stdout and any number of files, errors included."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.errors import BnfoldError, ExportError, Failure, UsageError
from bnfold.files import stamp
from bnfold.report.rendering import (
    REPORTS,
    STYLES,
    SUFFIXES,
    check_report,
    render_document,
    write_report,
)

if TYPE_CHECKING:
    from bnfold.report.document import Document

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable in which GitHub Actions names the file that a step's summary is appended to."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the options below say, for the `command` that they were given to.

    `results` are the files that it is to write, with how each was before.
    """

    command: str
    style: str
    reports: tuple[Path, ...]
    debug: bool
    arguments: tuple[str, ...] = ()
    results: dict[Path, Any] = field(default_factory=dict)

    def outcome(self) -> str:
        """What was written so far, as a look at the files themselves tells."""
        written = [str(path) for path, before in self.results.items() if stamp(path) != before]
        missing = [str(path) for path in self.results if str(path) not in written]
        if not written:
            return "nothing was written"
        said = f"written: {', '.join(written)}"
        return f"{said}; not written: {', '.join(missing)}" if missing else said

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Output:
        """From a command line of which the rest may be wrong, so that its errors are told right."""
        settings = {"ignore_unknown_options": True, "allow_extra_args": True}
        reader = click.Command(
            "bnfold", params=_options(), context_settings=settings, add_help_option=False
        )
        with reader.make_context("bnfold", list(arguments), resilient_parsing=True) as context:
            given, rest = context.params, context.args
        reports = tuple(path for path in given["reports"] or () if path.suffix in REPORTS)
        command, style = rest[0] if rest else "", given["style"] or "text"
        return cls(command, style, reports, given["debug"], tuple(arguments))


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of an Output, which `tell` finds in the context."""
    options = _options()
    for option in options:
        option.expose_value = False
    before = getattr(function, "__click_params__", ())
    function.__click_params__ = [*reversed(options), *before]  # type: ignore[attr-defined]
    return function


def _options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--format", "style"],
            type=click.Choice(STYLES),
            default="text",
            show_default=True,
            help="What goes to stdout, errors included.",
        ),
        click.Option(
            ["--report", "reports"],
            multiple=True,
            type=click.Path(dir_okay=False, path_type=Path),
            callback=_check_reports,
            help=f"Also write the report to a file: {', '.join(REPORTS)}. Repeatable.",
        ),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
    ]


def _check_reports(
    context: click.Context, option: click.Parameter, paths: tuple[Path, ...]
) -> tuple[Path, ...]:
    if not context.resilient_parsing:
        for path in paths:
            check_report(path)
    return paths


def announce(*results: Path) -> None:
    """Say, before any work is done, what will be written, so that an interrupt can tell what was.

    Raises UsageError if a report would replace one of them.
    """
    output = click.get_current_context().find_object(Output)
    assert output is not None
    for result in results:
        reports = (os.path.realpath(path) for path in output.reports)
        if os.path.realpath(result) in reports:
            raise UsageError(f"--report {result} is the result itself", "choose another name")
        output.results[result] = stamp(result)


def tell(document: Document, *, everything: bool = False) -> None:
    """Write the document to every file asked for, then to stdout."""
    output = click.get_current_context().find_object(Output)
    assert output is not None
    command = ("bnfold", *output.arguments)
    document = replace(document, command=command, everything=everything)
    for path in output.reports:
        write_report(document, path)
    if output.style == "github":
        _append_summary(document)
    with reader_may_leave():
        if output.style == "text":
            from bnfold.cli.terminal import show

            show(document)
        else:
            click.echo(render_document(document, output.style))


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """The verdict is the same if nobody reads its report to the end, as with `| head`.

    Raises ExportError where stdout takes no more of it for another reason.
    """
    try:
        yield
    except BrokenPipeError:
        leave_stdout()
    except OSError as error:
        leave_stdout()
        why = f"the report cannot be written to stdout: {error.strerror or error}"
        raise ExportError(why, "the result is what the files say: --report") from error


def leave_stdout() -> None:
    """Let what is still to be printed go nowhere, also when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def tell_failure(output: Output, failure: Failure) -> None:
    """Say on stderr what went wrong, and in the chosen format and files what there is to tell."""
    from bnfold.report.document import failed, visible

    red, bold = click.style("error:", fg="red", bold=True), click.style("hint:", bold=True)
    with suppress(OSError):  # whoever gave no room for the sentence has the exit code
        click.echo(f"{red} {visible(failure.message)}", err=True)
        if failure.hint:
            click.echo(f"{bold} {visible(failure.hint)}", err=True)
    document = failed(f"bnfold {output.command}".strip(), failure)
    for path in (path for path in output.reports if path.suffix in SUFFIXES):
        # the failure matters more than where it could not be written
        with suppress(BnfoldError, ImportError):
            write_report(document, path)
    if output.style == "github":
        with suppress(BnfoldError):
            _append_summary(document)
    if output.style != "text":
        with suppress(ExportError), reader_may_leave():
            click.echo(render_document(document, output.style))


def _append_summary(document: Document) -> None:
    """Add the document to the summary of a step of GitHub Actions, if this is one."""
    place = os.environ.get(SUMMARY)
    if not place:
        return
    try:
        with open(place, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(render_document(document, "markdown") + "\n\n")
    except OSError as error:
        raise BnfoldError(f"{SUMMARY} {place} cannot be written: {error.strerror}") from error
