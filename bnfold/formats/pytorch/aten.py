"""What PyTorch's ATen operators mean in the neutral graph, for every form that is made of them.

A reader hands over each call with its arguments by schema name; what this table does not know, or
what does not meet the table's conditions, becomes Opaque.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold.algebra.graph import Node, Op, Opaque, Take
from bnfold.formats.pytorch import arithmetic, arrangement, layers, products, selection
from bnfold.formats.pytorch.calls import Call, Constant, Facts, NotCoveredError, Value, float64

__all__ = ["SPLITS", "TABLE", "Call", "Constant", "Facts", "Value", "float64", "translate"]


def translate(call: Call, facts: Facts) -> tuple[Node, ...]:
    """The neutral nodes of a call: one, but for what does several things at once."""
    if steps := _steps(call, facts):
        return steps
    op = _meaning(call, facts)
    axis = products.axis_that_sums_to_one(call, op, facts) if len(call.outputs) == 1 else None
    if axis is not None:
        facts.sums_to_one[call.outputs[0]] = axis
    if isinstance(op, Take) and call.op in ("select", "unbind"):
        return selection.without_axis(call, op, facts)
    kind = "batch_norm" if "batch_norm" in call.op else call.op
    return (Node(call.name, kind, op, call.values, call.outputs),)


def _steps(call: Call, facts: Facts) -> tuple[Node, ...]:
    """What does to several axes or values what a node does to one."""
    try:
        match call.op:
            case "roll" | "flip":
                return selection.axis_by_axis(call, facts)
            case "stack":
                return arrangement.stacked(call, facts)
    except NotCoveredError:
        pass
    return ()


def _meaning(call: Call, facts: Facts) -> Op:
    rule = TABLE.get(call.op.removesuffix("_"))
    try:
        return Opaque() if rule is None else rule(call, facts)
    except NotCoveredError:
        return Opaque()


Translation = Callable[[Call, Facts], Op]

INTERPOLATIONS = ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")

SPLITS = (
    *("split", "split_with_sizes", "chunk", "tensor_split"),
    *("unsafe_split", "unsafe_chunk", "unbind"),
)
"""Operators that give a list: their outputs are its entries."""

CONVOLUTIONS = (
    *("conv1d", "conv2d", "conv3d"),
    *("convolution", "_convolution", "_convolution_mode"),
)

TABLE: dict[str, Translation] = {
    **dict.fromkeys(CONVOLUTIONS, layers.conv),
    **{f"conv_transpose{n}d": layers.conv for n in (1, 2, 3)},
    "linear": layers.linear,
    "batch_norm": layers.batch_norm,
    "_native_batch_norm_legit_no_training": layers.batch_norm,
    "_native_batch_norm_legit": layers.batch_norm,
    "native_batch_norm": layers.batch_norm,
    "_batch_norm_no_update": layers.batch_norm,
    "_native_batch_norm_legit_functional": layers.training_norm,
    "_batch_norm_with_update": layers.training_norm,
    "_batch_norm_with_update_functional": layers.training_norm,
    "cudnn_batch_norm": layers.batch_norm,
    "instance_norm": layers.batch_norm,
    **{f"max_pool{n}d": layers.max_pool for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": layers.max_pool for n in (1, 2, 3)},
    **{f"avg_pool{n}d": layers.avg_pool for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": layers.adaptive_pool for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": layers.adaptive_pool for n in (1, 2, 3)},
    "mean": layers.mean,
    "relu": layers.relu,
    **dict.fromkeys(("clamp", "clamp_min", "hardtanh", "threshold"), layers.clamp),
    "abs": layers.magnitude,
    "leaky_relu": layers.leaky_relu,
    "prelu": layers.prelu,
    "_prelu_kernel": layers.prelu,
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), layers.dropout),
    **dict.fromkeys(("feature_alpha_dropout", "dropout1d"), layers.dropout),
    **dict.fromkeys(("clone", "alias", "detach", "contiguous", "identity"), arrangement.identity),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten"), arrangement.reshaped
    ),
    **dict.fromkeys(("squeeze", "unsqueeze", "view_as", "reshape_as"), arrangement.reshaped),
    **dict.fromkeys(("to", "_to_copy"), arrangement.cast),
    "permute": arrangement.permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "t", "mT"), arrangement.transpose),
    **dict.fromkeys(("movedim", "moveaxis"), arrangement.movedim),
    **dict.fromkeys(("constant_pad_nd", "pad", "_pad_circular"), arrangement.pad),
    **{f"{k}_pad{n}d": arrangement.pad for k in ("reflection", "replication") for n in (1, 2, 3)},
    **{f"upsample_nearest{n}d": arrangement.resize for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": arrangement.resize for n in (1, 2, 3)},
    **{f"upsample_{kind}": arrangement.resize for kind in INTERPOLATIONS},
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), arrangement.pixel_shuffle),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), selection.channel_shuffle),
    "slice": selection.slice_,
    "select": selection.select,
    "narrow": selection.narrow,
    "index_select": selection.index_select,
    "index": selection.index,
    "flip": selection.flip,
    "roll": selection.roll,
    "expand": selection.expand,
    "repeat": selection.repeat,
    **dict.fromkeys(SPLITS, selection.split),
    "unbind": selection.unbind,
    **dict.fromkeys(("cat", "concat", "concatenate"), arrangement.concat),
    **dict.fromkeys(("add", "sub", "rsub", "subtract"), arithmetic.add),
    **dict.fromkeys(("mul", "multiply"), arithmetic.mul),
    **dict.fromkeys(("div", "divide", "true_divide"), arithmetic.div),
    "neg": arithmetic.negated,
    **dict.fromkeys(("matmul", "mm", "bmm"), products.matmul),
    "addmm": products.addmm,
    "einsum": products.einsum,
    "scaled_dot_product_attention": products.attention,
}
