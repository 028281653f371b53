"""Move an affine through Take: split, chunk, slice and selection by constant indices.

down  each output takes the affine of the indices that it holds
up    an affine on the divided axis: the input takes it on those indices, the identity elsewhere;
      on another axis: the whole, if there is no other output

Exact when   SIZE      (up, same axis) the size of the divided axis is known
             DISJOINT  (up, same axis) no index goes to another output as well, or twice to this one
             ALONE     (up, another axis) the node has one output
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import ChannelAffine, identity
from bnfold.graph import Node, Take
from bnfold.refusal import Reason
from bnfold.rules.move import Answer, Ask, Move, Shapes, passed_up, refused, unknown_shape


def up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op = _take(node)
    if affine.axis != op.axis and len(op.parts) == 1:
        return passed_up(node, affine)
    if affine.axis not in (None, op.axis):
        return refused(Reason.OTHER_READERS, node, "its other parts would change too")
    shape = shapes.get(node.inputs[0])
    size = None if shape is None else shape[op.axis]
    if not isinstance(size, int):
        return unknown_shape(node, node.inputs[0])
    own = list(op.parts[port])
    others = {i for j, part in enumerate(op.parts) if j != port for i in part}
    if len(set(own)) < len(own) or others & set(own):
        return refused(Reason.OTHER_READERS, node, "an index of this part is taken more than once")
    part = affine.spread(op.axis, len(own))
    if part is None:
        return refused(Reason.MISMATCHED_CHANNELS, node, "this part has another size")
    whole = identity(op.axis, size)
    whole.scale[own], whole.shift[own] = part.scale, part.shift
    return (Move(asks=(Ask(node.inputs[0], whole),)),)


def down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op = _take(node)
    asks: list[Ask] = []
    for value, part in zip(node.outputs, op.parts, strict=True):
        own = affine
        if affine.axis == op.axis:
            index = np.array(part, np.intp)
            own = ChannelAffine(op.axis, affine.scale[index], affine.shift[index])
        asks.append(Ask(value, own))
    return (Move(asks=tuple(asks)),)


def _take(node: Node) -> Take:
    assert isinstance(node.op, Take)
    return node.op
