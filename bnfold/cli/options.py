"""The options that commands share; each group becomes one argument of the command."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click

from bnfold.cli.completion import each_of, provider_names
from bnfold.cli.session import Isolation
from bnfold.errors import UsageError
from bnfold.formats.opening import Opening
from bnfold.protocol import DEFAULT_K, Policy, Protocol
from bnfold.verbs.precision import Precision

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
            help="Input shape: 1x3x224x224, Nx3x224x224 (N is free), name=2x16:int64; a "
            "value where there are no axes: rate=16000. Repeatable.",
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
            help="Which weights of a checkpoint to take, by key or prefix: ema, model.teacher.",
        ),
        click.option(
            "--allow",
            multiple=True,
            metavar="NAMES",
            help="What a pickle may import and build: pkg.mod.Class, the classes of a package or "
            "those that fit pkg.mod.*, with commas, or @FILE with a line each. Repeatable.",
        ),
        click.option(
            "--trust", is_flag=True, help="Let a file run any code and operator it names."
        ),
    )


PRECISIONS = (
    click.option("--float", "single", is_flag=True, help="Weights and inputs in float32."),
    click.option("--half", is_flag=True, help="Weights and inputs in float16."),
    click.option("--bfloat16", is_flag=True, help="Weights and inputs in bfloat16."),
)
"""Rounded once, from what the model has: the default is to leave them as they are."""


def precision_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a precision, and passes it on as `dtype`."""
    return gathered(function, "dtype", precision, *PRECISIONS)


def precision(single: bool, half: bool, bfloat16: bool) -> Precision | None:
    """The type that was asked for. Raises UsageError for several."""
    asked: dict[str, tuple[Precision, bool]] = {
        "--float": ("float32", single),
        "--half": ("float16", half),
        "--bfloat16": ("bfloat16", bfloat16),
    }
    chosen = [(option, dtype) for option, (dtype, wanted) in asked.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(f"{chosen[0][0]} and {chosen[1][0]} contradict each other", "choose one")
    return chosen[0][1] if chosen else None


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


def isolation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of an Isolation, and passes it on as `isolation`."""
    return gathered(
        function,
        "isolation",
        _isolation,
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="How long one step, or one run of a model, may take. Default: an hour.",
        ),
        click.option(
            "--no-isolation",
            is_flag=True,
            help="Work in this process: a model that crashes takes the command with it.",
        ),
    )


listing_option = click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Tell of every affine in full, and what assert_close would have said.",
)


outputs_option = click.option(
    "--outputs", metavar="LIST", help="Of an ONNX model, the outputs that stay, with commas."
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


def _isolation(timeout: float | None, no_isolation: bool) -> Isolation:
    if no_isolation and timeout is not None:
        raise UsageError(
            "--timeout cannot be kept without a process of its own", "leave --no-isolation out"
        )
    return Isolation(not no_isolation, timeout)


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
