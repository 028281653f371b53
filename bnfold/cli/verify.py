"""`bnfold verify`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from bnfold.cli.options import (
    Source,
    isolation_options,
    judging_options,
    listing_option,
    source_options,
)
from bnfold.cli.output import output_options, tell
from bnfold.cli.session import GATE_FAILED, Isolation, working
from bnfold.errors import UsageError
from bnfold.protocol import Protocol


@click.command()
@click.argument("paths", metavar="[REFERENCE] CANDIDATE", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--golden",
    type=click.Path(path_type=Path),
    help="A bundle that `bnfold golden` recorded, in place of REFERENCE.",
)
@click.option(
    "--self-test",
    "testing",
    is_flag=True,
    help="Damage a weight, a bias and an epsilon of CANDIDATE too: the gate must see each.",
)
@click.option(
    "--save-failing",
    "kept",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the smallest part of CANDIDATE that fails in this folder, with its inputs.",
)
@listing_option
@source_options
@isolation_options
@judging_options
@output_options
def verify(
    paths: tuple[Path, ...],
    golden: Path | None,
    testing: bool,
    kept: Path | None,
    everything: bool,
    source: Source,
    isolation: Isolation,
    protocol: Protocol,
) -> int:
    """Is CANDIDATE the same function as REFERENCE? Exit 1 if not.

    The truth is REFERENCE computed in float64; CANDIDATE may be k times as far from it as REFERENCE
    itself is. The two may have different formats. A golden bundle can stand for REFERENCE.
    CANDIDATE runs in a process of its own: if it crashes, is killed or takes too long, it fails.

    \b
    bnfold verify model.onnx model.folded.onnx
    bnfold verify model.pt model.onnx --input 1x3x224x224
    bnfold verify --golden model.golden.npz model.onnx
    bnfold verify model.onnx model.folded.onnx --self-test
    """
    from bnfold.formats.opening import open_model
    from bnfold.report.document import Check, Document, Section
    from bnfold.verbs import verifying
    from bnfold.verbs.attributing import prepare, save_failing
    from bnfold.verbs.results import SCHEMA_VERSION
    from bnfold.verbs.selftest import self_test
    from bnfold.verification.golden import read_golden

    given = paths if golden is None else (golden, *paths)
    if len(given) != 2:
        raise UsageError(
            f"verify takes two models, or one with --golden; {len(paths)} given",
            "bnfold verify REFERENCE CANDIDATE, or bnfold verify --golden FILE.npz CANDIDATE",
        )
    reference, candidate = given
    protocol = replace(protocol, isolate=isolation.apart, timeout=isolation.timeout)
    if kept is not None:
        prepare(kept)
    with working(reference, isolation.with_room()) as progress:
        held = reference if golden is None else read_golden(golden)
        given_as = (held, candidate, source.inputs)
        verification = verifying.verify(
            *given_as, protocol=protocol, opening=source.opening, progress=progress
        )
        tested = None
        if testing:
            tested = self_test(
                *given_as, protocol=protocol, opening=source.opening, progress=progress
            )
        saved = None
        if kept is not None and verification.attribution is not None:
            other = open_model(candidate, source.opening)
            saved = save_failing(other, verification.attribution, kept)
    passed = verification.passed and (tested is None or tested.passed)
    data = {
        "schema_version": SCHEMA_VERSION,
        "verdict": "pass" if passed else "fail",
        "reference": str(reference),
        "candidate": str(candidate),
        "verification": verification.to_json(),
        "self_test": None if tested is None else tested.to_json(),
    }
    section = Section(
        str(candidate),
        verification=verification,
        notes=(
            *verification.notes,
            *([f"what fails is kept in {saved[0]}, its inputs in {saved[1]}"] if saved else ()),
            *(f"self-test: {trial}" for trial in (tested.trials if tested else ())),
        ),
        checks=tuple(Check("self-test", *each) for each in (tested.checks if tested else ())),
    )
    tell(Document("bnfold verify", str(reference), (section,), data), everything=everything)
    return 0 if passed else GATE_FAILED
