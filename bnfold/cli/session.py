"""What every command shares: options, progress on stderr, a clean stdout, exit codes."""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console

from bnfold.cli.completion import each_of, provider_names
from bnfold.cli.telling import Telling, tell_failure
from bnfold.errors import UsageError
from bnfold.formats.opening import Opening
from bnfold.protocol import DEFAULT_K, Policy, Protocol
from bnfold.report.document import Failure

INTERRUPTED = 130
GATE_FAILED = 1

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """How to open a model and what to feed it."""

    inputs: list[str]
    opening: Opening


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a Source, and passes it on as `source`."""
    return gathered(
        function,
        "source",
        _source,
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="SPEC",
            help="Input shape: 1x3x224x224, Nx3x224x224 (N is free), name=2x16:int64. Repeatable.",
        ),
        click.option(
            "--model",
            "factory",
            metavar="PKG.MOD:NAME",
            help="The class or function that builds the network of a weights-only file.",
        ),
        click.option(
            "--model-args", metavar="JSON", help="Arguments of --model, a JSON list or object."
        ),
        click.option(
            "--weights",
            metavar="KEY",
            help="Which weights of a checkpoint to take, if it holds several: ema, model.teacher.",
        ),
        click.option(
            "--allow",
            multiple=True,
            metavar="PKG.MOD.CLASS",
            help="A class that a pickled module may import and build. Repeatable.",
        ),
        click.option("--trust", is_flag=True, help="Let a pickled file run any code it names."),
    )


def judging_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a Protocol, and passes it on as `protocol`."""
    return gathered(
        function,
        "protocol",
        _protocol,
        click.option(
            "--policy",
            type=click.Choice(get_args(Policy)),
            default="floor",
            show_default=True,
            help="Judge by measured floors, like torch.testing.assert_close, or by tolerances.",
        ),
        click.option(
            "--k",
            type=click.FloatRange(min=0, min_open=True),
            show_default=f"{DEFAULT_K:g}",
            help="How many noise floors the error may be.",
        ),
        click.option(
            "--rtol",
            "rtols",
            multiple=True,
            metavar="[NAME:]V",
            help="Relative tolerance for --policy fixed, of one output or of all. Repeatable.",
        ),
        click.option(
            "--atol",
            "atols",
            multiple=True,
            metavar="[NAME:]V",
            help="Absolute tolerance for --policy fixed, of one output or of all. Repeatable.",
        ),
        click.option(
            "--seed",
            "seeds",
            type=click.IntRange(min=0),
            multiple=True,
            default=(0,),
            show_default="0",
            help="Of the probe inputs. Repeatable: each adds a set of probes.",
        ),
        click.option(
            "--inputs",
            "recorded",
            multiple=True,
            metavar="PATH",
            type=click.Path(exists=True, path_type=Path),
            help="Compare on this .npy, .npz or image too, or on a folder of them. Repeatable.",
        ),
        click.option(
            "--shape",
            "shapes",
            multiple=True,
            metavar="NAME=LIST",
            help="Values of a free size to compare with: N=1,2,7. Repeatable: all combinations.",
        ),
        click.option(
            "--providers",
            metavar="LIST",
            shell_complete=each_of(provider_names),
            help="Where to verify: cpu, cuda, tensorrt, ..., with commas. Default: cpu, and cuda "
            "if it loads.",
        ),
        click.option(
            "--provider-option",
            "options",
            multiple=True,
            metavar="NAME:KEY=VALUE",
            help="An option of ONNX Runtime for a provider: cuda:device_id=1. Repeatable.",
        ),
    )


listing_option = click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Tell of every affine in full, also where many are alike.",
)


