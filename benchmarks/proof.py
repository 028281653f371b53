"""How much is proved of right folds, and is any wrong one?

python -m benchmarks.proof

Every network of `tests/zoo`, exported to ONNX and folded there; and the same with each mistake of
`benchmarks/faults.py`, and the wrong candidates of `benchmarks/fooling.py`. Both files are read
again, and the time is that of reading and proving.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from benchmarks.faults import IN_A_NORM, damaged, in_float32, padded
from benchmarks.fooling import TRICKS
from benchmarks.gate import DRAWS, FLOAT32, PADDING, folded
from bnfold.errors import BnfoldError
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.opening import open_model
from bnfold.inputs import resolve_inputs
from bnfold.proof.verdict import Proof
from bnfold.verbs.inputs import example
from bnfold.verbs.proving import prove
from bnfold.verbs.targets import AS_IT_IS, converted
from tests.zoo.architecture import Architecture
from tests.zoo.test_zoo import ZOO


def exported(architecture: Architecture) -> OnnxModel:
    module = open_model(architecture.make())
    inputs = resolve_inputs(module, "x".join(map(str, architecture.shape)))
    original = converted(module, "onnx", inputs, example(inputs), AS_IT_IS)
    assert isinstance(original, OnnxModel)
    return original


def of_files(original: OnnxModel, candidate: OnnxModel) -> tuple[Proof, float]:
    """The proof, by what both are as files, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "original.onnx", Path(folder) / "candidate.onnx"
        original.save(one)
        candidate.save(other)
        start = time.perf_counter()
        return prove(one, other), time.perf_counter() - start


def wrong(original: OnnxModel) -> Iterator[tuple[str, OnnxModel, OnnxModel]]:
    """Every mistake that can be made with the model: its kind, the original, the candidate."""
    for kind in IN_A_NORM:
        for draw in range(DRAWS):
            model = damaged(original, kind, np.random.default_rng(draw))
            if model is not None:
                yield kind, original, folded(model)
    narrow = in_float32(original)
    if narrow is not None:
        yield FLOAT32, original, folded(narrow)
    pair = padded(original, np.random.default_rng(0))
    if pair is not None:
        yield PADDING, pair[0], folded(pair[1])


@click.command(help=__doc__)
@click.option("--only", help="Networks whose name has this in it.", default="")
def main(only: str) -> None:
    tried: Counter[str] = Counter()
    proved: Counter[str] = Counter()
    click.echo("| network | nodes | proved | seconds |\n| --- | ---: | ---: | ---: |")
    for architecture in (each for each in ZOO if only in each.name):
        original = exported(architecture)
        found, seconds = of_files(original, folded(original))
        tried["right"] += 1
        proved["right"] += found.proved
        shown = "all" if found.proved else str(found.proved_nodes)
        click.echo(f"| {architecture.name} | {found.nodes} | {shown} | {seconds:.2f} |")
        for why in found.open[:2]:
            click.echo(f"{architecture.name}: {why}", err=True)
        for kind, before, after in wrong(original):
            tried[kind] += 1
            proved[kind] += of_files(before, after)[0].proved
    for trick in () if only else TRICKS:
        tried["right nearly everywhere"] += 1
        try:
            proved["right nearly everywhere"] += prove(*trick.models()).proved
        except BnfoldError as error:
            click.echo(f"{trick.name}: {error}", err=True)
    click.echo("\n| candidates | tried | proved |\n| --- | ---: | ---: |")
    for kind, count in tried.items():
        click.echo(f"| {kind} | {count} | {proved[kind]} |")


if __name__ == "__main__":
    main()
