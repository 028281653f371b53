"""Proves that a graph keeps the grammar of `graph.py`; run after every build and change."""

from __future__ import annotations

from bnfold.algebra.graph import (
    Add,
    Affine,
    Concat,
    Conv,
    Embedding,
    Graph,
    Linear,
    MatMul,
    Mean,
    Multiply,
    Node,
    Norm,
    Opaque,
    Pad,
    Param,
    PixelShuffle,
    Pool,
    Recurrent,
    Reshape,
    Shape,
    Take,
    Transpose,
    WeightedMean,
    channel_axis,
    product,
    shape_text,
)

_SEVERAL = Add | Concat | WeightedMean | Multiply | MatMul | Take
"""What reads more than one value."""


class MalformedGraphError(AssertionError):
    """A graph breaks the grammar: a fault of the reader or rule that made it."""


def check(graph: Graph) -> Graph:
    """The graph itself, after proving single assignment, order, ranks and channel counts."""
    known = set(graph.inputs)
    names: set[str] = set()
    for node in graph.nodes:
        _require(node.name not in names, f"two nodes are called {node.name!r}")
        names.add(node.name)
        for value in node.inputs:
            _require(value in known, f"{node.name} reads {value!r} before it is made")
        for value in node.outputs:
            _require(value not in known, f"{node.name} makes {value!r} a second time")
            known.add(value)
        _check_sizes(graph, node)
    for value in graph.outputs:
        _require(value in known, f"the output {value!r} is never made")
    return graph


def _check_sizes(graph: Graph, node: Node) -> None:
    shapes = [graph.shapes.get(value) for value in node.inputs]
    shape = shapes[0] if shapes else None
    if not isinstance(node.op, Opaque | Recurrent):
        makes = len(node.op.parts) if isinstance(node.op, Take) else 1
        fits = len(node.outputs) == makes
        _require(fits, f"{node.name} makes {len(node.outputs)} values, not {makes}")
        fits = len(node.inputs) >= 1 if isinstance(node.op, _SEVERAL) else len(node.inputs) == 1
        _require(fits, f"{node.name} reads {len(node.inputs)} values")
    match node.op:
        case Conv() as op:
            _check_conv(node, op, shape)
        case Linear() as op:
            rank = len(op.weight.shape)
            _require(rank == 2, f"{node.name} has a weight of rank {rank}, not 2")
            last = None if shape is None else len(shape) - 1
            _require_channels(node, shape, last, op.weight.shape[1])
            _require_bias(node, op.bias, op.weight.shape[0])
        case Recurrent() as op:
            rows, size = op.weight.shape
            _require_channels(node, shape, None if shape is None else len(shape) - 1, size)
            _require_bias(node, op.bias, rows)
        case Embedding(weight=weight):
            _require(len(weight.shape) == 2, f"{node.name} has a table of {len(weight.shape)} axes")
        case Norm() as op:
            (size,) = op.weight.shape
            _require_channels(node, shape, op.axis, size)
            _require_bias(node, op.bias, size)
        case Affine(affine=a):
            _require(len(a.axes) <= 1, f"{node.name} has an affine on the axes {a.axes}")
            fits = a.scale.shape == a.shift.shape and a.scale.ndim == len(a.axes)
            _require(fits, f"{node.name} has scales {a.scale.shape} and shifts {a.shift.shape}")
            _require_channels(node, shape, a.axis, a.size)
        case Concat(axis=axis):
            for each in shapes:
                _require_axes(node, (axis,), each)
        case Mean(axes=axes):
            _require_axes(node, axes, shape)
        case Take() as op:
            _check_take(node, op, shape)
        case Pad(pads=pads) if shape is not None:
            _require_lengths(node, len(shape), pads)
        case Pool() as op:
            _require_lengths(node, len(op.kernel), op.stride, op.pads, op.dilation or op.kernel)
        case Multiply() | MatMul():
            _require(len(shapes) == 2, f"{node.name} reads {len(shapes)} values, not 2")
            flat = isinstance(node.op, MatMul) and any(s is not None and len(s) < 2 for s in shapes)
            _require(not flat, f"{node.name} multiplies a vector")
        case PixelShuffle() as op:
            _check_shuffle(node, op, shape)
        case Transpose(perm=perm):
            whole = list(range(len(perm) if shape is None else len(shape)))
            _require(sorted(perm) == whole, f"{node.name} permutes {perm} of {shape_text(shape)}")
        case Reshape() as op:
            _check_reshape(node, op, shape)


