"""Rearrangement: what ATen's operators that move, join, divide, pad or resize data mean."""

from __future__ import annotations

from typing import Any

from bnfold.formats.pytorch.calls import (
    Call,
    Facts,
    NotCoveredError,
    Value,
    axis_of,
    ints_of,
    rank_of,
)
from bnfold.graph import Concat, Identity, Op, Pad, Resize, Take, Transpose
from bnfold.reshaping import reshape


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
    rank = rank_of(call, facts)
    perm = list(range(rank))
    first, second = (axis_of(call.get(d), rank) for d in ("dim0", "dim1"))
    perm[first], perm[second] = second, first
    return Transpose(tuple(perm))


def concat(call: Call, facts: Facts) -> Op:
    tensors = call["tensors"]
    if not all(isinstance(t, Value) for t in tensors):
        raise NotCoveredError
    rank = facts.rank(call.outputs[0])
    if rank is None:
        raise NotCoveredError
    return Concat(axis_of(int(call.get("dim") or 0), rank))


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


def slice_(call: Call, facts: Facts) -> Op:
    axis = axis_of(call["dim"], rank_of(call, facts))
    size = _size(call, facts, axis)
    bounds = [call.get(name) for name in ("start", "end", "step")]
    if not all(isinstance(bound, int | None) for bound in bounds):
        raise NotCoveredError
    return Take(axis, (tuple(range(size))[slice(*bounds)],))


def index_select(call: Call, facts: Facts) -> Op:
    axis = axis_of(call["dim"], rank_of(call, facts))
    index = call["index"]
    if isinstance(index, Value) or index is None:
        raise NotCoveredError
    size = _size(call, facts, axis)
    return Take(axis, (tuple(int(i) % size for i in index.tensor.tolist()),))


def split(call: Call, facts: Facts) -> Op:
    """split, split_with_sizes, chunk: the number of outputs says into how many parts."""
    axis = axis_of(call.get("dim") or 0, rank_of(call, facts))
    size = _size(call, facts, axis)
    sizes = call.get("split_size") or call.get("split_sizes")
    if call.op == "chunk":
        sizes = -(-size // ints_of(call["chunks"], 1)[0])
    if isinstance(sizes, int):
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    lengths = ints_of(sizes, len(sizes))
    if sum(lengths) != size or len(lengths) != len(call.outputs):
        raise NotCoveredError
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return Take(axis, tuple(tuple(range(a, a + n)) for a, n in zip(starts, lengths, strict=True)))


def _size(call: Call, facts: Facts, axis: int) -> int:
    shape = facts.shapes.get(call.values[0])
    size: Any = None if shape is None else shape[axis]
    if not isinstance(size, int):
        raise NotCoveredError
    return size
