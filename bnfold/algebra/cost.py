"""What a graph costs to store and to run, as far as its shapes say.

parameters     numbers in weights and biases, a tied one once; of an affine its scale and its shift
multiply-adds  of Conv, Linear, MatMul and Affine, with 1 for a free first size, the batch
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bnfold.algebra.graph import Affine, Conv, Graph, Linear, MatMul, Node, Shape, params


@dataclass(frozen=True, slots=True)
class Cost:
    """`multiply_adds` is None where a shape that it takes is not known."""

    parameters: int
    multiply_adds: int | None


def cost(graph: Graph) -> Cost:
    works = [_multiply_adds(node, graph) for node in graph.nodes]
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


def _multiply_adds(node: Node, graph: Graph) -> int | None:
    if not isinstance(node.op, Conv | Linear | MatMul | Affine):
        return 0
    shapes = [_known(graph.shapes.get(value)) for value in (*node.inputs[:1], *node.outputs[:1])]
    first, made = shapes if len(shapes) == 2 else (None, None)
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
