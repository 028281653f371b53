"""Where in a graph branches can be merged: at sums, and at convolutions in a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bnfold.affine import UNIT, ChannelAffine
from bnfold.branches import Branch, branch_of, composed, is_pointwise, summed
from bnfold.flow import Flow
from bnfold.graph import Add, Affine, Conv, Identity, Node, Pool


@dataclass(frozen=True, eq=False, slots=True)
class Merging:
    """`result` is a node with its new op; `gone` dissolves, and `value` is read in its place.

    `branches` are the nodes whose work the result has taken over.
    """

    result: Node
    branches: tuple[Node, ...]
    gone: Node
    value: str

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.result, *self.branches, self.gone)


def sum_at(flow: Flow, add: Node) -> Merging | None:
    """What a sum and the branches that meet in it can become, if all of them merge."""
    assert isinstance(add.op, Add)
    signs = add.op.signs or (1.0,) * len(add.inputs)
    makers = [_branch_maker(flow, value) for value in add.inputs]
    roots = {
        value if maker is None else maker.inputs[0]
        for value, maker in zip(add.inputs, makers, strict=True)
    }
    if len(roots) != 1:
        return None
    (root,) = roots
    convs = [i for i, n in enumerate(makers) if n is not None and isinstance(n.op, Conv)]
    if not convs:
        return _affine_sum(add, list(zip(makers, signs, strict=True)))
    wide = max(convs, key=lambda i: math.prod(_conv(makers[i]).weight.shape))
    main = Branch(makers[wide], _conv(makers[wide]), signs[wide])
    others = [
        branch_of(makers[i], main.conv, signs[i], flow.shapes.get(root))
        for i in range(len(makers))
        if i != wide
    ]
    fitting = [other for other in others if other is not None]
    op = summed(main, fitting) if len(fitting) == len(others) else None
    if op is None:
        return None
    assert main.node is not None
    branches = tuple(other.node for other in fitting if other.node is not None)
    return Merging(main.node.with_op(op), branches, add, main.node.outputs[0])


def _branch_maker(flow: Flow, value: str) -> Node | None:
    """The node between the root and a sum; None where the sum reads the root itself."""
    maker = flow.maker(value) if flow.read_once(value) else None
    while maker is not None and isinstance(maker.op, Identity):
        (value,) = maker.inputs
        maker = flow.maker(value) if flow.read_once(value) else None
    linear = maker is not None and isinstance(maker.op, Conv | Affine | Pool)
    return maker if linear else None


def _affine_sum(add: Node, terms: list[tuple[Node | None, float]]) -> Merging | None:
    """s * x + b + x as one affine, held by the first BatchNorm among the terms."""
    total: ChannelAffine | None = None
    for node, sign in terms:
        if node is not None and not isinstance(node.op, Affine):
            return None
        own = node.op.affine if node is not None and isinstance(node.op, Affine) else UNIT
        total = own.times(sign) if total is None else total.plus(own.times(sign))
    nodes = [node for node, _ in terms if node is not None]
    holders = [n for n in nodes if isinstance(n.op, Affine) and n.op.holds == "both"]
    if not holders or total is None:
        return None
    holder = holders[0]
    assert isinstance(holder.op, Affine)
    own = holder.op.affine
    total = total if own.axis is None else total.spread(own.axis, own.size)
    if total is None or len(total.axes) > 1:
        return None
    branches = tuple(node for node in nodes if node is not holder)
    result = holder.with_op(replace(holder.op, affine=total))
    return Merging(result, branches, add, holder.outputs[0])


def composition_at(flow: Flow, second: Node) -> Merging | None:
    """What a convolution and the one before it can become."""
    value = second.inputs[0]
    first = flow.maker(value)
    if first is None or not isinstance(first.op, Conv) or not flow.read_once(value):
        return None
    assert isinstance(second.op, Conv)
    stays = second if is_pointwise(first.op) else first
    op = composed(first.op, second.op, stays.name)
    if op is None:
        return None
    if stays is second:
        return Merging(second.with_op(op), (first,), first, first.inputs[0])
    return Merging(first.with_op(op), (second,), second, first.outputs[0])


def _conv(node: Node | None) -> Conv:
    assert node is not None
    assert isinstance(node.op, Conv)
    return node.op
