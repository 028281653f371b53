"""How an affine moves through, or is absorbed by, each kind of op: the whole table.

One file per family; each states the algebra and when it is exact. An op that is not in the table
refuses in both directions.
"""

from __future__ import annotations

from typing import NamedTuple

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Conv,
    Identity,
    Linear,
    MatMul,
    Mean,
    Multiply,
    Node,
    Op,
    Opaque,
    Pad,
    PixelShuffle,
    Pool,
    Reshape,
    Resize,
    Take,
    Transpose,
    WeightedMean,
)
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rules import (
    activation,
    affine,
    combine,
    conv,
    divide,
    layout,
    linear,
    mixing,
    pool,
    product,
    shuffle,
    spatial,
)
from bnfold.algebra.rules.move import Answer, Ask, Move, Rule, Shapes, refused

__all__ = ["RULES", "Answer", "Ask", "Move", "Rules", "Shapes"]


class Rules(NamedTuple):
    """What one kind of op answers to an affine on its output (up) and on its input (down)."""

    up: Rule
    down: Rule


def _opaque(node: Node, a: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    assert isinstance(node.op, Opaque)
    unknown = refused(Reason.NOT_LINEAR, node, "no affine is known to pass through it")
    return node.op.barrier or unknown


RULES: dict[type[Op], Rules] = {
    Conv: Rules(conv.up, conv.down),
    Linear: Rules(linear.up, linear.down),
    Affine: Rules(affine.up, affine.down),
    Add: Rules(combine.add_up, combine.add_down),
    Concat: Rules(combine.concat_up, combine.concat_down),
    Pool: Rules(pool.up, pool.down),
    AdaptivePool: Rules(pool.up, pool.down),
    Mean: Rules(pool.mean_up, pool.mean_down),
    Activation: Rules(activation.up, activation.down),
    Identity: Rules(layout.identity_up, layout.identity_down),
    Transpose: Rules(layout.transpose_up, layout.transpose_down),
    Reshape: Rules(layout.reshape_up, layout.reshape_down),
    Take: Rules(divide.up, divide.down),
    Pad: Rules(spatial.pad_up, spatial.pad_down),
    Resize: Rules(spatial.resize_up, spatial.resize_down),
    WeightedMean: Rules(mixing.up, mixing.down),
    Multiply: Rules(product.multiply_up, product.multiply_down),
    MatMul: Rules(product.matmul_up, product.matmul_down),
    PixelShuffle: Rules(shuffle.up, shuffle.down),
    Opaque: Rules(_opaque, _opaque),
}
