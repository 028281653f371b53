"""What each ONNX operator means: one table.

An entry takes the arguments out of attributes and inputs, as the opset of the model has them, and
asks the builder of the op in `bnfold.formats.meaning`. An operator without an entry is Opaque:
nothing passes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from bnfold.formats.meaning import (
    activation,
    arithmetic,
    layout,
    product,
    reduction,
    selection,
    spatial,
)
from bnfold.formats.meaning.operands import Constant, Tensor, computed, constant, not_linear
from bnfold.formats.meaning.steps import Meaning
from bnfold.formats.onnx import layers
from bnfold.formats.onnx.call import Call

Ints = tuple[int, ...]


def meaning(call: Call) -> Meaning:
    """What `call` does; raises NotCoveredError."""
    entry = MEANINGS.get(call.node.op_type) if call.values.is_standard(call.node) else None
    if entry is None:
        raise not_linear()
    return entry(call)


def _binary(call: Call) -> Meaning:
    """Add, Sub, Mul, Div and the n-ary Sum; before opset 7 they broadcast in another way."""
    if call.opset < 7:
        raise not_linear("it broadcasts along an axis of its own")
    operands, made = call.alike()
    match call.node.op_type, operands:
        case "Add", [x, y]:
            return arithmetic.add(x, y, made)
        case "Sub", [x, y]:
            return arithmetic.add(x, y, made, (1.0, -1.0))
        case "Mul", [x, y]:
            return arithmetic.mul(x, y, made)
        case "Div", [x, y]:
            return arithmetic.div(x, y, made)
    return arithmetic.add_all(operands, made)


def _neg(call: Call) -> Meaning:
    (x,), made = call.alike()
    if isinstance(x, Constant):
        raise not_linear()
    return arithmetic.neg(x, made)


def _abs(call: Call) -> Meaning:
    return activation.magnitude(call.x, call.made)


def _matmul(call: Call) -> Meaning:
    (left, right), made = call.alike()
    if isinstance(right, Constant) and len(right.shape) == 2:
        call.parameter(1, "weight")
    return product.matmul(left, right, made)


def _attention(call: Call) -> Meaning:
    """Of [N, heads, L, E] or [N, L, heads * E]; ALONE: no other output is read, nothing cached."""
    cached = any(call.has(index) for index in (4, 5, 6))
    if cached or any(call.uses(i) for i in (1, 2, 3)):
        raise not_linear("it keeps a cache, or its weights are read")
    queries, keys, values = (call.operand(i) for i in range(3))
    heads = call.attr("q_num_heads"), call.attr("kv_num_heads")
    if queries.shape and keys.shape and len(queries.shape) == len(keys.shape) == 4:
        heads = queries.shape[1], keys.shape[1]
    if heads[0] is None or heads[0] != heads[1]:
        raise not_linear("its queries may have more heads than its values")
    causal = bool(call.attr("is_causal", 0))
    return product.attention(queries, keys, values, call.optional(3), causal=causal)


def _softmax(call: Call) -> Meaning:
    """Along one axis; before opset 13 over that axis and all that follow."""
    x = call.x
    if call.opset >= 13:
        return product.softmax(x, call.attr("axis", -1))
    first = x.axis(call.attr("axis", 1))
    if any(size != 1 for size in x.known[first + 1 :]):
        raise not_linear()
    return product.softmax(x, first)


def _dropout(call: Call) -> Meaning:
    if call.uses(1):
        raise not_linear("its mask is read")
    training = call.opset < 7 and not call.attr("is_test", 0)
    if call.has(2):
        training = bool(constant(call.operand(2), "training_mode").load())
    return activation.dropout(call.x, training=training)


def _clip(call: Call) -> Meaning:
    low, high = call.attr("min", -math.inf), call.attr("max", math.inf)
    if call.opset >= 11:
        low, high = call.number(1, -math.inf), call.number(2, math.inf)
    return activation.clamp(call.x, low, high)


def _prelu(call: Call) -> Meaning:
    if call.opset < 7:
        raise not_linear("it broadcasts along an axis of its own")
    return activation.prelu(call.x, call.operand(1), on_channels=False)


def _reduced(call: Call) -> Meaning:
    """A reduction over axes; without any, over all, or over none if so asked."""
    axes = call.attr("axes") if not call.has(1) else call.integers(1)
    if not axes and call.attr("noop_with_empty_axes", 0):
        return layout.identity(call.x)
    keepdims = bool(call.attr("keepdims", 1))
    if call.node.op_type in ("ReduceMax", "ReduceMin"):
        kind: Literal["max", "min"] = "max" if call.node.op_type == "ReduceMax" else "min"
        return reduction.extreme(call.x, axes or (), keepdims, kind)
    total = call.node.op_type == "ReduceSum"
    return reduction.mean(call.x, axes or (), keepdims, call.made, total=total)


def _reshape(call: Call) -> Meaning:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    sizes = call.value(1)
    if sizes is not None and sizes.is_graph_input():
        raise computed("its shape")
    return layout.reshaped(call.x, call.made)


def _shuffle(call: Call) -> Meaning:
    """DepthToSpace, and SpaceToDepth, which has a mode from opset 28 on."""
    inverse = call.node.op_type == "SpaceToDepth"
    if inverse and call.opset < 28 and call.attr("mode", "DCR") != "DCR":
        raise not_linear("its mode is none that the opset has")
    strided = call.attr("mode", "DCR") == "DCR"
    return layout.pixel_shuffle(call.x, call.attr("blocksize"), inverse=inverse, strided=strided)


def _split(call: Call) -> Meaning:
    count = len(call.node.outputs)
    given = call.attr("split") or call.integers(1)
    lengths = selection.fixed(given) if given else selection.chunks(count)
    return selection.split(call.x, call.attr("axis", 0), count, lengths)


def _slice(call: Call) -> Meaning:
    if call.opset < 10:
        bounds = [call.attr(name) for name in ("starts", "ends", "axes", "steps")]
    else:
        operands = [call.optional(index) for index in (1, 2, 3, 4)]
        if isinstance(operands[2], Constant) and any(isinstance(o, Tensor) for o in operands):
            axes = {call.x.axis(axis): selection.left_open for axis in operands[2].integers()}
            return selection.taken(call.x, axes)
        bounds = [call.integers(index) for index in (1, 2, 3, 4)]
    starts, ends, given, steps = bounds
    along = range(len(starts)) if given is None else given
    cuts = zip(starts, ends, [1] * len(starts) if steps is None else steps, strict=True)
    return selection.sliced(call.x, dict(zip(along, cuts, strict=True)))


def _gather(call: Call) -> Meaning:
    found = layers.embedding(call)
    if found is not None:
        return found
    return selection.gather(call.x, call.attr("axis", 0), call.operand(1))


def _gather_nd(call: Call) -> Meaning:
    """Of indices along one axis, whose last axis is 1; torch writes x[:, [2, 0, 1]] so."""
    index = constant(call.operand(1), "index")
    if index.shape[-1:] != (1,) or call.attr("batch_dims", 0):
        raise not_linear("it takes indices of several axes")
    flat = replace(index, shape=index.shape[:-1], load=lambda: index.load()[..., 0])
    return selection.gather(call.x, 0, flat)


def _tile(call: Call) -> Meaning:
    times = call.integers(1)
    if call.opset < 6 or times is None:
        raise not_linear("it repeats along one axis")
    return selection.tile(call.x, times)


PAD_MODES = {"edge": "replicate", "wrap": "circular"}
"""ONNX's names of modes, where they are not the neutral ones."""


