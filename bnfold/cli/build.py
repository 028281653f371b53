"""`bnfold build`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli.completion import pipeline_models
from bnfold.cli.options import isolation_options
from bnfold.cli.output import announce, output_options, tell
from bnfold.cli.session import DEFAULT_TIMEOUT, Isolation, working

if TYPE_CHECKING:
    from bnfold.verbs.pipeline import Entry

FILE = "bnfold.toml"


@click.command()
@click.argument("names", metavar="[MODEL...]", nargs=-1, shell_complete=pipeline_models)
@click.option(
    "-f",
    "--file",
    "path",
    type=click.Path(path_type=Path),
    default=FILE,
    show_default=True,
    help="The pipeline file.",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Models at a time."
)
@click.option("--force", is_flag=True, help="Build also what is up to date.")
@click.option(
    "--dask",
    metavar="ADDRESS",
    help="Build on the workers of this Dask scheduler, or on a cluster of its own: local.",
)
@isolation_options
@output_options
def build(
    names: tuple[str, ...],
    path: Path,
    jobs: int,
    force: bool,
    dask: str | None,
    isolation: Isolation,
) -> int:
    """Bring the models of a pipeline file up to date: fold, export, verify, write.

    Only what has changed is built again. One model that fails leaves the others alone; the exit
    code is that of the worst.

    \b
    bnfold build
    bnfold build classifier detector --jobs 4
    bnfold build --dask tcp://scheduler:8786 --report build.html

    The file has a table for each model; further keys are those of bnfold.Entry:

    \b
    [models.classifier]
    source = "classifier.onnx"
    inputs = ["Nx1x28x28"]
    to = ["onnx"]
    """
    from bnfold.report.building import build_document
    from bnfold.report.results import Reports
    from bnfold.verbs import building
    from bnfold.verbs.pipeline import read_pipeline

    entries = read_pipeline(path)
    announce(*(place for name in names or entries for place in _places(entries, name)))
    with working(path, isolation) as progress:
        result = building.build(
            entries,
            names,
            source=str(path),
            jobs=jobs,
            force=force,
            dask=dask,
            reports=Reports(),
            apart=isolation.apart,
            timeout=isolation.timeout or DEFAULT_TIMEOUT,
            progress=progress,
        )
    tell(build_document(result))
    return result.code


def _places(entries: Mapping[str, Entry], name: str) -> Iterable[Path]:
    return entries[name].places.values() if name in entries else ()
