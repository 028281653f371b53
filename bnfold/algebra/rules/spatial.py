"""Move an affine through Pad and Resize, which leave the channels alone.

Pad     constant v    up    s * pad(x, v) + b = pad(s * x + b, v')       v' = s v + b
                      down  pad(s * x + b, v) = s * pad(x, v') + b       v' = (v - b) / s
        other modes   passes: they repeat what is there
Resize  passes: each output is a mean of inputs, with weights that sum to one

Exact when   CHANNELS   the affine varies along no axis that is padded or resized
             ONE_VALUE  (constant) v' is finite and the same for every channel
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Node, Pad, Resize
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import (
    Answer,
    Ask,
    Move,
    Shapes,
    passed_down,
    passed_up,
    refused,
    unknown_shape,
)


def pad_up(op: Pad, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    a = _on_unpadded(node, op, affine)
    if isinstance(a, Refusal):
        return a
    if op.mode != "constant":
        return passed_up(node, a)
    with np.errstate(all="ignore"):
        changed = _with_value(node, op, a.scale * op.value + a.shift)
    if isinstance(changed, Refusal):
        return changed
    return (Move(changed, (Ask(node.inputs[0], a),)),)


def pad_down(op: Pad, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    a = _on_unpadded(node, op, affine)
    if isinstance(a, Refusal):
        return a
    if op.mode != "constant":
        return passed_down(node, a)
    with np.errstate(all="ignore"):
        changed = _with_value(node, op, (op.value - a.shift) / a.scale)
    if isinstance(changed, Refusal):
        return changed
    return (Move(changed, (Ask(node.outputs[0], a),)),)


def resize_up(op: Resize, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    a = _on_unresized(op, node, affine, shapes)
    return a if isinstance(a, Refusal) else passed_up(node, a)


def resize_down(op: Resize, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    a = _on_unresized(op, node, affine, shapes)
    return a if isinstance(a, Refusal) else passed_down(node, a)


def _with_value(node: Node, op: Pad, values: Array) -> Node | Refusal:
    """ONE_VALUE: the node, padding with the one number that all `values` are."""
    value = float(values.flat[0])
    overflowed = np.isinf(value) and np.isfinite(op.value)
    if overflowed or np.isnan(value) or np.any(values != value):
        why = f"it pads with {op.value:g}, which would have to be another number in each channel"
        return refused(Reason.ZERO_PADDING, node, why)
    return node if value == op.value else node.with_op(replace(op, value=value))


def _on_unpadded(node: Node, op: Pad, affine: ChannelAffine) -> ChannelAffine | Refusal:
    padded = [axis for axis, sides in enumerate(op.pads) if any(sides)]
    why = "it pads the affine's own channels"
    return affine.without(*padded) or refused(Reason.WRONG_AXIS, node, why)


def _on_unresized(
    op: Resize, node: Node, affine: ChannelAffine, shapes: Shapes
) -> ChannelAffine | Refusal:
    shape = shapes.get(node.inputs[0])
    if not affine.axes:
        return affine
    if shape is None:
        return unknown_shape(node, node.inputs[0])
    why = "it resizes the affine's own channels"
    resized = range(len(shape) - op.spatial, len(shape))
    return affine.without(*resized) or refused(Reason.WRONG_AXIS, node, why)
