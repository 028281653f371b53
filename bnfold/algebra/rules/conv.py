"""Fold an affine into the convolution before it, or after it.

up    s * Conv(x) + b  ->  Conv'(x)        any rank, groups, stride, dilation, padding, transposed
        W' [Cout, Cin/g, *K]  = s[o] W[o, i, k]
        c' [Cout]             = s c + b
down  Conv(s * x + b)  ->  Conv'(x)
        W' [Cout, Cin/g, *K]  = W[o, i, k] s[i]          i counted within the group of o
        c' [Cout]             = c + sum_ik W[o, i, k] b[i]

A transposed weight is [Cin, Cout/g, *K]: output channel o = (group, column), group-major.

Exact when   FEATURES   the affine varies along the channel axis only
             PADDING    (down, b != 0) no zeros are padded in: they would not be shifted
             ALL_TAPS   (down, b != 0, transposed) every output sees every tap: stride 1 and
                        at least dilation * (k - 1) cut off on both sides
Rounding     float64 inside, one rounding to W's dtype
Source       Ioffe & Szegedy 2015, arXiv:1502.03167, 3.1; Jacob et al. 2018, arXiv:1712.05877, 3.2
"""

from __future__ import annotations

from dataclasses import replace

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Conv, Node, Param, channel_axis
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import Answer, Shapes, absorbed, on_features, refused


def up(op: Conv, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    (value,) = node.outputs
    axis = channel_axis(op, shapes.get(value))
    a = on_features(node, affine, value, axis, op.out_channels)
    if isinstance(a, Refusal):
        return a
    scaled = replace(op, weight=op.weight.mapped(lambda w: _scale_outputs(op, w, a.scale)))
    if op.bias is not None:
        return absorbed(
            node.with_op(replace(scaled, bias=op.bias.mapped(lambda c: a.scale * c + a.shift)))
        )
    return absorbed(node.with_op(with_bias(scaled, node, a.shift) if a.shifts else scaled))


def down(op: Conv, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    (value,) = node.inputs
    axis = channel_axis(op, shapes.get(value))
    a = on_features(node, affine, value, axis, op.in_channels)
    if isinstance(a, Refusal):
        return a
    scaled = replace(op, weight=op.weight.mapped(lambda w: _scale_inputs(op, w, a.scale)))
    if not a.shifts:
        return absorbed(node.with_op(scaled))
    if refusal := _sees_unshifted(node, op):
        return refusal
    weight, old = op.weight, op.bias

    def drift() -> Array:
        return _sum_per_output(op, _scale_inputs(op, weight.load(), a.shift))

    if old is None:
        bias = Param.of(f"{node.name}.bias", (op.out_channels,), weight, drift, weight)
    else:
        bias = old.mapped(lambda c: c + drift())
    return absorbed(node.with_op(replace(scaled, bias=bias)))


def with_bias(op: Conv, node: Node, values: Array) -> Conv:
    """`op`, which has no bias, with one of `values` [Cout] in the weight's dtype."""
    return replace(
        op, bias=Param(f"{node.name}.bias", values.shape, op.weight.dtype, lambda: values)
    )


def _sees_unshifted(node: Node, op: Conv) -> Refusal | None:
    """PADDING and ALL_TAPS."""
    if op.transposed:
        spare = op.output_padding or (0,) * len(op.kernel)
        reach = [d * (k - 1) for d, k in zip(op.dilation, op.kernel, strict=True)]
        cut = all(
            min(lo, hi - extra) >= r
            for (lo, hi), extra, r in zip(op.pads, spare, reach, strict=True)
        )
        if cut and all(s == 1 for s in op.stride):
            return None
        why = "its outputs at the border or between strides see only some of the kernel's taps"
        return refused(Reason.PARTIAL_TAPS, node, why)
    if op.pad_mode == "zeros" and any(lo > 0 or hi > 0 for lo, hi in op.pads):
        pads = "x".join(f"{lo}+{hi}" for lo, hi in op.pads)
        why = f"it pads its input with zeros ({pads}), which the shift would not reach"
        return refused(Reason.ZERO_PADDING, node, why)
    return None


def _grouped(op: Conv, weight: Array) -> Array:
    """View [groups, outer/groups, inner, taps]: outer is Cout, or Cin if transposed."""
    outer, inner = weight.shape[:2]
    return weight.reshape(op.groups, outer // op.groups, inner, -1)


def _scale_outputs(op: Conv, weight: Array, values: Array) -> Array:
    by_group = values.reshape(op.groups, -1)
    lined = by_group[:, None, :, None] if op.transposed else by_group[:, :, None, None]
    return (_grouped(op, weight) * lined).reshape(weight.shape)


def _scale_inputs(op: Conv, weight: Array, values: Array) -> Array:
    by_group = values.reshape(op.groups, -1)
    lined = by_group[:, :, None, None] if op.transposed else by_group[:, None, :, None]
    return (_grouped(op, weight) * lined).reshape(weight.shape)


def _sum_per_output(op: Conv, weight: Array) -> Array:
    """The sum over inputs and taps of a weight, [Cout]."""
    total: Array = _grouped(op, weight).sum((1, 3) if op.transposed else (2, 3))
    return total.reshape(-1)
