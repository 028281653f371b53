"""What it gains that a residual trunk carries the shifts of its BatchNorms: docs/last_mile.md.

python -m benchmarks.last_mile

Each network is built twice with the same numbers: `kept`, with its last BatchNorms, and `carried`,
without them. Both are held to the float64 truth of `kept`, then timed in ONNX Runtime in turn, so
that whatever else the machine does meets both. One thread is timed by its own processor time, two
by the clock. A ratio below 1 means that `carried` is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import click
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnfold.formats.onnx.float64 import Float64Runner
from bnfold.runtimes import Outputs
from bnfold.runtimes.ort import OrtRunner

Array = NDArray[np.float64]


class Norm(NamedTuple):
    """A BatchNorm: scale * x + shift = scale * (x + lead), every scale above zero."""

    scale: Array
    shift: Array

    @property
    def lead(self) -> Array:
        return self.shift / self.scale


@dataclass
class Builder:
    """An ONNX graph in the making; every method returns the name of the value it makes."""

    carried: bool
    smallest: float = 0.5
    largest: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def norm(self, channels: int) -> Norm:
        """gamma from `smallest` to 1.5 over a standard deviation near 1; beta and mean near 0."""
        deviation = self.rng.uniform(0.7, 1.4, channels)
        gamma = np.exp(self.rng.uniform(np.log(self.smallest), np.log(1.5), channels))
        scale = gamma / deviation
        beta, mean = self.rng.normal(0, 0.3, (2, channels))
        norm = Norm(scale, beta - mean * scale)
        self.largest = max(
            self.largest, float(np.abs(norm.lead).max() * np.sqrt((scale**2).mean()))
        )
        return norm

    def normed(self, x: str, norm: Norm) -> str:
        """A BatchNorm of its own."""
        zero, one = np.zeros_like(norm.scale), np.ones_like(norm.scale)
        parameters = [self.constant(v) for v in (norm.scale, norm.shift, zero, one)]
        return self.node("BatchNormalization", x, *parameters, epsilon=0.0)

    def read(self, x: str, norm: Norm) -> tuple[str, Array]:
        """What a layer reads in place of the BatchNorm's result, and the scale it has to take."""
        if self.carried:
            return x, norm.scale
        return self.normed(x, norm), np.ones_like(norm.scale)

    def lead(self, norm: Norm) -> Array:
        """The shift that the trunk carries for a BatchNorm."""
        return norm.lead if self.carried else np.zeros_like(norm.scale)

    def conv(
        self,
        x: str,
        scale: Array,
        out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        depthwise: bool = False,
        bias: Array | float = 0.0,
        gain: float = 2.0,
    ) -> str:
        """A convolution with `same` zeros that takes `scale` on its input; its bias plus `bias`."""
        inputs = 1 if depthwise else len(scale)
        weight = self.rng.normal(size=(out, inputs, kernel, kernel))
        weight *= (gain / (inputs * kernel**2)) ** 0.5
        weight *= scale[:, None, None, None] if depthwise else scale[:, None, None]
        own = self.rng.normal(0, 0.1, out)
        return self.node(
            "Conv",
            x,
            self.constant(weight),
            self.constant(own + bias),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
            group=len(scale) if depthwise else 1,
        )

    def model(self, result: str, size: tuple[int, int, int, int]) -> bytes:
        pooled = self.node("GlobalAveragePool", result)
        out = self.node("Flatten", pooled)
        values = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, size),
            helper.make_tensor_value_info(out, TensorProto.FLOAT, [size[0], None]),
        ]
        graph = helper.make_graph(self.nodes, "g", values[:1], values[1:], self.weights)
        opset = helper.make_opsetid("", 18)
        content: bytes = helper.make_model(
            graph, opset_imports=[opset], ir_version=9
        ).SerializeToString()
        return content


