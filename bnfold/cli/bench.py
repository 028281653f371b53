"""`bnfold bench`."""

from __future__ import annotations

from pathlib import Path

import click

from bnfold.cli.completion import each_of, provider_names
from bnfold.cli.options import Source, isolation_options, listed, source_options
from bnfold.cli.output import output_options, tell
from bnfold.cli.session import Isolation, working
from bnfold.errors import UsageError

COUNT = click.IntRange(min=1)


@click.command()
@click.argument(
    "paths",
    metavar="MODEL [MODEL...]",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
@click.option("--folded", is_flag=True, help="Fold MODEL, verify it, and measure both.")
@click.option("--batch", "batches", metavar="LIST", help="Values of a free batch: 1,8.")
@click.option(
    "--providers",
    metavar="LIST",
    shell_complete=each_of(provider_names),
    help="Where to run: cpu,cuda. Default: all that load.",
)
@click.option("--threads", type=COUNT, help="Of each model. Default: one a core.")
@click.option("--rounds", type=COUNT, default=30, show_default=True, help="Turns of every model.")
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Rounds that do not count.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of turns.")
@source_options
@isolation_options
@output_options
def bench(
    paths: tuple[Path, ...],
    folded: bool,
    batches: str | None,
    providers: str | None,
    threads: int | None,
    rounds: int,
    warmup: int,
    seed: int,
    source: Source,
    isolation: Isolation,
) -> int:
    """Measure the latency, load time, memory and size of each MODEL, side by side.

    Each runs in a process of its own, and in every round each has a turn; speed-ups are against the
    first, round by round. ONNX runs in ONNX Runtime, anything else in PyTorch.

    \b
    bnfold bench model.onnx --folded
    bnfold bench model.onnx model.folded.onnx --batch 1,8 --threads 1
    bnfold bench model.pt model.onnx --input Nx3x224x224
    """
    from bnfold.report.speed import bench_document
    from bnfold.verbs import benching

    timing = benching.Timing(
        rounds=rounds,
        warmup=warmup,
        threads=threads or benching.cores(),
        batches=None if batches is None else tuple(map(_size, listed(batches))),
        providers=None if providers is None else listed(providers),
        seed=seed,
    )
    with working(paths[0], isolation) as progress:
        result = benching.bench(
            paths,
            source.inputs,
            folded=folded,
            timing=timing,
            opening=source.opening,
            progress=progress,
        )
    tell(bench_document(result))
    return 0


def _size(text: str) -> int:
    if not text.isdigit():
        raise UsageError(f"--batch: {text!r} is no size", "write it like 1,8")
    return int(text)
