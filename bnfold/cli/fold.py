"""`bnfold fold`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bnfold.cli.options import (
    Source,
    isolation_options,
    judging_options,
    listed,
    listing_option,
    outputs_option,
    precision_options,
    source_options,
)
from bnfold.cli.output import announce, output_options, tell
from bnfold.cli.preprocessing import preprocessing_options
from bnfold.cli.session import GATE_FAILED, Isolation, working
from bnfold.errors import UsageError
from bnfold.preprocessing import Preprocessing
from bnfold.protocol import Protocol
from bnfold.verbs.precision import Precision


@click.command()
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write the result. Default: NAME.folded.SUFFIX beside the model.",
)
@click.option("--overwrite", is_flag=True, help="Allow -o to be the model itself.")
@click.option(
    "--to",
    type=click.Choice(["onnx", "torchscript", "pt2"]),
    help="Convert to another format and fold there. Default: the format of MODEL.",
)
@click.option(
    "--form",
    type=click.Choice(["auto", "module", "graph"]),
    default="auto",
    show_default=True,
    help="For a module: give a module, or fold its whole graph into a .pt2.",
)
@click.option(
    "--keep-classes",
    is_flag=True,
    help="Leave alone what only a generated submodule could carry out.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="For weights: without regard to their class, for bnfold.load alone.",
)
@click.option("--require-folded", is_flag=True, help="Exit 1 if any BatchNorm is kept.")
@click.option("--no-verify", is_flag=True, help="Write without comparing with the original.")
@click.option(
    "--verify-anyway", is_flag=True, help="Verify a result in which nothing had to change, too."
)
@click.option(
    "--no-move", is_flag=True, help="Leave 1x1 convolutions and linear layers where they are."
)
@outputs_option
@precision_options
@source_options
@preprocessing_options
@isolation_options
@judging_options
@listing_option
@output_options
def fold(
    path: Path,
    output: Path | None,
    overwrite: bool,
    to: str | None,
    form: Any,
    keep_classes: bool,
    compact: bool,
    require_folded: bool,
    no_verify: bool,
    verify_anyway: bool,
    no_move: bool,
    source: Source,
    outputs: str | None,
    dtype: Precision | None,
    preprocessing: Preprocessing | None,
    isolation: Isolation,
    protocol: Protocol,
    everything: bool,
) -> int:
    """Fold every affine of MODEL into its weights, verify, and write the result.

    MODEL is a pickled module, weights (with --model), TorchScript, .pt2, .safetensors or .onnx,
    recognised by content; the result has the same format, unless --to names another. Nothing is
    written unless it was found equivalent to the original.

    \b
    bnfold fold model.onnx
    bnfold fold model.pt --input 1x3x224x224
    bnfold fold weights.pt --model mynets:ResNet --model-args '{"depth": 18}' --input 1x3x32x32
    """
    from bnfold.files import check_target
    from bnfold.report.folding import fold_document
    from bnfold.verbs import folding
    from bnfold.verbs.targets import SUFFIXES

    if no_verify and verify_anyway:
        raise UsageError("--no-verify and --verify-anyway exclude each other", "leave one out")
    format_ = "pt2" if form == "graph" else to
    suffix = SUFFIXES[format_] if format_ else path.suffix
    target = output or path.parent / f"{path.stem}.folded{suffix}"
    check_target(target, overwrite=overwrite, source=path)
    announce(target)
    with working(path, isolation) as progress:
        result = folding.fold(
            path,
            source.inputs,
            to=to,
            form=form,
            keep_classes=keep_classes,
            compact=compact,
            move=not no_move,
            verify=not no_verify,
            verify_anyway=verify_anyway,
            outputs=listed(outputs or ""),
            dtype=dtype,
            preprocessing=preprocessing,
            protocol=protocol,
            opening=source.opening,
            progress=progress,
        )
        unfolded = require_folded and result.plan.batchnorms.kept > 0
        if result.passed and not unfolded:
            result.save(target)
    tell(fold_document(result, require_folded=require_folded), everything=everything)
    return 0 if result.result is not None else GATE_FAILED