def _check_conv(node: Node, op: Conv, shape: Shape | None) -> None:
    rank, outer = len(op.kernel), op.weight.shape[0]
    _require(rank >= 1, f"{node.name} has a weight of rank {len(op.weight.shape)}, not 3 or more")
    _require_lengths(node, rank, op.stride, op.dilation, op.pads, op.output_padding or (0,) * rank)
    _require(op.groups >= 1, f"{node.name} has {op.groups} groups")
    _require(outer % op.groups == 0, f"{node.name} has {outer} rows for {op.groups} groups")
    modes = ("zeros",) if op.transposed else ("zeros", "reflect", "replicate", "circular")
    _require(op.pad_mode in modes, f"{node.name} has the pad mode {op.pad_mode!r}")
    if shape is not None:
        fits = len(shape) - rank in (1, 2)
        _require(fits, f"{node.name} has {rank} spatial axes on shape {shape_text(shape)}")
    _require_channels(node, shape, channel_axis(op, shape), op.in_channels)
    _require_bias(node, op.bias, op.out_channels)


def _check_take(node: Node, op: Take, shape: Shape | None) -> None:
    _require_axes(node, (op.axis,), shape)
    size = None if shape is None else shape[op.axis]
    known = [i for part in op.parts for i in part or ()]
    most, least = max(known, default=0), min(known, default=0)
    fits = least >= 0 and (not isinstance(size, int) or most < size)
    _require(fits, f"{node.name} takes {least} to {most} of {size}")


def _check_shuffle(node: Node, op: PixelShuffle, shape: Shape | None) -> None:
    _require(op.factor >= 1, f"{node.name} makes squares of {op.factor} pixels")
    if shape is None:
        return
    _require(len(shape) >= 3, f"{node.name} has channels and pixels on shape {shape_text(shape)}")
    square = op.factor**2
    parts = [(size, op.factor) for size in shape[-2:]] if op.inverse else [(shape[-3], square)]
    fits = all(not isinstance(size, int) or size % part == 0 for size, part in parts)
    _require(fits, f"{node.name} divides {shape_text(shape)} by {op.factor}")


def _check_reshape(node: Node, op: Reshape, shape: Shape | None) -> None:
    before = [i for run, _ in op.groups for i in run]
    after = [j for _, run in op.groups for j in run]
    rank = len(before) if shape is None else len(shape)
    fits = before == list(range(rank)) and after == list(range(len(op.target)))
    _require(fits, f"{node.name} has runs that are not the axes of both shapes in order")
    if shape is None:
        return
    for merged, split in op.groups:
        a, b = product(tuple(shape[i] for i in merged)), product(tuple(op.target[j] for j in split))
        fits = a is None or b is None or a == b
        _require(fits, f"{node.name} turns {a} elements of {shape_text(shape)} into {b}")


def _require_channels(node: Node, shape: Shape | None, axis: int | None, size: int) -> None:
    if axis is None:
        return
    _require_axes(node, (axis,), shape)
    fits = shape is None or not isinstance(shape[axis], int) or shape[axis] == size
    _require(fits, f"{node.name} wants {size} channels on axis {axis} of {shape_text(shape)}")


def _require_axes(node: Node, axes: tuple[int, ...], shape: Shape | None) -> None:
    """Axes count from the left: one below zero would be taken for another axis than it is."""
    for axis in axes:
        fits = axis >= 0 and (shape is None or axis < len(shape))
        _require(fits, f"{node.name} has axis {axis} on shape {shape_text(shape)}")


def _require_lengths(node: Node, rank: int, *lists: tuple[object, ...]) -> None:
    for what in lists:
        _require(len(what) == rank, f"{node.name} has {len(what)} entries for rank {rank}")


def _require_bias(node: Node, bias: Param | None, size: int) -> None:
    _require(bias is None or bias.shape == (size,), f"{node.name} has a bias that is not [{size}]")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MalformedGraphError(message)
