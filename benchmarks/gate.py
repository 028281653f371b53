"""Does the gate separate right folds from wrong ones? Measured on the zoo, in ONNX Runtime.

python -m benchmarks.gate study.jsonl             measure, and append what was found
python -m benchmarks.gate study.jsonl --draw F    the table, and the distributions as a picture

A right fold is judged on the probes of three seeds; a fold with a mistake made on purpose
(`benchmarks/faults.py`, each drawn twice) on those of the first. `ratio` is the smallest k that
would pass it. `effect` is the same for the mistake alone, computed in float64: what it changes, in
floors, without any rounding. The classic rules compare with the unfolded model's own output.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.faults import IN_A_NORM, damaged, in_float32, padded
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.opening import open_model
from bnfold.inputs import Inputs
from bnfold.protocol import DEFAULT_K, Protocol
from bnfold.runtimes import Outputs, Runner, Sample
from bnfold.verbs.input_resolution import resolve_inputs
from bnfold.verbs.inputs import cases, example
from bnfold.verbs.targets import AS_IT_IS, converted
from bnfold.verbs.verifying import measured
from bnfold.verification import Measurement, Verification
from tests.zoo.architecture import Architecture
from tests.zoo.test_zoo import ZOO

SEEDS = (0, 1, 2)
DRAWS = 2
RIGHT, FLOAT32, PADDING = "right", "float32 arithmetic", "shift through zero padding"
LARGE_EFFECT = 10.0
"""Floors from which on a mistake has to be found."""

LOOSE = 1e-3
"""The tolerance, absolute and relative, that many tools use."""


@dataclass(frozen=True, slots=True)
class Finding:
    network: str
    kind: str
    seed: int
    ratio: float
    effect: float | None
    assert_close: bool
    loose: bool


class Narrow:
    """A float64 runner whose outputs are rounded to the types of the original's."""

    def __init__(self, runner: Runner, like: Outputs) -> None:
        self.name, self.input_names = "float64", runner.input_names
        self._runner, self._types = runner, [output.dtype for output in like.values()]

    def __call__(self, sample: Sample) -> Outputs:
        outputs = self._runner(sample)
        pairs = zip(outputs.items(), self._types, strict=True)
        return {name: output.astype(kind) for (name, output), kind in pairs}


def study(architecture: Architecture) -> Iterator[Finding]:
    """Every finding on one network."""
    module = open_model(architecture.make())
    inputs = resolve_inputs(module, "x".join(map(str, architecture.shape)))
    original = converted(module, "onnx", inputs, example(inputs), AS_IT_IS)
    assert isinstance(original, OnnxModel)
    right = folded(original)
    for seed in SEEDS:
        measurement = measure(original, inputs, seed)
        found = measurement.judge(right.runners())
        yield finding(architecture.name, RIGHT, seed, found, None)
        if seed == SEEDS[0]:
            yield from faults(architecture.name, original, measurement, inputs)
    pair = padded(original, np.random.default_rng(0))
    if pair is not None:
        normalised, wrong = pair
        measurement = measure(normalised, inputs, SEEDS[0])
        yield judged(architecture.name, PADDING, 0, wrong, measurement, inputs)


def faults(
    name: str, original: OnnxModel, measurement: Measurement, inputs: Inputs
) -> Iterator[Finding]:
    for kind in IN_A_NORM:
        for draw in range(DRAWS):
            wrong = damaged(original, kind, np.random.default_rng(draw))
            if wrong is not None:
                yield judged(name, kind, draw, wrong, measurement, inputs)
    narrow = in_float32(original)
    if narrow is not None:
        yield judged(name, FLOAT32, 0, narrow, measurement, inputs)


def folded(model: OnnxModel) -> OnnxModel:
    plan, weights = make_rounded_plan(model.read(None), model.locked(), model.veto)
    return model.write(plan, weights)