def resnet_v2(depths: Sequence[int], wide: int) -> Callable[[Builder, int, int], bytes]:
    """He et al. 2016, arXiv:1603.05027: basic blocks, or bottlenecks of `wide` times the width."""

    def build(b: Builder, batch: int, size: int) -> bytes:
        widths = [64 * 2**stage for stage, depth in enumerate(depths) for _ in range(depth)]
        enters = [64] + [w * wide for w in widths]
        norms = [b.norm(channels) for channels in enters]
        x = b.conv("x", np.ones(3), 64, 7, stride=2, bias=b.lead(norms[0]))
        x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        for i, width in enumerate(widths):
            y, scale = b.read(x, norms[i])
            y = b.node("Relu", y)
            stride = 2 if i and width > widths[i - 1] else 1
            turned = enters[i] != enters[i + 1]
            lead = b.lead(norms[i + 1]) - (0 if turned else b.lead(norms[i]))
            ones, out = np.ones(width), enters[i + 1]
            if wide > 1:
                f = b.node("Relu", b.conv(y, scale, width))
                f = b.node("Relu", b.conv(f, ones, width, 3, stride=stride))
                f = b.conv(f, ones, out, bias=lead, gain=0.2)
            else:
                f = b.node("Relu", b.conv(y, scale, width, 3, stride=stride))
                f = b.conv(f, ones, out, 3, bias=lead, gain=0.2)
            x = b.node("Add", f, b.conv(y, scale, out, stride=stride) if turned else x)
        last, scale = b.read(x, norms[-1])
        last = b.conv(b.node("Relu", last), scale, 100)
        return b.model(last, (batch, 3, size, size))

    return build


