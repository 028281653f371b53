"""How fast the results are: bnfold's, and what other tools make of the same model.

python -m benchmarks.deployed                     all networks, all cores
python -m benchmarks.deployed --threads 1 RepVGG-A0

In ONNX Runtime, from one file that torch wrote with nothing folded: as it is, exported by bnfold,
by onnxsim, by onnxslim (left out unless `pip install onnxslim` was run), and by ONNX Runtime's own
offline optimisation. In PyTorch: the module, folded in place, and as a folded graph. Every model
runs in a process of its own and has a turn in every round. A figure is how many times as fast as
the unfolded model it is: the median over the rounds, and what nine of ten stay above and below.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

import bnfold
from benchmarks.trainable import NETWORKS, trained
from bnfold.verbs.targets import AS_IT_IS, converted

SHAPE = "1x3x224x224"
ONNX = ("unfolded", "bnfold", "onnxsim", "onnxslim", "offline")
TORCH = ("module", "folded in place", "folded graph")


def make(name: str, folder: Path) -> None:
    """Write every contender for the network `name` into `folder`."""
    import torch

    from bnfold.formats.opening import open_model
    from bnfold.verbs.input_resolution import resolve_inputs
    from bnfold.verbs.inputs import example

    module = trained(name)
    original = open_model(module)
    inputs = resolve_inputs(original, SHAPE)
    source = folder / "unfolded.onnx"
    converted(original, "onnx", inputs, example(inputs), AS_IT_IS).save(source)
    bnfold.export(module, SHAPE)["onnx"].save(folder / "bnfold.onnx")
    for tool in ("onnxsim", "onnxslim"):
        if importlib.util.find_spec(tool):
            target = str(folder / f"{tool}.onnx")
            command = [sys.executable, "-m", tool, str(source), target]
            subprocess.run(command, check=True, capture_output=True)
    offline(source, folder / "offline.onnx")
    sample = torch.randn(1, 3, 224, 224)
    for label, form in zip(TORCH, (None, "module", "graph"), strict=True):
        made = module if form is None else bnfold.fold(module, SHAPE, form=form).model
        program = made if form == "graph" else torch.export.export(made, (sample,))
        torch.export.save(program, folder / f"{label}.pt2")


def offline(source: Path, target: Path) -> None:
    """What ONNX Runtime writes of a model that it has optimised for this machine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def speed(folder: Path, labels: Sequence[str], timing: bnfold.Timing) -> list[str]:
    """The speed-up of each contender that is there, and "" for the others."""
    suffix = ".onnx" if labels is ONNX else ".pt2"
    paths = {label: folder / f"{label}{suffix}" for label in labels}
    there = [path for path in paths.values() if path.exists()]
    found = bnfold.bench(there, timing=timing)
    baseline = there[0].name
    ratios = {each.model: each.speedup for each in found.comparisons if each.baseline == baseline}
    cells = [f"{1e3 * found.measurements[0].latency.median:.1f} ms"]
    for path in list(paths.values())[1:]:
        spread = ratios.get(path.name)
        cells.append(f"{spread.median:.2f} ({spread.p10:.2f}-{spread.p90:.2f})" if spread else "")
    return cells


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(NETWORKS)))
@click.option("--threads", type=int, default=None)
@click.option("--rounds", type=int, default=40, show_default=True)
def main(names: tuple[str, ...], threads: int | None, rounds: int) -> None:
    timing = bnfold.Timing(rounds=rounds, **({"threads": threads} if threads else {}))
    lines: dict[tuple[str, ...], list[str]] = {ONNX: [], TORCH: []}
    for name in names or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            make(name, Path(folder))
            for labels, rows in lines.items():
                rows.append(row([f"`{name}`", *speed(Path(folder), labels, timing)]))
                click.echo(rows[-1], err=True)
    for labels, rows in lines.items():
        click.echo(row(["network", *labels]))
        click.echo(row(["---", *["---:"] * len(labels)]))
        click.echo("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
