"""Rearrangement: Split, Slice, Gather, Pad and Resize, as far as their arguments are constant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir

from bnfold.formats.onnx.call import Call, Meaning
from bnfold.graph import Pad, Resize, Take

PAD_MODES = {
    "constant": "constant",
    "reflect": "reflect",
    "edge": "replicate",
    "wrap": "circular",
}


def split(call: Call) -> Meaning | None:
    axis = _axis(call, call.attr("axis", 0))
    size = _size(call, axis)
    count = len(call.node.outputs)
    if axis is None or size is None or not all(value.name for value in call.node.outputs):
        return None
    lengths = call.attr("split") or _integers(call, 1)
    if lengths is None:
        if call.value(1) is not None:
            return None
        whole = -(-size // count)
        lengths = [min(whole, size - start) for start in range(0, size, whole)]
    if sum(lengths) != size or len(lengths) != count:
        return None
    starts = [sum(lengths[:i]) for i in range(count)]
    parts = tuple(tuple(range(a, a + n)) for a, n in zip(starts, lengths, strict=True))
    return Take(axis, parts), (0,)


def split_sequence(call: Call) -> tuple[Take, tuple[ir.Value, ...]] | None:
    """SplitToSequence whose entries are only taken out, each at most once, and what makes each."""
    axis = _axis(call, call.attr("axis", 0))
    size, found = _size(call, axis), call.array(1)
    (sequence,) = call.node.outputs
    if axis is None or size is None or found is None or sequence.is_graph_output():
        return None
    given = [int(n) for n in found.reshape(-1).tolist()]
    if min(given, default=0) <= 0:
        return None
    lengths = given if found.ndim else [min(given[0], size - a) for a in range(0, size, given[0])]
    if sum(lengths) != size:
        return None
    taken: dict[int, ir.Value] = {}
    for user, _ in sequence.uses():
        where = replace(call, node=user).array(1)
        if user.op_type != "SequenceAt" or user.domain != "" or where is None:
            return None
        index = int(where.reshape(-1)[0]) % len(lengths)
        if taken.setdefault(index, user.outputs[0]) is not user.outputs[0]:
            return None
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    parts = [tuple(range(a, a + n)) for a, n in zip(starts, lengths, strict=True)]
    own = sorted(taken)
    return Take(axis, tuple(parts[i] for i in own)), tuple(taken[i] for i in own)


def slice_(call: Call) -> Meaning | None:
    """A slice along one axis; the others, if named, must be taken whole."""
    shape = call.shape()
    if call.opset < 10:
        starts, ends, axes = (call.attr(name) for name in ("starts", "ends", "axes"))
        steps = None
    else:
        starts, ends, axes, steps = (_integers(call, i) for i in (1, 2, 3, 4))
        if any(call.value(i) is not None and _integers(call, i) is None for i in (3, 4)):
            return None
    if shape is None or starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else [a % len(shape) for a in axes]
    steps = [1] * len(starts) if steps is None else steps
    cut: list[tuple[int, tuple[int, ...]]] = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size: Any = shape[axis]
        if (start, step) == (0, 1) and end >= (size if isinstance(size, int) else 1 << 31):
            continue
        if not isinstance(size, int):
            return None
        end = None if step < 0 and end < -size else end
        cut.append((axis, tuple(range(size))[slice(start, end, step)]))
    if len(cut) != 1:
        return None
    return Take(cut[0][0], (cut[0][1],)), (0,)


def gather(call: Call) -> Meaning | None:
    """A selection of whole indices; a single number would take the axis away."""
    axis = _axis(call, call.attr("axis", 0))
    size = _size(call, axis)
    found = call.array(1)
    if axis is None or size is None or found is None or found.ndim != 1:
        return None
    return Take(axis, (tuple(int(i) % size for i in found.tolist()),)), (0,)


def pad(call: Call) -> Meaning | None:
    shape = call.shape()
    flat = call.attr("pads") if call.opset < 11 else _integers(call, 1)
    mode = PAD_MODES.get(call.attr("mode", "constant"))
    if shape is None or flat is None or mode is None:
        return None
    axes = list(range(len(shape)))
    if call.value(3) is not None:
        given = _integers(call, 3)
        if given is None:
            return None
        axes = [axis % len(shape) for axis in given]
    value = call.attr("value", 0.0)
    if call.value(2) is not None:
        found = call.numbers(2)
        if found is None:
            return None
        value = found.reshape(-1)[0]
    pairs = dict(zip(axes, zip(flat[: len(axes)], flat[len(axes) :], strict=True), strict=True))
    pads = tuple(pairs.get(axis, (0, 0)) for axis in range(len(shape)))
    return Pad(tuple((int(lo), int(hi)) for lo, hi in pads), mode, float(value)), (0,)


def resize(call: Call) -> Meaning | None:
    """Resize and Upsample of the spatial axes; a crop may fill in from outside."""
    before, after = call.shape(), call.out_shape
    cropped = call.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if before is None or after is None or cropped or len(before) < 3 or len(before) != len(after):
        return None
    same = all(a == b and a is not None for a, b in zip(before[:2], after[:2], strict=True))
    return (Resize(len(before) - 2), (0,)) if same else None


def _axis(call: Call, axis: int) -> int | None:
    shape = call.shape()
    return None if shape is None else axis % len(shape)


def _size(call: Call, axis: int | None) -> int | None:
    shape = call.shape()
    size: Any = None if shape is None or axis is None else shape[axis]
    return size if isinstance(size, int) else None


def _integers(call: Call, index: int) -> list[int] | None:
    found = call.array(index)
    return None if found is None else [int(i) for i in found.reshape(-1).tolist()]
