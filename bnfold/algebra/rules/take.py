"""Move an affine through Take: split, chunk, slice and selection by constant indices.

down  each output takes the affine of the indices that it holds
up    the input takes the affine on those indices and the identity elsewhere; or the affine
      everywhere, if it does not vary along the divided axis and there is no other output

Exact when   SIZE      (up) the size of the divided axis is known
             DISJOINT  (up) no index goes to another output as well, or twice to this one
             KNOWN     it does not vary along the divided axis where the indices are left open
             VALUES    (down) the affine comes in at the values, not at computed indices
"""

from __future__ import annotations

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Node, Part, Take
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import Answer, Ask, Move, Shapes, passed_up, refused, unknown_shape


def up(op: Take, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    everywhere = affine.without(op.axis)
    if everywhere is not None and len(op.parts) == 1:
        return passed_up(node, everywhere)
    shape = shapes.get(node.inputs[0])
    size = None if shape is None else shape[op.axis]
    own, *others = op.parts[port], *op.parts[:port], *op.parts[port + 1 :]
    if not isinstance(size, int) or own is None or None in others:
        return unknown_shape(node, node.inputs[0])
    if len(set(own)) < len(own) or {i for part in others for i in part or ()} & set(own):
        return refused(Reason.OTHER_READERS, node, "an index of this part is taken more than once")
    whole = affine.placed(op.axis, own, size)
    if whole is None:
        return refused(Reason.MISMATCHED_CHANNELS, node, "this part has another size")
    return passed_up(node, whole)


def down(op: Take, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    if port:
        return refused(Reason.NOT_LINEAR, node, "it reads the value as indices")
    asks: list[Ask] = []
    for value, part in zip(node.outputs, op.parts, strict=True):
        own = _of_part(node, op.axis, affine, part)
        if isinstance(own, Refusal):
            return own
        asks.append(Ask(value, own))
    return (Move(asks=tuple(asks)),)


def _of_part(node: Node, axis: int, affine: ChannelAffine, part: Part) -> ChannelAffine | Refusal:
    if part is not None:
        return affine.take(axis, part)
    return affine.without(axis) or unknown_shape(node, node.inputs[0])
