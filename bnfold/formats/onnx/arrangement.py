"""Rearrangement: Split, Slice, Gather, Pad and Resize, as far as their arguments are constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from bnfold.algebra.graph import Identity, Pad, PixelShuffle, Reshape, Resize, Shape, Size, Take
from bnfold.algebra.reshaping import reshape
from bnfold.formats.onnx.call import Call, Meaning
from bnfold.formats.onnx.constants import Native

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
        where = _constant_behind(call, user)
        if user.op_type != "SequenceAt" or user.domain != "" or where is None:
            return None
        index = int(where.reshape(-1)[0]) % len(lengths)
        if taken.setdefault(index, user.outputs[0]) is not user.outputs[0]:
            return None
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    parts = [tuple(range(a, a + n)) for a, n in zip(starts, lengths, strict=True)]
    own = sorted(taken)
    return Take(axis, tuple(parts[i] for i in own)), tuple(taken[i] for i in own)


def _constant_behind(call: Call, user: ir.Node) -> Native | None:
    """The second input of a node that follows; exporters make it right before that node."""
    later = replace(call, node=user)
    value = later.value(1)
    maker = None if value is None else value.producer()
    if maker is not None and maker.op_type == "Constant":
        call.values.visit(maker)
    return later.array(1)


def slice_(call: Call) -> Meaning | None:
    """A selection of indices of one axis, or a piece cut out along several."""
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
    cuts: dict[int, tuple[int, int, int]] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size: Any = shape[axis]
        if (start, step) != (0, 1) or end < (size if isinstance(size, int) else 1 << 31):
            cuts[axis] = start, end, step
    taken = [_indices(shape[axis], *cut) for axis, cut in cuts.items()]
    if len(cuts) == 1 and taken[0] is not None:
        return Take(next(iter(cuts)), (taken[0],)), (0,)
    return _piece(shape, cuts)


def _indices(size: Size, start: int, end: int, step: int) -> tuple[int, ...] | None:
    if not isinstance(size, int):
        return None
    past_first = step < 0 and end < -size
    return tuple(range(size))[slice(start, None if past_first else end, step)]


def _piece(shape: Shape, cuts: Mapping[int, tuple[int, int, int]]) -> Meaning | None:
    """What is left after something is cut off at either end: a pad by less than nothing."""
    pads = [(0, 0)] * len(shape)
    for axis, (start, end, step) in cuts.items():
        size = shape[axis]
        if isinstance(size, int):
            start, end, _ = slice(start, end).indices(size)
            end -= size
        elif end >= 1 << 31:
            end = 0
        elif end >= 0:
            return None
        if step != 1 or start < 0:
            return None
        pads[axis] = -start, end
    return Pad(tuple(pads), "replicate"), (0,)


def gather(call: Call) -> Meaning | None:
    """A selection of whole indices; a single number would take the axis away."""
    axis = _axis(call, call.attr("axis", 0))
    size = _size(call, axis)
    found = call.array(1)
    if axis is None or size is None or found is None or found.ndim != 1:
        return None
    return Take(axis, (tuple(int(i) % size for i in found.tolist()),)), (0,)


def gather_one(call: Call) -> tuple[Take, Shape, Reshape] | None:
    """One index of an axis: what is taken, its shape, and that shape without the axis."""
    axis, shape = _axis(call, call.attr("axis", 0)), call.shape()
    size, found = _size(call, axis), call.array(1)
    if axis is None or shape is None or size is None or found is None or found.ndim:
        return None
    kept = (*shape[:axis], 1, *shape[axis + 1 :])
    dropped = reshape(kept, kept[:axis] + kept[axis + 1 :])
    return None if dropped is None else (Take(axis, ((int(found) % size,),)), kept, dropped)


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
    shape = call.shape()
    cropped = call.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if shape is None or cropped or len(shape) < 3:
        return None
    return (Resize(len(shape) - 2), (0,)) if _keeps_channels(call, shape) else None


def _keeps_channels(call: Call, shape: Shape) -> bool:
    """Whether batch and channels are not resized: by the axes, the scales, or the sizes."""
    axes = call.attr("axes")
    if axes is not None:
        return all(axis % len(shape) >= 2 for axis in axes)
    scales = call.attr("scales")
    if scales is None:
        found = call.numbers(1 if call.opset < 11 else 2)
        scales = () if found is None else found.tolist()
    after = call.out_shape
    if len(scales) == len(shape):
        return bool(scales[0] == scales[1] == 1)
    known = None not in shape[:2] and after is not None
    return (known and after is not None and shape[:2] == after[:2]) or _begins_with_own(call)


def _begins_with_own(call: Call) -> bool:
    """Whether the sizes are Concat(Shape(data)[0:2], ...), as torch writes those that vary."""
    joined = call.producer(3, "Concat")
    first = None if joined is None else replace(call, node=joined).producer(0, "Slice")
    cut = None if first is None else replace(call, node=first)
    whole = None if cut is None else cut.producer(0, "Shape")
    if cut is None or whole is None or whole.attributes or whole.inputs[0] is not call.value(0):
        return False
    bounds = [_integers(cut, i) for i in (1, 2, 3, 4)]
    stretched = call.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
    absent = all(cut.value(i) is None for i in (3, 4) if bounds[i - 1] is None)
    own = bounds[:2] == [[0], [2]] and bounds[2] in (None, [0]) and bounds[3] in (None, [1])
    return stretched and absent and own


def expand(call: Call) -> Meaning | None:
    """Axes of size 1 repeated: one by indices, several as the enlargement that it is."""
    source, target = call.shape(), call.out_shape
    if source is None or target is None or len(source) != len(target) or None in (*source, *target):
        return None
    wider = [axis for axis, pair in enumerate(zip(source, target, strict=True)) if len({*pair}) > 1]
    if not wider:
        return Identity(), (0,)
    size = target[wider[0]]
    if len(wider) == 1 and source[wider[0]] == 1 and isinstance(size, int):
        return Take(wider[0], ((0,) * size,)), (0,)
    return Resize(len(source) - wider[0]), (0,)


def tile(call: Call) -> Meaning | None:
    times, shape = _integers(call, 1), call.shape()
    if call.opset < 6 or times is None or shape is None or len(times) != len(shape):
        return None
    several = [axis for axis, n in enumerate(times) if n != 1]
    if not several:
        return Identity(), (0,)
    size = shape[several[0]]
    if len(several) == 1 and isinstance(size, int):
        return Take(several[0], (tuple(range(size)) * times[several[0]],)), (0,)
    return Resize(len(shape) - several[0]), (0,)


def depth_to_space(call: Call) -> Meaning | None:
    strided = call.attr("mode", "DCR") == "DCR"
    return PixelShuffle(call.attr("blocksize"), strided=strided), (0,)


def space_to_depth(call: Call) -> Meaning | None:
    if call.attr("mode", "DCR") != "DCR":  # no standard has another, and no two agree on it
        return None
    return PixelShuffle(call.attr("blocksize"), inverse=True, strided=True), (0,)


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
