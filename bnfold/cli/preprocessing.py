"""The options that say what a model does to its input first."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import click

from bnfold.cli.options import gathered, listed
from bnfold.errors import UsageError
from bnfold.preprocessing import Preprocessing


def preprocessing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a Preprocessing, and passes it on as `preprocessing`; None for none."""
    return gathered(
        function,
        "preprocessing",
        _preprocessing,
        click.option(
            "--input-scale",
            metavar="V",
            help="The model multiplies its input by this first: 1/255. Folded, like the rest.",
        ),
        click.option(
            "--input-mean",
            metavar="LIST",
            help="Then subtracts this, by channel as it was trained: 0.485,0.456,0.406.",
        ),
        click.option(
            "--input-std", metavar="LIST", help="Then divides by this: 0.229,0.224,0.225."
        ),
        click.option("--bgr", is_flag=True, help="The input comes with its channels reversed."),
        click.option("--uint8", is_flag=True, help="The input comes in bytes."),
        click.option("--nhwc", is_flag=True, help="The input comes with its channels last."),
        click.option(
            "--preprocess", "image", metavar="NAME", help="Which input is meant, of several."
        ),
    )


def _preprocessing(
    input_scale: str | None,
    input_mean: str | None,
    input_std: str | None,
    bgr: bool,
    uint8: bool,
    nhwc: bool,
    image: str | None,
) -> Preprocessing | None:
    found = Preprocessing(
        scale=1.0 if input_scale is None else _number("--input-scale", input_scale),
        mean=_numbers("--input-mean", input_mean),
        std=_numbers("--input-std", input_std),
        bgr=bgr,
        uint8=uint8,
        nhwc=nhwc,
        input=image,
    )
    if found == Preprocessing(input=image):
        if image is not None:
            raise UsageError(f"nothing is to be done to {image}", "leave --preprocess out")
        return None
    return found


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    return tuple(_number(option, each) for each in listed(text or ""))


def _number(option: str, text: str) -> float:
    """A number or a fraction, such as 1/255."""
    try:
        return float(text) if "/" not in text else float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UsageError(
            f"{option}: {text[:40]!r} is no number", f"write it like {option} 0.5 or 1/255"
        ) from error
