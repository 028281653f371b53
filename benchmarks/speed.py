"""What folding and exporting a module costs, in units of what torch itself takes to capture it.

    python -m benchmarks.speed [ROUNDS]

Processor time, the median of ROUNDS rounds (5) in which each contender has one turn:

    module, graph   bnfold.fold in either form, unverified, over torch.export.export
    onnx            bnfold.export, verified, over torch.onnx.export
"""

from __future__ import annotations

import io
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import Any

import click
import torch

import bnfold
from bnfold.process_state import quiet
from tests.zoo.architecture import Architecture
from tests.zoo.vision import VISION

NETWORKS = ("ResNet, basic", "LeViT", "HGNetV2")


def contenders(net: torch.nn.Module, x: torch.Tensor) -> Mapping[str, Callable[[], Any]]:
    return {
        "torch.export": lambda: torch.export.export(net, (x,), strict=False),
        "module": lambda: bnfold.fold(net, x, form="module", verify=False),
        "graph": lambda: bnfold.fold(net, x, form="graph", verify=False),
        "torch.onnx": lambda: torch.onnx.export(net, (x,), dynamo=True, verbose=False),
        "onnx": lambda: bnfold.export(net, x, to=["onnx"]),
    }


def seconds(run: Callable[[], Any]) -> float:
    """Processor time of one turn; what exporters print is left out."""
    with redirect_stdout(io.StringIO()), quiet("torch.onnx"), torch.no_grad():
        start = time.process_time()
        run()
        return time.process_time() - start


def row(architecture: Architecture, rounds: int) -> str:
    runs = contenders(architecture.make().eval(), architecture.sample())
    for run in runs.values():
        seconds(run)  # imports, and what libraries keep
    taken = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]

    def ratio(name: str, base: str) -> str:
        return f"{name} {statistics.median(each[name] / each[base] for each in taken):.2f}"

    base = statistics.median(each["torch.export"] for each in taken)
    folds = [ratio("module", "torch.export"), ratio("graph", "torch.export")]
    found = ", ".join([*folds, ratio("onnx", "torch.onnx")])
    return f"{architecture.name}: torch.export {base:.2f} s; {found}"


@click.command()
@click.argument("rounds", default=5)
def main(rounds: int) -> None:
    """Print a line for each network."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for architecture in VISION:
        if architecture.name in NETWORKS:
            click.echo(row(architecture, rounds))


if __name__ == "__main__":
    main()
