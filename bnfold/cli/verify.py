"""`bnfold verify`."""

from __future__ import annotations

from pathlib import Path

import click

from bnfold.cli.session import (
    GATE_FAILED,
    gate_options,
    model_options,
    opening,
    provider_list,
    report_options,
    tell,
    working,
)


@click.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@model_options
@gate_options
@report_options
def verify(
    reference: Path,
    candidate: Path,
    inputs: tuple[str, ...],
    factory: str | None,
    model_args: str | None,
    allow: tuple[str, ...],
    trust: bool,
    k: float,
    seed: int,
    providers: str | None,
    style: str,
    reports: tuple[Path, ...],
    debug: bool,
) -> int:
    """Is CANDIDATE the same function as REFERENCE? Exit 1 if not.

    The truth is REFERENCE computed in float64; CANDIDATE may be k times as far from it as REFERENCE
    itself is. The two may have different formats.

    \b
    bnfold verify model.onnx model.folded.onnx
    bnfold verify model.pt model.onnx --input 1x3x224x224
    """
    from bnfold import verifying
    from bnfold.folding import SCHEMA_VERSION
    from bnfold.report.text import verification_part

    with working() as progress:
        verification = verifying.verify(
            reference,
            candidate,
            list(inputs),
            k=k,
            seed=seed,
            providers=provider_list(providers),
            opening=opening(factory, model_args, allow, trust),
            progress=progress,
        )
    data = {
        "schema_version": SCHEMA_VERSION,
        "verdict": "pass" if verification.passed else "fail",
        "reference": str(reference),
        "candidate": str(candidate),
        "verification": verification.to_json(),
    }
    tell(style, reports, [verification_part(verification)], data)
    return 0 if verification.passed else GATE_FAILED