def measure(model: OnnxModel, inputs: Inputs, seed: int) -> Measurement:
    protocol = Protocol(seeds=(seed,))
    tried = partial(cases, inputs, protocol)
    told = model.bounds(), model.decisions()
    return measured(
        model.truth(), model.runners(protocol), tried, protocol, lambda step: None, *told
    )


def judged(
    name: str, kind: str, draw: int, wrong: OnnxModel, measurement: Measurement, inputs: Inputs
) -> Finding:
    found = measurement.judge(folded(wrong).runners())
    like = wrong.runners()[0](example(inputs))
    alone = measurement.judge([Narrow(wrong.truth(), like)])
    return finding(name, kind, draw, found, alone.smallest_k)


def finding(name: str, kind: str, seed: int, found: Verification, effect: float | None) -> Finding:
    difference = found.difference
    assert difference is not None
    loose = min(difference.absolute, difference.relative) <= LOOSE
    close = difference.assert_close <= 1
    return Finding(name, kind, seed, found.smallest_k, effect, close, loose)


def table(findings: Sequence[Finding]) -> Iterator[str]:
    """By kind: how many the gate and the classic rules fail, and where the ratios lie."""
    heads = ("fold", "cases", "median ratio", "5 %", "95 %", "gate", "assert_close", "1e-3")
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for one in findings:
        harmless = one.effect is not None and one.effect <= LARGE_EFFECT and one.kind != FLOAT32
        by_kind[f"{one.kind}, below ten floors" if harmless else one.kind].append(one)
    for kind, ones in sorted(by_kind.items(), key=lambda item: (item[0] != RIGHT, item[0])):
        low, middle, high = np.percentile([one.ratio for one in ones], [5, 50, 95])
        failing = sum(one.ratio > DEFAULT_K for one in ones)
        close, loose = (
            sum(not getattr(one, rule) for one in ones) for rule in ("assert_close", "loose")
        )
        yield (
            f"| {kind} | {len(ones)} | {middle:.3g} | {low:.3g} | {high:.3g} "
            f"| {failing} | {close} | {loose} |"
        )


def draw(findings: Sequence[Finding], path: Path) -> None:
    """The ratios of right folds, of those in float32, and of mistakes, as histograms."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "bnfold"
    groups = {
        "right folds": [one for one in findings if one.kind == RIGHT],
        "float32 arithmetic": [one for one in findings if one.kind == FLOAT32],
        "mistakes": [one for one in findings if one.kind not in (RIGHT, FLOAT32)],
    }
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    bins = np.logspace(-1, 8, 73).tolist()
    for (label, ones), colour in zip(
        groups.items(), ("#2a9d8f", "#e9c46a", "#c44536"), strict=True
    ):
        ratios = np.clip([one.ratio for one in ones], bins[0], bins[-1])
        axes.hist(ratios, bins=bins, label=f"{label} ({len(ones)})", color=colour, alpha=0.75)
    axes.axvline(DEFAULT_K, color="black", linewidth=1, linestyle="--", label=f"k = {DEFAULT_K:g}")
    axes.set_xscale("log")
    axes.set_xlabel("smallest k that passes (errors in units of the noise floor)")
    axes.set_ylabel("verifications")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


@click.command(help=__doc__)
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--draw", "picture", type=click.Path(path_type=Path))
@click.option("--only", help="Networks whose name has this in it.", default="")
def main(record: Path, picture: Path | None, only: str) -> None:
    if picture is not None:
        findings = [Finding(**json.loads(line)) for line in record.read_text().splitlines()]
        draw(findings, picture)
        click.echo("\n".join(table(findings)))
        return
    record.touch()
    known = {json.loads(line)["network"] for line in record.read_text().splitlines()}
    for architecture in (one for one in ZOO if one.name not in known and only in one.name):
        with record.open("a") as file:
            for found in study(architecture):
                file.write(json.dumps(asdict(found)) + "\n")
        click.echo(architecture.name, err=True)


if __name__ == "__main__":
    main()