def hybrid(b: Builder, batch: int, size: int) -> bytes:
    """The attention stage of MobileNetV4-Hybrid-M (arXiv:2404.10518), from 160 channels at 1/16.

    A BatchNorm is read by a pointwise and two padded depthwise convolutions, its input by an Add.
    """
    c, heads, key = 160, 4, 64
    x = b.conv("x", np.ones(3), c, 3, stride=16)
    for _ in range(4):
        norm = b.norm(c)
        x = _inverted(b, x, c, b.lead(norm))
        y, scale = b.read(x, norm)
        q = b.conv(y, scale, heads * key)
        k, v = (
            b.conv(b.conv(y, scale, c, 3, stride=2, depthwise=True), np.ones(c), key)
            for _ in range(2)
        )
        q = b.node("Reshape", q, b.constant([batch, heads, key, -1], np.int64))
        q = b.node("Transpose", q, perm=[0, 1, 3, 2])
        k, v = (b.node("Reshape", u, b.constant([batch, 1, key, -1], np.int64)) for u in (k, v))
        weights = b.node("Mul", b.node("MatMul", q, k), b.constant(key**-0.5))
        weights = b.node("Softmax", weights, axis=-1)
        mixed = b.node("MatMul", weights, b.node("Transpose", v, perm=[0, 1, 3, 2]))
        mixed = b.node("Transpose", mixed, perm=[0, 1, 3, 2])
        shape = [batch, heads * key, size // 16, size // 16]
        mixed = b.node("Reshape", mixed, b.constant(shape, np.int64))
        x = b.node("Add", x, b.conv(mixed, np.ones(heads * key), c, bias=-b.lead(norm)))
        x = _inverted(b, x, c, 0.0)
    return b.model(x, (batch, 3, size, size))


def _inverted(b: Builder, x: str, channels: int, bias: Array | float) -> str:
    """An inverted residual block, whose last convolution takes what the trunk shall carry."""
    wide = 4 * channels
    f = b.node("Relu", b.conv(x, np.ones(channels), wide))
    f = b.node("Relu", b.conv(f, np.ones(wide), wide, 3, depthwise=True))
    return b.node("Add", x, b.conv(f, np.ones(wide), channels, bias=bias, gain=0.2))


def densenet(b: Builder, batch: int, size: int) -> bytes:
    """DenseNet-121 (arXiv:1608.06993). Its BatchNorms want different shifts of one value, so
    none can be carried; here `carried` is relu(s x + b) = s (max(x, -b/s) + b/s) instead."""
    x = b.conv("x", np.ones(3), 64, 7, stride=2)
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            y = b.node("Relu", _clipped_conv(b, x, b.norm(channels), 128))
            x = b.node("Concat", x, b.conv(y, np.ones(128), 32, 3), axis=1)
            channels += 32
        if stage < 3:
            x = _clipped_conv(b, x, b.norm(channels), channels // 2)
            x = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
            channels //= 2
    return b.model(_clipped_conv(b, x, b.norm(channels), 100), (batch, 3, size, size))


def _clipped_conv(b: Builder, x: str, norm: Norm, out: int) -> str:
    """BatchNorm, ReLU and a pointwise convolution; or a maximum and the convolution."""
    if not b.carried:
        return b.conv(b.node("Relu", b.normed(x, norm)), np.ones_like(norm.scale), out)
    x = b.node("Max", x, b.constant(-norm.lead[:, None, None]))
    y = b.conv(x, norm.scale, out)
    weight, bias = (numpy_helper.to_array(w) for w in b.weights[-2:])
    moved = bias + weight[:, :, 0, 0].astype(np.float64) @ norm.lead
    b.weights[-1] = numpy_helper.from_array(moved.astype(np.float32), b.weights[-1].name)
    return y


NETWORKS: dict[str, Callable[[Builder, int, int], bytes]] = {
    "ResNet-V2-18": resnet_v2((2, 2, 2, 2), 1),
    "ResNet-V2-50": resnet_v2((3, 4, 6, 3), 4),
    "MobileNetV4-Hybrid": hybrid,
    "DenseNet-121 with Max": densenet,
}


def pair(name: str, batch: int, size: int) -> tuple[bytes, bytes]:
    """The network as `kept` and as `carried`."""
    kept, carried = (NETWORKS[name](Builder(c), batch, size) for c in (False, True))
    return kept, carried


def errors(name: str, smallest: float) -> tuple[float, float, float, float]:
    """The largest shift, and the largest error relative to the output's RMS: of `carried` in
    float64, whose weights alone are rounded, and of `kept` and `carried` in ONNX Runtime."""
    builders = [Builder(carried, smallest) for carried in (False, True)]
    kept, carried = (NETWORKS[name](b, 1, 64) for b in builders)
    sample = {"x": np.random.default_rng(1).normal(size=(1, 3, 64, 64)).astype(np.float32)}
    truth = _only(Float64Runner(onnx.load_from_string(kept))(sample))
    unit = float(np.sqrt((truth**2).mean()))
    exact = _only(Float64Runner(onnx.load_from_string(carried))(sample))
    ran = [_only(OrtRunner(model, level="optimised")(sample)) for model in (kept, carried)]
    a, b, c = (float(np.abs(y - truth).max()) / unit for y in (exact, *ran))
    return builders[0].largest, a, b, c


def _only(outputs: Outputs) -> Array:
    (array,) = outputs.values()
    return np.asarray(array, np.float64)


def ratios(name: str, batch: int, threads: int, rounds: int, size: int = 224) -> Array:
    """The time of `carried` over that of `kept`, round by round; who goes first alternates."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = [
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for model in pair(name, batch, size)
    ]
    x = {"x": np.random.default_rng(1).normal(size=(batch, 3, size, size)).astype(np.float32)}
    clock = time.thread_time if threads == 1 else time.perf_counter
    times = np.zeros((rounds + 2, 2))
    for i in range(len(times)):
        for which in (0, 1) if i % 2 else (1, 0):
            start = clock()
            sessions[which].run(None, x)
            times[i, which] = clock() - start
    warm = times[2:]
    ratio: Array = warm[:, 1] / warm[:, 0]
    return ratio


def speed(rounds: int) -> Iterator[str]:
    yield "| network | batch | threads | carried / kept, median | p10 - p90 |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name in NETWORKS:
        for batch in (1, 8):
            for threads in (2, 1):
                found = ratios(name, batch, threads, max(10, rounds // batch))
                low, middle, high = np.quantile(found, (0.1, 0.5, 0.9))
                yield f"| {name} | {batch} | {threads} | {middle:.3f} | {low:.2f} - {high:.2f} |"


def precision() -> Iterator[str]:
    yield "| network | smallest gamma | largest shift | weights alone | kept | carried | ratio |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name in NETWORKS:
        for smallest in (0.5, 1e-1, 1e-2, 1e-4, 1e-6):
            largest, weights, kept, carried = errors(name, smallest)
            cells = f"{weights:.0e} | {kept:.1e} | {carried:.1e} | {carried / kept:.1f}"
            yield f"| {name} | {smallest:.0e} | {largest:.1f} | {cells} |"


@click.command()
@click.option("--rounds", default=80, help="Runs of each variant at batch 1; an eighth at batch 8.")
def main(rounds: int) -> None:
    """Print the tables of docs/last_mile.md."""
    for line in (*precision(), ""):
        click.echo(line)
    for line in speed(rounds):
        click.echo(line)


if __name__ == "__main__":
    main()
