"""What PyTorch's ATen operators mean, for every form that is made of them: one table.

An ExportedProgram and TorchScript call the same operators with the same schemas. A reader hands
over each call with its arguments by schema name; an entry here takes these out and asks the
builder of the op in `bnfold.formats.meaning`. An operator without an entry is Opaque: nothing
passes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from bnfold.algebra.graph import Conv, Node, Op, Opaque
from bnfold.formats.meaning import (
    activation,
    arithmetic,
    layers,
    layout,
    product,
    reduction,
    selection,
    spatial,
)
from bnfold.formats.meaning.operands import Constant, Operand, Tensor, not_linear
from bnfold.formats.meaning.steps import Meaning, Native, nodes_of
from bnfold.formats.pytorch import recurrent, windows
from bnfold.formats.pytorch.calls import Call, Facts, Stored, float64

__all__ = ["SPLITS", "TABLE", "Call", "Facts", "Stored", "Tensor", "float64", "translate"]

Translation = Callable[[Call], Meaning]


def translate(call: Call) -> tuple[Node, ...]:
    """The neutral nodes of a call: one, but for what does several things, or reads constants."""
    facts = call.facts
    kind = "batch_norm" if "batch_norm" in call.op else call.op
    native = Native(call.name, kind, call.values, call.outputs, call.op in BATCHNORMS + UPDATING)
    read: dict[str, Constant] = {}

    def name_of(operand: Operand) -> str:
        if isinstance(operand, Constant):
            read[f"{operand.name} as data of {call.name}"] = operand
            return f"{operand.name} as data of {call.name}"
        return operand.name

    found = nodes_of(native, lambda: _meaning(call), name_of)
    facts.shapes.update(found.shapes)
    facts.shapes.update((name, operand.shape) for name, operand in read.items())
    facts.sums_to_one.update(found.sums_to_one)
    data = tuple(Node(name, "constant", Opaque(), (), (name,)) for name in read)
    return (*data, *found.nodes)


def _meaning(call: Call) -> Meaning:
    found = entry(call.op)
    if found is None:
        raise not_linear()
    return found(call)


def entry(op: str) -> Translation | None:
    """The row of an operator, of its in-place form, or of the one that copies a view."""
    name = op.removesuffix("_")
    return TABLE.get(name) or TABLE.get(name.removesuffix("_copy"))


def layer_name(op: Op) -> str:
    """The operator that takes the weight and bias of `op`, with no stride, padding or groups."""
    return f"conv{len(op.kernel)}d" if isinstance(op, Conv) else "linear"


def _add(c: Call) -> Meaning:
    """add, sub and rsub: `self` and `other`, each times a factor; `alpha` is part of one."""
    alpha = c.number("alpha", 1.0)
    factors = (1.0, -alpha if c.op.startswith("sub") else alpha)
    if c.op.startswith("rsub"):
        factors = (-alpha, 1.0)
    return arithmetic.add(c.operand("self"), c.operand("other"), c.made, factors)


def _div(c: Call) -> Meaning:
    if c.has("rounding_mode"):
        raise not_linear("it rounds its quotient")
    return arithmetic.div(c.operand("self"), c.operand("other"), c.made)


def _add_product(c: Call) -> Meaning:
    factors = c.operand("tensor1"), c.operand("tensor2")
    return arithmetic.add_product(c.x, *factors, c.number("value", 1.0), c.made)


def _lerp(c: Call) -> Meaning:
    return arithmetic.lerp(c.operand("self"), c.operand("end"), c.operand("weight"), c.made)


def _reshaped(c: Call) -> Meaning:
    if c.has("dtype"):
        raise not_linear("it looks at the bytes in another type")
    return layout.reshaped(c.x, c.made)


def _transpose(c: Call) -> Meaning:
    """transpose and its other names; t, mT and the like swap the last two axes."""
    named = [("dim0", "dim1"), ("axis0", "axis1")]
    first, second = next((pair for pair in named if c.has(pair[0])), ("", ""))
    if not first and c.x.rank < 2:
        return layout.identity(c.x)
    ends = (c.whole(first), c.whole(second)) if first else (-2, -1)
    return layout.swapped(c.x, *ends)


def _movedim(c: Call) -> Meaning:
    return layout.moved(c.x, c.ints("source"), c.ints("destination"))


def _pad(c: Call) -> Meaning:
    """pad, constant_pad_nd, reflection_pad2d, ...: pairs (begin, end) from the last axis on."""
    sides = c.ints("pad" if c.has("pad") else "padding", 2)
    pairs = enumerate(zip(sides[::2], sides[1::2], strict=True), 1)
    mode = c.get("mode") or MODES.get(c.op.removesuffix("_copy").rstrip("123d"), "constant")
    return spatial.pad(c.x, {-i: pair for i, pair in pairs}, mode, c.number("value", 0.0))


MODES = {
    "reflection_pad": "reflect",
    "replication_pad": "replicate",
    "_pad_circular": "circular",
}
"""Operator, less its rank -> the mode of the neutral Pad; the others pad with a constant."""


def _pixel_shuffle(c: Call) -> Meaning:
    inverse = c.op == "pixel_unshuffle"
    factor = c.whole("downscale_factor" if inverse else "upscale_factor")
    return layout.pixel_shuffle(c.x, factor, inverse=inverse)


def _slice(c: Call) -> Meaning:
    cut = c.whole("start", 0), c.whole("end", selection.END), c.whole("step", 1)
    return selection.sliced(c.x, {c.whole("dim", 0): cut})


def _narrow(c: Call) -> Meaning:
    axis, start, length = c.x.axis(c.whole("dim")), c.whole("start"), c.whole("length")
    if start < 0:
        start += c.x.size(axis)
    return selection.sliced(c.x, {axis: (start, start + length, 1)})


def _select(c: Call) -> Meaning:
    """One index, without its axis."""
    chosen = c.whole("index")
    index = Constant("its index", (), "int64", lambda: np.array(chosen))
    return selection.gather(c.x, c.whole("dim"), index)


def _index(c: Call) -> Meaning:
    """x[:, [2, 0, 1]]: one list of indices, for one axis."""
    entries = c["indices"] if isinstance(c["indices"], list) else []
    given = [(axis, entry) for axis, entry in enumerate(entries) if entry is not None]
    if len(given) != 1 or not isinstance(given[0][1], Tensor | Constant):
        raise not_linear("it takes indices of several axes")
    ((axis, index),) = given
    if selection.masked(index):
        raise not_linear("it takes what a mask says")
    return selection.gather(c.x, axis, index)


def _flip(c: Call) -> Meaning:
    axes = {"fliplr": (1,), "flipud": (0,)}.get(c.op) or c.ints("dims")
    return selection.flip(c.x, axes)


def _rot90(c: Call) -> Meaning:
    """k quarter turns are a flip and a transposition, or two flips."""
    first, second = (c.x.axis(axis) for axis in c.ints("dims"))
    return selection.rotate(c.x, c.whole("k"), first, second)


def _roll(c: Call) -> Meaning:
    return selection.roll(c.x, c.ints("shifts"), c.ints("dims") if c.get("dims") else ())


def _repeat_each(c: Call) -> Meaning:
    if not c.has("dim"):
        raise not_linear("it repeats along all axes at once")
    return selection.repeat_each(c.x, c.whole("repeats"), c.whole("dim"))


def _split(c: Call) -> Meaning:
    """split, split_with_sizes, chunk, tensor_split: one output for each part."""
    return selection.split(c.x, c.whole("dim", 0), len(c.outputs), _lengths(c))


def _lengths(c: Call) -> selection.Lengths:
    if c.has("chunks"):
        return selection.chunks(c.whole("chunks"))
    if c.has("sections"):
        return selection.sections(c.whole("sections"))
    if c.has("indices"):
        return selection.cut_at(c.ints("indices"))
    name = "split_size" if c.has("split_size") else "split_sizes"
    alone = isinstance(c[name], int)
    return selection.runs_of(c.whole(name)) if alone else selection.fixed(c.ints(name))


def _reduced(c: Call) -> Meaning:
    """mean and sum, over all axes where none is given."""
    if c.has("dtype"):
        raise not_linear("it computes in another type")
    axes = c.ints("dim") if c.get("dim") else ()
    return reduction.mean(c.x, axes, c.flag("keepdim"), c.made, total=c.op == "sum")


def _extreme(c: Call) -> Meaning:
    """Over axes; of two tensors it is another operator of the same name."""
    if c.has("other"):
        raise not_linear()
    if len(c.outputs) > 1:
        raise not_linear("its indices are read")
    given = c.get("dim")
    axes = () if given is None or given == [] else c.ints("dim")
    return reduction.extreme(c.x, axes, c.flag("keepdim"), "max" if "max" in c.op else "min")


def _clamp(c: Call) -> Meaning:
    """clamp, clamp_min, clamp_max, hardtanh."""
    low = next((c.number(n) for n in ("min", "min_val") if c.has(n)), -math.inf)
    high = next((c.number(n) for n in ("max", "max_val") if c.has(n)), math.inf)
    return activation.clamp(c.x, low, high)


def _rrelu(c: Call) -> Meaning:
    if c.flag("training"):
        raise not_linear("it is in train mode")
    return activation.leaky_relu(c.x, (c.number("lower") + c.number("upper")) / 2)


def _matmul(c: Call) -> Meaning:
    if c.has("out_dtype"):
        raise not_linear("it computes in another type")
    return product.matmul(
        c.operand("self"), c.operand("mat2" if c.has("mat2") else "other"), c.made
    )


def _vector(c: Call) -> Meaning:
    raise not_linear("it multiplies a vector")


def _add_matmul(c: Call) -> Meaning:
    if c.has("out_dtype"):
        raise not_linear("it computes in another type")
    names = ("mat1", "mat2") if c.has("mat1") else ("batch1", "batch2")
    factors = c.number("beta", 1.0), c.number("alpha", 1.0)
    left, right = map(c.operand, names)
    return product.add_matmul(c.operand("self"), left, right, *factors, c.made)


def _attention(c: Call) -> Meaning:
    if c.number("dropout_p", 0.0) != 0 or c.flag("enable_gqa"):
        raise not_linear("it drops weights, or shares heads")
    query, key, value = (c.operand(name) for name in ("query", "key", "value"))
    return product.attention(query, key, value, c.optional("attn_mask"), causal=c.flag("is_causal"))


INTERPOLATIONS = ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")

SPLITS = (
    *("split", "split_with_sizes", "chunk", "tensor_split"),
    *("unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "unbind"),
)
"""Operators that give a list: their outputs are its entries."""


BATCHNORMS = (
    *("batch_norm", "cudnn_batch_norm", "native_batch_norm", "instance_norm"),
    *("_native_batch_norm_legit_no_training", "_batch_norm_no_update", "_native_batch_norm_legit"),
)

UPDATING = (
    *("_native_batch_norm_legit_functional", "_batch_norm_with_update"),
    "_batch_norm_with_update_functional",
)


def _named(names: str, translation: Translation) -> dict[str, Translation]:
    return dict.fromkeys(names.split(), translation)


TABLE: Mapping[str, Translation] = {
    # layers
    **_named("conv1d conv2d conv3d convolution _convolution _convolution_mode", windows.conv),
    **_named("conv_transpose1d conv_transpose2d conv_transpose3d", windows.conv),
    "linear": lambda c: layers.linear(c.x, c.operand("weight"), c.optional("bias")),
    "embedding": lambda c: layers.embedding(c.operand("indices"), c.operand("weight")),
    **dict.fromkeys(recurrent.OPERATORS, recurrent.recurrent),
    "layer_norm": windows.layer_norm,
    "rms_norm": windows.layer_norm,
    "group_norm": windows.group_norm,
    **dict.fromkeys(BATCHNORMS, windows.batch_norm),
    **dict.fromkeys(UPDATING, windows.training_norm),
    # arithmetic
    **_named("add sub subtract rsub", _add),
    **_named(
        "mul multiply", lambda c: arithmetic.mul(c.operand("self"), c.operand("other"), c.made)
    ),
    "square": lambda c: arithmetic.mul(c.x, c.x, c.made),
    **_named("div divide true_divide", _div),
    **_named("neg negative", lambda c: arithmetic.neg(c.x, c.made)),
    "addcmul": _add_product,
    "lerp": _lerp,
    # activation
    "relu": lambda c: activation.relu(c.x),
    **_named("clamp clip clamp_min clamp_max hardtanh", _clamp),
    "threshold": lambda c: activation.threshold(c.x, c.number("threshold"), c.number("value")),
    **_named("abs absolute", lambda c: activation.magnitude(c.x, c.made)),
    "leaky_relu": lambda c: activation.leaky_relu(c.x, c.number("negative_slope")),
    "rrelu": _rrelu,
    **_named(
        "prelu _prelu_kernel",
        lambda c: activation.prelu(c.x, c.operand("weight"), on_channels=True),
    ),
    **_named(
        "dropout feature_dropout alpha_dropout feature_alpha_dropout dropout1d",
        lambda c: activation.dropout(c.x, training=c.flag("train") and c.number("p", 0.0) != 0),
    ),
    # layout
    **_named(
        "clone alias detach contiguous identity lift_fresh positive",
        lambda c: layout.identity(c.x),
    ),
    **_named("to _to_copy type_as", lambda c: layout.cast(c.x, c.made)),
    **_named("view reshape _unsafe_view flatten unflatten ravel", _reshaped),
    **_named("squeeze unsqueeze view_as reshape_as", _reshaped),
    "permute": lambda c: layout.transpose(c.x, c.ints("dims")),
    **_named("transpose swapaxes swapdims t mT", _transpose),
    "numpy_T": lambda c: layout.transpose(c.x),
    **_named("movedim moveaxis", _movedim),
    **_named(
        "cat concat concatenate",
        lambda c: layout.concat(c.operands("tensors"), c.whole("dim", 0), c.made),
    ),
    "stack": lambda c: layout.stack(c.operands("tensors"), c.whole("dim", 0), c.made),
    **_named("pixel_shuffle pixel_unshuffle", _pixel_shuffle),
    # selection
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "index": _index,
    "index_select": lambda c: selection.gather(c.x, c.whole("dim"), c.operand("index")),
    **_named(" ".join(SPLITS), _split),
    "unbind": lambda c: selection.unbind(c.x, c.whole("dim", 0), c.results),
    **_named("flip fliplr flipud", _flip),
    "roll": _roll,
    "rot90": _rot90,
    **_named("expand broadcast_to expand_as", lambda c: selection.expand(c.x, c.made)),
    "repeat": lambda c: selection.tile(c.x, c.ints("repeats")),
    "tile": lambda c: selection.tile(c.x, c.ints("dims")),
    "repeat_interleave": _repeat_each,
    **_named(
        "channel_shuffle native_channel_shuffle",
        lambda c: selection.channel_shuffle(c.x, c.whole("groups")),
    ),
    # spatial
    **_named("max_pool1d max_pool2d max_pool3d", windows.max_pool),
    **_named("max_pool2d_with_indices max_pool3d_with_indices", windows.max_pool),
    **_named("max_pool1d_with_indices", windows.max_pool),
    **_named("avg_pool1d avg_pool2d avg_pool3d", windows.avg_pool),
    **_named("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", windows.adaptive_pool),
    **_named("_adaptive_avg_pool2d _adaptive_avg_pool3d", windows.adaptive_pool),
    **_named("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", windows.adaptive_pool),
    **_named("constant_pad_nd pad _pad_circular", _pad),
    **{f"{kind}_pad{n}d": _pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
    **{f"upsample_nearest{n}d": lambda c: spatial.resize(c.x) for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": lambda c: spatial.resize(c.x) for n in (1, 2, 3)},
    **{f"upsample_{kind}": lambda c: spatial.resize(c.x) for kind in INTERPOLATIONS},
    **{f"_upsample_{kind}_aa": lambda c: spatial.resize(c.x) for kind in INTERPOLATIONS},
    # reduction and products
    **_named("mean sum", _reduced),
    **_named("amax max amin min", _extreme),
    **_named("matmul mm bmm linalg_matmul", _matmul),
    **_named("mv addmv dot vdot", _vector),
    **_named("addmm baddbmm", _add_matmul),
    "einsum": lambda c: product.einsum(c["equation"], c.operands("tensors"), c.made),
    "scaled_dot_product_attention": _attention,
    **_named("softmax _softmax", lambda c: product.softmax(c.x, c.whole("dim"))),
}
