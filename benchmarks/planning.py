"""How the time of a plan grows with the graph: twice the nodes should take about twice as long.

python -m benchmarks.planning [BATCHNORMS]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import click
import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import (
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Graph,
    Node,
    Op,
    Param,
    Shape,
)
from bnfold.algebra.planner import make_plan

CHANNELS = 4
FAN_IN = 200
"""Blocks of a dense network, each of which reads all before it."""


class Network:
    """Builds a graph of images with a few channels; the numbers matter to nobody."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape | None] = {"x": (1, CHANNELS, 8, 8)}
        self.rng = np.random.default_rng(0)

    def node(self, op: Op, *inputs: str, channels: int = CHANNELS) -> str:
        name = f"{type(op).__name__.lower()}{len(self.nodes)}"
        self.nodes.append(Node(name, type(op).__name__, op, inputs, (f"{name}.out",)))
        self.shapes[f"{name}.out"] = (1, channels, 8, 8)
        return f"{name}.out"

    def batchnorm(self, value: str, channels: int = CHANNELS) -> str:
        numbers: Array = self.rng.uniform(0.5, 2, size=(2, channels))
        return self.node(Affine(ChannelAffine((1,), *numbers)), value, channels=channels)

    def conv(self, value: str, kernel: int = 3, channels: int = CHANNELS) -> str:
        values: Array = self.rng.normal(size=(CHANNELS, channels, kernel, kernel))
        weight = Param(f"w{len(self.nodes)}", values.shape, "float32", lambda: values)
        pads = ((kernel // 2, kernel // 2),) * 2
        return self.node(Conv(weight, None, (1, 1), (1, 1), pads), value)

    def relu(self, value: str, channels: int = CHANNELS) -> str:
        return self.node(Activation(np.zeros(())), value, channels=channels)

    def graph(self, *outputs: str) -> Graph:
        return Graph(("x",), tuple(self.nodes), outputs, self.shapes)


def plain(net: Network, count: int) -> str:
    """conv-bn-relu, over and over."""
    value = "x"
    for _ in range(count):
        value = net.relu(net.batchnorm(net.conv(value)))
    return value


def batchnorms(net: Network, count: int) -> str:
    """BatchNorms behind one convolution."""
    value = net.conv("x")
    for _ in range(count):
        value = net.batchnorm(value)
    return net.relu(value)


def preactivated(net: Network, count: int) -> str:
    """x + conv(relu(bn(x))): no BatchNorm can go far."""
    value = net.conv("x")
    for _ in range(count):
        branch = net.conv(net.relu(net.batchnorm(value)))
        value = net.node(Add(), value, branch)
    return net.relu(value)


def residual(net: Network, count: int) -> str:
    """relu(x + bn(conv(x)))"""
    value = "x"
    for _ in range(count):
        branch = net.batchnorm(net.conv(net.relu(net.conv(value))))
        value = net.relu(net.node(Add(), value, branch))
    return value


def repvgg(net: Network, count: int) -> str:
    """relu(bn(conv3(x)) + bn(conv1(x)) + bn(x))"""
    value = "x"
    for _ in range(-(-count // 3)):
        wide, point = net.batchnorm(net.conv(value)), net.batchnorm(net.conv(value, 1))
        total = net.node(Add(), net.node(Add(), wide, point), net.batchnorm(value))
        value = net.relu(total)
    return value


def wide_sum(net: Network, count: int) -> str:
    """One sum, nested to the left, of layers with BatchNorms, and a BatchNorm behind it."""
    value = net.batchnorm(net.conv("x"))
    for _ in range(count - 1):
        value = net.node(Add(), value, net.batchnorm(net.conv(net.relu(net.conv("x")))))
    return net.relu(net.batchnorm(value))


def wide_merge(net: Network, count: int) -> str:
    """One sum, nested to the left, of layers of one value."""
    value = net.batchnorm(net.conv("x"))
    for i in range(count - 1):
        value = net.node(Add(), value, net.batchnorm(net.conv("x", 1 if i % 2 else 3)))
    return net.relu(value)


def two_values(net: Network, count: int) -> str:
    """One sum, nested to the left, of layers of two values in turn."""
    roots = ["x", net.relu("x")]
    value = net.batchnorm(net.conv("x"))
    for i in range(count - 1):
        value = net.node(Add(), value, net.batchnorm(net.conv(roots[i % 2])))
    return net.relu(value)


def placed(net: Network, count: int) -> str:
    """A BatchNorm behind a concat of sums, of each of which the second operand takes the shift."""
    sums = [
        net.node(Add(), net.relu(net.conv("x")), net.conv("x"), channels=CHANNELS)
        for _ in range(count)
    ]
    joined = net.node(Concat(1), *sums, channels=CHANNELS * count)
    return net.relu(net.batchnorm(joined, CHANNELS * count), CHANNELS * count)


def dense(net: Network, count: int) -> str:
    """DenseNet in blocks of 200: a BatchNorm of the concat of all layers before, in each."""
    value = "x"
    for _ in range(count // FAN_IN):
        parts = [net.conv(value)]
        for _ in range(FAN_IN):
            channels = CHANNELS * len(parts)
            joined = parts[0]
            if len(parts) > 1:
                joined = net.node(Concat(1), *parts, channels=channels)
            normed = net.relu(net.batchnorm(joined, channels), channels)
            parts.append(net.conv(normed, 1, channels))
        value = parts[-1]
    return value


SHAPES: tuple[Callable[[Network, int], str], ...] = (
    plain,
    batchnorms,
    preactivated,
    residual,
    repvgg,
    wide_sum,
    wide_merge,
    two_values,
    placed,
    dense,
)


def seconds(shape: Callable[[Network, int], str], count: int) -> tuple[float, int]:
    """The shorter time of two plans, and how many BatchNorms are left."""
    net = Network()
    graph = net.graph(shape(net, count))
    times: list[float] = []
    kept = 0
    for _ in range(2):
        fresh = replace(graph, shapes=dict(graph.shapes))
        start = time.perf_counter()
        plan = make_plan(fresh)
        times.append(time.perf_counter() - start)
        kept = plan.batchnorms.kept
    return min(times), kept


@click.command()
@click.argument("count", default=1000)
def main(count: int) -> None:
    """Plan graphs of COUNT and of twice COUNT BatchNorms, and print the ratio of the times."""
    click.echo(f"{'':14}{count:>9}{2 * count:>9}   ratio    left")
    for shape in SHAPES:
        (one, _), (two, left) = seconds(shape, count), seconds(shape, 2 * count)
        click.echo(f"{shape.__name__:14}{one:8.2f}s{two:8.2f}s{two / one:8.1f}{left:8}")


if __name__ == "__main__":
    main()
