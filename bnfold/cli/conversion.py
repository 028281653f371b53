"""The options that say how a model is converted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from bnfold.cli.options import PRECISIONS, gathered, listed, precision
from bnfold.errors import UsageError
from bnfold.verbs.targets import OLDEST_IR, OLDEST_OPSET, Conversion


def conversion_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a Conversion, and passes it on as `how`."""
    return gathered(
        function,
        "how",
        _conversion,
        click.option(
            "--opset",
            type=click.IntRange(min=OLDEST_OPSET),
            help="Of ONNX. Default: 20, or an ONNX file's own.",
        ),
        click.option(
            "--ir-version",
            metavar="N|auto",
            default="auto",
            show_default=True,
            help="Of the ONNX file; auto: what the exporter chooses.",
        ),
        click.option(
            "--dynamic",
            multiple=True,
            metavar="AXES",
            help="Axes that stay free: N,H,W by layout, or input:0=batch. Repeatable.",
        ),
        click.option("--input-names", metavar="LIST", help="Of the ONNX model, with commas."),
        click.option("--output-names", metavar="LIST", help="Of the ONNX model, with commas."),
        *PRECISIONS,
        click.option("--no-simplify", is_flag=True, help="Leave onnxsim out."),
        click.option(
            "--keep-going", is_flag=True, help="Where onnxsim fails, go on with what it was given."
        ),
        click.option(
            "--external-data",
            is_flag=True,
            help="Write the weights of ONNX to a file of their own.",
        ),
        click.option(
            "--meta",
            multiple=True,
            metavar="KEY=VALUE",
            help="What the metadata of the ONNX file say besides. Repeatable.",
        ),
    )


def _conversion(
    opset: int | None,
    ir_version: str,
    dynamic: tuple[str, ...],
    input_names: str | None,
    output_names: str | None,
    single: bool,
    half: bool,
    bfloat16: bool,
    no_simplify: bool,
    keep_going: bool,
    external_data: bool,
    meta: tuple[str, ...],
) -> Conversion:
    if wrong := [text for text in meta if "=" not in text]:
        raise UsageError(f"--meta {wrong[0]} has no value", "write it like --meta stride=32")
    if ir_version != "auto" and not ir_version.isdecimal():
        raise UsageError(f"--ir-version {ir_version} is no number", "give a number, or auto")
    if ir_version.isdecimal() and int(ir_version) < OLDEST_IR:
        why = f"--ir-version {ir_version}: before {OLDEST_IR} every weight is an input"
        raise UsageError(why, f"give {OLDEST_IR} or more, or auto")
    return Conversion(
        opset=opset,
        ir_version=None if ir_version == "auto" else int(ir_version),
        dynamic=tuple(axis for text in dynamic for axis in listed(text)),
        input_names=listed(input_names or ""),
        output_names=listed(output_names or ""),
        dtype=precision(single, half, bfloat16),
        simplify=not no_simplify,
        keep_going=keep_going,
        external_data=external_data,
        meta=dict(text.split("=", 1) for text in meta),
    )
