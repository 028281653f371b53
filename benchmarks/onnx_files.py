"""Time and memory of folding an ONNX file as a whole command, beside onnxsim and onnxslim.

python -m benchmarks.onnx_files                  models like ResNet-50 and EfficientNet-B0
python -m benchmarks.onnx_files --gigabytes 4    a file of that size with external data, alone

Every command runs in turn, round after round, and figures are medians over the rounds; the ratios
are what can be compared between machines. onnxslim is not among bnfold's own dependencies: it is
left out unless `pip install onnxslim` was run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

MEBIBYTE = 2**20
MODELS = ("ResNet-50", "EfficientNet-B0")
SIDE, WIDTH = 4, 4096
"""The large file: 1x1 convolutions of 64 MiB each, every one with a BatchNorm and a ReLU."""


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    peak: float
    """Mebibytes that the process had in memory at most."""


def run(command: list[str]) -> Run:
    """Run a command to its end and measure it."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise click.ClickException(f"{' '.join(command)} failed: {errors.decode()[-400:]}")
    return Run(seconds, usage.ru_maxrss / 1024)


def commands(source: Path, folder: Path) -> dict[str, list[str]]:
    """The tools that are installed, by name."""
    target, python = str(folder / "out.onnx"), sys.executable
    known = {
        "bnfold": [python, "-m", "bnfold", "fold", str(source), "-o", target, "--no-verify"],
        "onnxslim": [python, "-m", "onnxslim", str(source), target],
        "onnxsim": [python, "-m", "onnxsim", str(source), target],
    }
    return {name: line for name, line in known.items() if importlib.util.find_spec(name)}


def make_model(name: str, path: str) -> None:
    """Export a model with random statistics as torch writes it, nothing optimised."""
    import torch
    import transformers

    torch.manual_seed(0)
    if name == "ResNet-50":
        model = transformers.ResNetModel(transformers.ResNetConfig())
    else:
        sizes = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
        model = transformers.EfficientNetModel(transformers.EfficientNetConfig(**sizes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    image = torch.randn(1, 3, 224, 224)
    torch.onnx.export(
        model.eval(),
        (image,),
        path,
        dynamo=True,
        optimize=False,
        external_data=False,
        verbose=False,
    )


def make_large(path: str, gigabytes: float) -> None:
    """A chain of convolutions whose weights take that much room in a file of their own."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    kernel = rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH, 1, 1)).astype(np.float32)
    layers = max(1, round(gigabytes * 1024 * MEBIBYTE / kernel.nbytes))
    nodes, tensors = [], []
    with Path(path).with_name("weights.bin").open("wb") as data:
        for i in range(layers):
            weight = onnx.TensorProto(name=f"w{i}", dims=kernel.shape, data_type=1, data_location=1)
            place = {"location": "weights.bin", "offset": data.tell(), "length": kernel.nbytes}
            for key, value in place.items():
                weight.external_data.add(key=key, value=str(value))
            data.write(kernel.data)
            tensors.append(weight)
            for role in "gbmv":
                numbers = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
                tensors.append(numpy_helper.from_array(numbers, f"{role}{i}"))
            nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], f"conv{i}"))
            read = [f"c{i}", *(f"{role}{i}" for role in "gbmv")]
            nodes.append(helper.make_node("BatchNormalization", read, [f"y{i}"], f"bn{i}"))
            nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"], f"relu{i}"))
    ends = [
        helper.make_tensor_value_info(name, 1, [1, WIDTH, SIDE, SIDE])
        for name in ("x0", f"x{layers}")
    ]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    Path(path).write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())


def apart(function: str, *arguments: object) -> None:
    """Call a function of this file in a process of its own: what it imports is not measured."""
    listed = ", ".join(repr(a if isinstance(a, int | float) else str(a)) for a in arguments)
    code = f"import benchmarks.onnx_files as b; b.{function}({listed})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)


def compare(name: str, folder: Path, rounds: int) -> None:
    source = folder / f"{name}.onnx"
    apart("make_model", name, source)
    lines = commands(source, folder)
    runs: dict[str, list[Run]] = {tool: [] for tool in lines}
    for _ in range(rounds):
        for tool, line in lines.items():
            (folder / "out.onnx").unlink(missing_ok=True)
            runs[tool].append(run(line))
    own = runs["bnfold"]
    click.echo(f"\n{name}, {source.stat().st_size / MEBIBYTE:.0f} MiB, {rounds} rounds")
    for tool, each in runs.items():
        time_ratio = median(a.seconds / b.seconds for a, b in zip(own, each, strict=True))
        peak_ratio = median(a.peak / b.peak for a, b in zip(own, each, strict=True))
        seconds, peak = median(r.seconds for r in each), median(r.peak for r in each)
        click.echo(
            f"  {tool:9} {seconds:6.2f} s {peak:6.0f} MiB   "
            f"bnfold takes {time_ratio:.2f} of its time, {peak_ratio:.2f} of its memory"
        )


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--gigabytes", type=float, help="Fold one file of that size instead.")
def main(rounds: int, gigabytes: float | None) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if gigabytes is None:
            for name in MODELS:
                compare(name, folder, rounds)
            return
        source = folder / "large.onnx"
        apart("make_large", source, gigabytes)
        size = (folder / "weights.bin").stat().st_size / MEBIBYTE
        found = run(commands(source, folder)["bnfold"])
        share = found.peak / size
        click.echo(
            f"{size:.0f} MiB: {found.seconds:.1f} s, {found.peak:.0f} MiB, {share:.2f} of it"
        )


if __name__ == "__main__":
    main()
