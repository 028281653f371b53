"""`bnfold golden`."""

from __future__ import annotations

from pathlib import Path

import click

from bnfold.cli.options import Source, isolation_options, judging_options, source_options
from bnfold.cli.output import announce, output_options, tell
from bnfold.cli.session import Isolation, working
from bnfold.protocol import Protocol
from bnfold.report.document import Document, Section
from bnfold.verification.golden import Golden


@click.command()
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write the bundle. Default: NAME.golden.npz beside the model.",
)
@source_options
@isolation_options
@judging_options
@output_options
def golden(
    path: Path, output: Path | None, source: Source, isolation: Isolation, protocol: Protocol
) -> int:
    """Record what MODEL computes, to verify candidates where MODEL and torch are not.

    The bundle holds the inputs of every case, the outputs in float64, and those of MODEL as it is,
    from which the noise floors follow.

    \b
    bnfold golden model.pt --input 1x3x224x224 -o model.golden.npz
    bnfold verify --golden model.golden.npz model.onnx
    """
    from bnfold.files import check_target, sha256
    from bnfold.verbs import recording
    from bnfold.verbs.results import SCHEMA_VERSION, Artefact

    target = output or path.parent / f"{path.stem}.golden.npz"
    check_target(target, overwrite=False, source=path)
    announce(target)
    with working(path, isolation) as progress:
        made = recording.golden(
            path, source.inputs, protocol=protocol, opening=source.opening, progress=progress
        )
        made.save(target)
    written = Artefact(str(target), "golden", sha256(target))
    section = Section(lines=_lines(made), notes=made.notes, artefact=written)
    data = {
        "schema_version": SCHEMA_VERSION,
        "source": dict(made.source),
        "result": written.to_json(),
        "cases": [case.name for case in made.cases],
        "runs": list(made.runs),
        "inexact": made.inexact,
        "seeds": list(made.seeds),
        "versions": dict(made.versions),
        "notes": list(made.notes),
    }
    tell(Document("bnfold golden", str(path), (section,), data))
    return 0


def _lines(made: Golden) -> tuple[str, str]:
    names = ", ".join(case.name for case in made.cases)
    places = ", ".join(["float64"] * (made.inexact is None) + list(made.runs))
    lacking = "" if made.inexact is None else f"; no float64: {made.inexact}"
    return (f"{len(made.cases)} cases: {names}", f"recorded: {places}{lacking}")
