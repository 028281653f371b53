"""What a graph costs to store and to run, as far as its shapes say.

parameters     numbers in weights and biases, a tied one once; of an affine its scale and its shift
multiply-adds  of Conv, Linear, MatMul and Affine, with 1 for a free first size, the batch
numbers moved  what a node reads and writes, weights included; nothing for one that only renames
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bnfold.algebra.graph import (
    Affine,
    Conv,
    Graph,
    Identity,
    Linear,
    MatMul,
    Node,
    Reshape,
    Resize,
    Shape,
    params,
)

MOVED = 4
"""Multiply-adds that moving one number, reading or writing it, is counted as.

In ONNX Runtime a CPU thread was measured to move 2 to 8 numbers in the time of 10 multiply-adds in
a convolution: the fewer where it interpolates.
"""

STARTED = 1 << 16
"""Multiply-adds that starting a node is counted as: some microseconds, whatever its size."""

Shapes = Mapping[str, Shape | None]


@dataclass(frozen=True, slots=True)
class Cost:
    """`multiply_adds` is None where a shape that it takes is not known."""

    parameters: int
    multiply_adds: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """What running nodes takes; a difference of two can be negative."""

    multiply_adds: int = 0
    moved: int = 0
    started: int = 0

    @property
    def total(self) -> int:
        """In multiply-adds."""
        return self.multiply_adds + MOVED * self.moved + STARTED * self.started

    def __add__(self, other: Work) -> Work:
        moved, started = self.moved + other.moved, self.started + other.started
        return Work(self.multiply_adds + other.multiply_adds, moved, started)

    def __sub__(self, other: Work) -> Work:
        moved, started = self.moved - other.moved, self.started - other.started
        return Work(self.multiply_adds - other.multiply_adds, moved, started)


def work(node: Node, shapes: Shapes) -> Work | None:
    """What running one node takes; None where a shape that it takes is not known."""
    if isinstance(node.op, Identity | Reshape):
        return Work()
    known = [_known(shapes.get(value)) for value in (*node.inputs, *node.outputs)]
    numbers = [math.prod(sizes) for sizes in known if sizes is not None]
    multiply_adds = _multiply_adds(node, shapes)
    if multiply_adds is None or len(numbers) < len(known):
        return None
    weights = sum(math.prod(param.shape) for _, param in params(node.op))
    taps = (2**node.op.spatial - 1) * numbers[-1] if isinstance(node.op, Resize) else 0
    return Work(multiply_adds, sum(numbers) + weights + taps, 1)


def cost(graph: Graph) -> Cost:
    works = [_multiply_adds(node, graph.shapes) for node in graph.nodes]
    known = [work for work in works if work is not None]
    return Cost(_parameters(graph), sum(known) if len(known) == len(works) else None)


def _parameters(graph: Graph) -> int:
    sizes = {
        param.name: math.prod(param.shape) for node in graph.nodes for _, param in params(node.op)
    }
    return sum(sizes.values()) + sum(map(_held, graph.nodes))


def _held(node: Node) -> int:
    """The numbers of an affine."""
    if not isinstance(node.op, Affine):
        return 0
    return node.op.affine.size * (2 if node.op.holds == "both" else 1)


def _multiply_adds(node: Node, shapes: Shapes) -> int | None:
    if not isinstance(node.op, Conv | Linear | MatMul | Affine):
        return 0
    both = [_known(shapes.get(value)) for value in (*node.inputs[:1], *node.outputs[:1])]
    first, made = both if len(both) == 2 else (None, None)
    match node.op:
        case Conv(transposed=True, weight=weight):
            elements, each = first, math.prod(weight.shape[1:])
        case Conv(weight=weight):
            elements, each = made, math.prod(weight.shape[1:])
        case Linear(weight=weight):
            elements, each = made, weight.shape[1]
        case MatMul():
            elements, each = made, (first or (1,))[-1]
            elements = elements if first else None
        case _:
            elements, each = made, 1
    return None if elements is None else math.prod(elements) * each


def _known(shape: Shape | None) -> tuple[int, ...] | None:
    """The sizes with 1 for a free batch; None if any other is free."""
    sizes = list(_sizes(shape or ()))
    known = [size for size in sizes if size is not None]
    return tuple(known) if shape is not None and len(known) == len(sizes) else None


def _sizes(shape: Shape) -> Iterator[int | None]:
    for axis, size in enumerate(shape):
        yield size if isinstance(size, int) else 1 if axis == 0 else None
