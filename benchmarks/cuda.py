"""What CUDA computes, beside the CPU: errors of folded models of the zoo, TF32 off and on.

python -m benchmarks.cuda     needs a GPU; `bnfold doctor` says what is missing for it

An error is the largest over the probes, relative to the largest value of the output, on the given
provider at full optimisation. The truth is the unfolded model in float64. The times are medians of
a run on the GPU, of the unfolded model and of the folded one, in turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

import bnfold
from bnfold.environment import versions
from bnfold.formats.opening import open_model
from bnfold.protocol import Protocol
from bnfold.runtimes.ort import available_providers
from bnfold.verbs.input_resolution import resolve_inputs
from bnfold.verbs.inputs import cases, example
from bnfold.verbs.targets import AS_IT_IS, converted
from tests.zoo.architecture import Architecture
from tests.zoo.test_zoo import ZOO

PLACES = ("cpu", "cuda", "cuda tf32")


def row(architecture: Architecture) -> str:
    module = open_model(architecture.make())
    inputs = resolve_inputs(module, "x".join(map(str, architecture.shape)))
    unfolded = converted(module, "onnx", inputs, example(inputs), AS_IT_IS)
    folded = bnfold.fold(unfolded, protocol=Protocol(providers=("cpu",))).folded
    truth = unfolded.truth()
    probes = [case.sample for case in cases(inputs)]
    exact = [truth(sample) for sample in probes]
    cells = [architecture.name]
    for model in (unfolded, folded):
        for place in PLACES:
            (runner,) = model.runners(Protocol(providers=(place,), levels=("optimised",)))
            worst = 0.0
            for sample, expected in zip(probes, exact, strict=True):
                for name, output in runner(sample).items():
                    scale = abs(expected[name]).max()
                    worst = max(worst, abs(output - expected[name]).max() / scale if scale else 0)
            cells.append(f"{worst:.1e}")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "unfolded.onnx", Path(folder) / "folded.onnx"]
        for path, model in zip(paths, (unfolded, folded), strict=True):
            model.save(path)
        found = bnfold.bench(paths, timing=bnfold.Timing(providers=("cuda",)))
    cells += [f"{1e3 * each.latency.median:.2f} ms" for each in found.measurements]
    return f"| {' | '.join(cells)} |"


def table() -> Iterator[str]:
    heads = [f"{model}, {place}" for model in ("unfolded", "folded") for place in PLACES]
    yield f"| network | {' | '.join([*heads, 'unfolded', 'folded'])} |"
    yield f"| --- |{' ---: |' * (len(heads) + 2)}"
    for architecture in ZOO:
        yield row(architecture)


@click.command(help=__doc__)
def main() -> None:
    if why := available_providers()["cuda"]:
        raise click.ClickException(why)
    click.echo(", ".join(f"{name} {version}" for name, version in versions().items()))
    for line in table():
        click.echo(line)


if __name__ == "__main__":
    main()