def _pad(call: Call) -> Meaning:
    flat: Sequence[int] = call.attr("pads") if call.opset < 11 else call.integers(1) or ()
    axes = call.integers(3) or range(call.x.rank)
    mode = call.attr("mode", "constant")
    value = call.number(2, call.attr("value", 0.0))
    sides = zip(flat[: len(axes)], flat[len(axes) :], strict=True)
    return spatial.pad(
        call.x, dict(zip(axes, sides, strict=True)), PAD_MODES.get(mode, mode), value
    )


def _resize(call: Call) -> Meaning:
    """Resize and Upsample; a crop may fill in from outside."""
    if call.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise not_linear("it crops, and may fill in from outside")
    return spatial.resize(call.x, kept=_keeps_channels(call, call.x))


def _keeps_channels(call: Call, x: Tensor) -> bool:
    """Whether batch and channels are not resized: by the axes, the scales, or the sizes."""
    axes = call.attr("axes")
    if axes is not None:
        return all(x.axis(axis) >= 2 for axis in axes)
    scales = call.attr("scales")
    if scales is None:
        given = call.optional(1 if call.opset < 11 else 2)
        scales = given.numbers().tolist() if isinstance(given, Constant) else ()
    if len(scales) == x.rank:
        return bool(scales[0] == scales[1] == 1)
    before, after = x.known[:2], (call.made.shape or ())[:2]
    return (None not in before and before == after) or _begins_with_own(call)


def _begins_with_own(call: Call) -> bool:
    """Whether the sizes are Concat(Shape(data)[0:2], ...), as torch writes those that vary."""
    joined = call.maker(3, "Concat")
    cut = None if joined is None else joined.maker(0, "Slice")
    whole = None if cut is None else cut.maker(0, "Shape")
    if cut is None or whole is None or whole.node.attributes:
        return False
    bounds = [None if (a := cut.array(i)) is None else a.tolist() for i in (1, 2, 3, 4)]
    absent = all(not cut.has(i) for i in (3, 4) if bounds[i - 1] is None)
    own = bounds[:2] == [[0], [2]] and bounds[2] in (None, [0]) and bounds[3] in (None, [1])
    stretched = call.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
    return whole.value(0) is call.value(0) and stretched and absent and own


MEANINGS: Mapping[str, Callable[[Call], Meaning]] = {
    # layers
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gemm": layers.gemm,
    "BatchNormalization": layers.batchnorm,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layers.layer_norm),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), layers.recurrent),
    "GroupNormalization": layers.group_norm,
    "InstanceNormalization": layers.instance_norm,
    # arithmetic
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), _binary),
    "Neg": _neg,
    # activation
    "Relu": lambda call: activation.relu(call.x),
    "LeakyRelu": lambda call: activation.leaky_relu(call.x, call.attr("alpha", 0.01)),
    "ThresholdedRelu": lambda call: activation.threshold(call.x, call.attr("alpha", 1.0), 0.0),
    "PRelu": _prelu,
    "Clip": _clip,
    "Abs": _abs,
    "Dropout": _dropout,
    # layout
    "Identity": lambda call: layout.identity(call.x),
    **dict.fromkeys(("Cast", "CastLike"), lambda call: layout.cast(call.x, call.made)),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": lambda call: layout.transpose(call.x, call.attr("perm")),
    "Concat": lambda call: layout.concat(call.operands, call.attr("axis", 1), call.made),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _shuffle),
    # selection
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Expand": lambda call: selection.expand(call.x, call.made),
    "Tile": _tile,
    # spatial
    "MaxPool": layers.max_pool,
    "AveragePool": layers.average_pool,
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), layers.global_pool),
    "Pad": _pad,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    # reduction and products
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduced),
    "MatMul": _matmul,
    "Einsum": lambda call: product.einsum(call.attr("equation"), call.operands, call.made),
    "Attention": _attention,
    "Softmax": _softmax,
}
