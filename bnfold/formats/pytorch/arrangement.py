"""Rearrangement: what ATen's operators that move, join, pad or resize data mean."""

from __future__ import annotations

from bnfold.algebra.graph import Concat, Identity, Node, Op, Pad, PixelShuffle, Resize, Transpose
from bnfold.algebra.reshaping import reshape
from bnfold.formats.pytorch.calls import (
    Call,
    Facts,
    NotCoveredError,
    Value,
    axis_of,
    ints_of,
    rank_of,
)


def identity(call: Call, facts: Facts) -> Op:
    return Identity()


def cast(call: Call, facts: Facts) -> Op:
    if len(call.values) != 1 or not facts.keeps_float(call):
        raise NotCoveredError
    return Identity()


def reshaped(call: Call, facts: Facts) -> Op:
    if call.get("dtype") is not None:
        raise NotCoveredError
    source, target = (facts.shapes.get(v) for v in (call.values[0], call.outputs[0]))
    if source is None or target is None:
        raise NotCoveredError
    found = reshape(source, target)
    if found is None:
        raise NotCoveredError
    return found


def permute(call: Call, facts: Facts) -> Op:
    rank = rank_of(call, facts)
    return Transpose(tuple(axis_of(d, rank) for d in call["dims"]))


def transpose(call: Call, facts: Facts) -> Op:
    """transpose and its other names; t, mT and the like swap the last two axes."""
    rank = rank_of(call, facts)
    perm = list(range(rank))
    named = call.get("dim0") is not None or call.get("axis0") is not None
    ends = (
        [call.get(f"dim{i}" if call.get("axis0") is None else f"axis{i}") for i in (0, 1)]
        if named
        else [-2, -1]
    )
    if rank < 2:
        raise NotCoveredError
    first, second = (axis_of(end, rank) for end in ends)
    perm[first], perm[second] = second, first
    return Transpose(tuple(perm))


def movedim(call: Call, facts: Facts) -> Op:
    rank = rank_of(call, facts)
    sources, targets = (
        [axis_of(axis, rank) for axis in ints_of(call[name], 1)]
        for name in ("source", "destination")
    )
    rest = iter(axis for axis in range(rank) if axis not in sources)
    moved = dict(zip(targets, sources, strict=True))
    return Transpose(tuple(moved[i] if i in moved else next(rest) for i in range(rank)))


def concat(call: Call, facts: Facts) -> Op:
    tensors = call["tensors"]
    if not isinstance(tensors, list) or not all(isinstance(t, Value) for t in tensors):
        raise NotCoveredError
    rank = facts.rank(call.outputs[0])
    if rank is None:
        raise NotCoveredError
    return Concat(axis_of(int(call.get("dim") or 0), rank))


def stacked(call: Call, facts: Facts) -> tuple[Node, ...]:
    """stack: a new axis of size 1 for each value, along which they are concatenated."""
    rank = rank_of(call, facts)
    axis = axis_of(call["dim"], rank + 1)
    if len(call.values) != len(call["tensors"]):
        raise NotCoveredError
    nodes, parts = [], []
    for i, value in enumerate(call.values):
        shape = facts.shapes.get(value)
        wider = None if shape is None else (*shape[:axis], 1, *shape[axis:])
        op = None if shape is None or wider is None else reshape(shape, wider)
        if op is None:
            raise NotCoveredError
        part = f"{call.outputs[0]} of part {i}"
        facts.shapes[part] = wider
        nodes.append(Node(f"{call.name}[{i}]", call.op, op, (value,), (part,)))
        parts.append(part)
    return (*nodes, Node(call.name, call.op, Concat(axis), tuple(parts), call.outputs))


def pad(call: Call, facts: Facts) -> Op:
    """pad, constant_pad_nd, reflection_pad2d, ...: pairs (begin, end) from the last axis on."""
    rank = rank_of(call, facts)
    sizes = call.get("pad") or call.get("padding")
    if sizes is None:
        raise NotCoveredError
    sides = ints_of(sizes, len(sizes))
    pairs = [(sides[i], sides[i + 1]) for i in range(0, len(sides), 2)][::-1]
    mode = call.get("mode") or MODES.get(call.op.rstrip("123d"), "constant")
    value = call.get("value")
    if not isinstance(value, int | float | None) or mode not in MODES.values():
        raise NotCoveredError
    pads = ((0, 0),) * (rank - len(pairs)) + tuple(pairs)
    return Pad(pads, mode, float(value or 0.0))


MODES = {
    "constant_pad_n": "constant",
    "reflection_pad": "reflect",
    "replication_pad": "replicate",
    "_pad_circular": "circular",
}
"""Operator, less its rank -> the mode of the neutral Pad."""


def resize(call: Call, facts: Facts) -> Op:
    return Resize(rank_of(call, facts) - 2)


def pixel_shuffle(call: Call, facts: Facts) -> Op:
    """pixel_shuffle and pixel_unshuffle."""
    inverse = call.op == "pixel_unshuffle"
    factor = call["downscale_factor" if inverse else "upscale_factor"]
    if rank_of(call, facts) < 3 or not isinstance(factor, int):
        raise NotCoveredError
    return PixelShuffle(factor, inverse)
