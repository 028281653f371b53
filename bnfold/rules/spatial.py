"""Move an affine through Pad and Resize, which leave the channels alone.

Pad     constant v    up    s * pad(x, v) + b = pad(s * x + b, v')       v' = s v + b
                      down  pad(s * x + b, v) = s * pad(x, v') + b       v' = (v - b) / s
        other modes   passes: they repeat what is there
Resize  passes: each output is a mean of inputs, with weights that sum to one

Exact when   CHANNELS   the affine's axis is neither padded nor resized
             ONE_VALUE  (constant) v' is finite and the same for every channel
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.affine import Array, ChannelAffine
from bnfold.graph import Node, Pad, Resize
from bnfold.refusal import Reason, Refusal
from bnfold.rules.move import (
    Answer,
    Ask,
    Move,
    Shapes,
    passed_down,
    passed_up,
    refused,
    unknown_shape,
)


def pad_up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op = _pad(node)
    if refusal := _padded_axis(node, op, affine):
        return refusal
    if op.mode != "constant":
        return passed_up(node, affine)
    with np.errstate(all="ignore"):
        changed = _with_value(node, op, affine.scale * op.value + affine.shift)
    if isinstance(changed, Refusal):
        return changed
    return (Move(changed, (Ask(node.inputs[0], affine),)),)


def pad_down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op = _pad(node)
    if refusal := _padded_axis(node, op, affine):
        return refusal
    if op.mode != "constant":
        return passed_down(node, affine)
    with np.errstate(all="ignore"):
        changed = _with_value(node, op, (op.value - affine.shift) / affine.scale)
    if isinstance(changed, Refusal):
        return changed
    return (Move(changed, (Ask(node.outputs[0], affine),)),)


def resize_up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return _resized_axis(node, affine, shapes) or passed_up(node, affine)


def resize_down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return _resized_axis(node, affine, shapes) or passed_down(node, affine)


def _with_value(node: Node, op: Pad, values: Array) -> Node | Refusal:
    """ONE_VALUE: the node, padding with the one number that all `values` are."""
    value = float(values[0])
    overflowed = np.isinf(value) and np.isfinite(op.value)
    if overflowed or np.isnan(value) or np.any(values != value):
        why = f"it pads with {op.value:g}, which would have to be another number in each channel"
        return refused(Reason.ZERO_PADDING, node, why)
    return node if value == op.value else node.with_op(replace(op, value=value))


def _padded_axis(node: Node, op: Pad, affine: ChannelAffine) -> Refusal | None:
    if affine.axis is not None and any(op.pads[affine.axis]):
        return refused(Reason.WRONG_AXIS, node, "it pads the affine's own channels")
    return None


def _resized_axis(node: Node, affine: ChannelAffine, shapes: Shapes) -> Refusal | None:
    assert isinstance(node.op, Resize)
    shape = shapes.get(node.inputs[0])
    if affine.axis is None:
        return None
    if shape is None:
        return unknown_shape(node, node.inputs[0])
    if affine.axis >= len(shape) - node.op.spatial:
        return refused(Reason.WRONG_AXIS, node, "it resizes the affine's own channels")
    return None


def _pad(node: Node) -> Pad:
    assert isinstance(node.op, Pad)
    return node.op
