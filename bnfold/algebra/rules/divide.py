"""Move an affine through Take: split, chunk, slice and selection by constant indices.

down  each output takes the affine of the indices that it holds
up    the input takes the affine on those indices and the identity elsewhere; or the affine
      everywhere, if it does not vary along the divided axis and there is no other output

Exact when   SIZE      (up) the size of the divided axis is known
             DISJOINT  (up) no index goes to another output as well, or twice to this one
"""

from __future__ import annotations

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Node, Take
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rules.move import Answer, Ask, Move, Shapes, passed_up, refused, unknown_shape


def up(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op = _take(node)
    everywhere = affine.without(op.axis)
    if everywhere is not None and len(op.parts) == 1:
        return passed_up(node, everywhere)
    shape = shapes.get(node.inputs[0])
    size = None if shape is None else shape[op.axis]
    if not isinstance(size, int):
        return unknown_shape(node, node.inputs[0])
    own = op.parts[port]
    others = {i for j, part in enumerate(op.parts) if j != port for i in part}
    if len(set(own)) < len(own) or others & set(own):
        return refused(Reason.OTHER_READERS, node, "an index of this part is taken more than once")
    whole = affine.placed(op.axis, own, size)
    if whole is None:
        return refused(Reason.MISMATCHED_CHANNELS, node, "this part has another size")
    return passed_up(node, whole)


def down(node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    op = _take(node)
    parts = zip(node.outputs, op.parts, strict=True)
    return (Move(asks=tuple(Ask(value, affine.take(op.axis, part)) for value, part in parts)),)


def _take(node: Node) -> Take:
    assert isinstance(node.op, Take)
    return node.op