def gathered(
    function: Callable[..., Any], name: str, make: Callable[..., Any], *options: Decorator
) -> Callable[..., Any]:
    """`function` with `options`, whose values it gets as one argument called `name`."""
    taken = list(inspect.signature(make).parameters)

    @wraps(function)
    def called(**values: Any) -> Any:
        made = make(**{key: values.pop(key) for key in taken})
        return function(**values, **{name: made})

    wrapped: Callable[..., Any] = called
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _source(
    inputs: Sequence[str],
    factory: str | None,
    model_args: str | None,
    weights: str | None,
    allow: Sequence[str],
    trust: bool,
) -> Source:
    if model_args is not None and factory is None:
        raise UsageError(
            "--model-args are for --model, which is missing", "add --model PKG.MOD:NAME"
        )
    try:
        arguments = None if model_args is None else json.loads(model_args)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--model-args is no JSON: {error}", "write it like '{\"depth\": 18}' or '[18]'"
        ) from error
    if not isinstance(arguments, dict | list | None):
        raise UsageError("--model-args must be a JSON list or object")
    return Source(list(inputs), Opening(factory, arguments, tuple(allow), trust, weights))


def _protocol(
    policy: Policy,
    k: float | None,
    rtols: Sequence[str],
    atols: Sequence[str],
    seeds: Sequence[int],
    recorded: Sequence[Path],
    shapes: Sequence[str],
    providers: str | None,
    options: Sequence[str],
) -> Protocol:
    if k is not None and policy != "floor":
        raise UsageError(f"--k is for the policy floor, not for {policy}", "leave --k out")
    return Protocol(
        policy=policy,
        k=DEFAULT_K if k is None else k,
        rtol=dict(_tolerance("--rtol", text) for text in rtols),
        atol=dict(_tolerance("--atol", text) for text in atols),
        seeds=tuple(seeds),
        recorded=tuple(recorded),
        shapes=_sizes(shapes),
        providers=None if providers is None else listed(providers),
        options=_options(options),
    )


def _options(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Provider -> the options that are given for it."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        provider, _, pair = text.partition(":")
        key, _, value = pair.partition("=")
        if not provider or not key or not value:
            raise UsageError(
                f"--provider-option {text} names no option of a provider",
                "write it like --provider-option cuda:device_id=1",
            )
        found.setdefault(provider, {})[key] = value
    return found


def _sizes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The values of every free size that is named."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        sizes = listed(values)
        if not name or not sizes or not all(size.isdecimal() for size in sizes) or name in found:
            twice = f"{name} is given twice" if name in found else "it names no sizes"
            raise UsageError(f"--shape {text}: {twice}", "write it like --shape N=1,2,7")
        found[name] = tuple(map(int, sizes))
    return found


def _tolerance(option: str, text: str) -> tuple[str, float]:
    """The output that a tolerance is for, "" for all of them, and its value."""
    output, _, value = text.rpartition(":")
    try:
        return output, float(value)
    except ValueError as error:
        raise UsageError(
            f"{option} {text}: {value!r} is no number", f"write it like {option} 1e-4 or NAME:1e-4"
        ) from error


def listed(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


@contextmanager
def working() -> Iterator[Callable[[str], None]]:
    """The step and the time so far on stderr, if that is a terminal; what libraries print, too."""
    console = Console(stderr=True)
    with _stdout_to_stderr():
        if not console.is_terminal:
            yield lambda step: None
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False)
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as shown:
            task = shown.add_task("open", total=None)
            yield lambda step: shown.update(task, description=step)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send Python's stdout, and file descriptor 1 for other code, to stderr meanwhile."""
    _flush()
    try:
        saved = os.dup(1)
    except OSError:  # stdout is closed: nothing to protect
        yield
        return
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        os.dup2(saved, 1)
        os.close(saved)


def _flush() -> None:
    """Write out what Python and the C library hold back of stdout."""
    if sys.stdout is not None:  # it was closed before the program began
        sys.stdout.flush()
    with suppress(OSError, TypeError, AttributeError):  # not every system has one C library
        ctypes.CDLL(None).fflush(None)


class Stop:
    """A signal handler: what is half done is cleared away on the way out.

    It remembers that it was `asked`, for compiled code may turn the interrupt into its own error.
    """

    asked = False

    def __call__(self, number: int, frame: object) -> None:
        self.asked = True
        raise KeyboardInterrupt


_INTERRUPTED = Failure(INTERRUPTED, "Interrupted", "interrupted; nothing was written")


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
    except (click.Abort, KeyboardInterrupt):
        failure = _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        if telling.debug:
            Console(stderr=True).print_exception()
        failure = _INTERRUPTED if stop is not None and stop.asked else Failure.of(error)
    tell_failure(telling, failure)
    return failure.code
