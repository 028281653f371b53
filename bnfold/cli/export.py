"""`bnfold export`."""

from __future__ import annotations

from pathlib import Path

import click

from bnfold.cli.completion import each_of, target_names
from bnfold.cli.conversion import conversion_options
from bnfold.cli.options import (
    Source,
    isolation_options,
    judging_options,
    listed,
    listing_option,
    outputs_option,
    source_options,
)
from bnfold.cli.output import announce, output_options, tell
from bnfold.cli.preprocessing import preprocessing_options
from bnfold.cli.session import GATE_FAILED, Isolation, working
from bnfold.preprocessing import Preprocessing
from bnfold.protocol import Protocol
from bnfold.verbs.targets import Conversion


@click.command()
@click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "targets",
    default="onnx",
    show_default=True,
    metavar="LIST",
    shell_complete=each_of(target_names),
    help="Formats to write: onnx, torchscript, pt2, with commas.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A file, or for several targets a folder. Default: beside the model.",
)
@click.option("--overwrite", is_flag=True, help="Allow the model itself to be replaced.")
@conversion_options
@click.option(
    "--no-move", is_flag=True, help="Leave 1x1 convolutions and linear layers where they are."
)
@outputs_option
@source_options
@preprocessing_options
@isolation_options
@judging_options
@listing_option
@output_options
def export(
    path: Path,
    targets: str,
    output: Path | None,
    overwrite: bool,
    how: Conversion,
    no_move: bool,
    source: Source,
    outputs: str | None,
    preprocessing: Preprocessing | None,
    isolation: Isolation,
    protocol: Protocol,
    everything: bool,
) -> int:
    """Fold MODEL, export it, simplify it, and verify each result against MODEL itself.

    \b
    bnfold export model.pt --to onnx --input 1x3x224x224
    bnfold export model.pt --to onnx,torchscript,pt2 --input Nx3x224x224 -o deploy/
    """
    from bnfold.files import check_target
    from bnfold.report.folding import export_document
    from bnfold.verbs import exporting

    names = [name.strip() for name in targets.split(",") if name.strip()]
    places = _places(path, names, output)
    for place in places.values():
        check_target(place, overwrite=overwrite, source=path)
    announce(*places.values())
    with working(path, isolation) as progress:
        result = exporting.export(
            path,
            source.inputs,
            to=names,
            how=how,
            outputs=listed(outputs or ""),
            preprocessing=preprocessing,
            move=not no_move,
            protocol=protocol,
            opening=source.opening,
            progress=progress,
        )
        if result.passed:
            for name, place in places.items():
                result[name].save(place)
    tell(export_document(result), everything=everything)
    return 0 if result.passed else GATE_FAILED


def _places(path: Path, names: list[str], output: Path | None) -> dict[str, Path]:
    """Where each target goes."""
    from bnfold.errors import UsageError
    from bnfold.verbs.targets import SUFFIXES, TARGETS

    if not names or (unknown := [name for name in names if name not in TARGETS]):
        raise UsageError(
            f"--to {','.join(names)}: {unknown[0] if names else 'nothing'} is no target",
            f"choose from {', '.join(TARGETS)}",
        )
    if output is not None and len(names) == 1 and not output.is_dir():
        return {names[0]: output}
    folder = path.parent if output is None else output
    if output is not None and output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file, and there are {len(names)} targets", "name a folder")
    places = {name: folder / f"{path.stem}{SUFFIXES[name]}" for name in names}
    return {
        name: place.with_name(f"{path.stem}.folded{SUFFIXES[name]}") if place == path else place
        for name, place in places.items()
    }
