"""How an affine moves through, or is absorbed by, each kind of op: the whole table.

One file per family; each states the algebra and when it is exact. An op that is not in the table
refuses in both directions.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Conv,
    Embedding,
    Identity,
    Linear,
    MatMul,
    Mean,
    Multiply,
    Node,
    Norm,
    Op,
    Opaque,
    Pad,
    PixelShuffle,
    Pool,
    Recurrent,
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
    embedding,
    layout,
    linear,
    norm,
    pool,
    product,
    recurrent,
    shuffle,
    spatial,
    take,
    weighted_mean,
)
from bnfold.algebra.rules.move import Answer, Ask, Move, OpT, Rule, Shapes, refused

__all__ = ["RULES", "Answer", "Ask", "Move", "Rules", "Shapes"]


class Rules(NamedTuple, Generic[OpT]):
    """What one kind of op answers to an affine on its output (up) and on its input (down)."""

    up: Rule[OpT]
    down: Rule[OpT]


def _opaque(op: Opaque, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    unknown = refused(Reason.NOT_LINEAR, node, "no affine is known to pass through it")
    return op.barrier or unknown


RULES: dict[type[Op], Rules[Any]] = {
    Conv: Rules(conv.up, conv.down),
    Linear: Rules(linear.up, linear.down),
    Embedding: Rules(embedding.up, embedding.down),
    Norm: Rules(norm.up, norm.down),
    Recurrent: Rules(recurrent.up, recurrent.down),
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
    Take: Rules(take.up, take.down),
    Pad: Rules(spatial.pad_up, spatial.pad_down),
    Resize: Rules(spatial.resize_up, spatial.resize_down),
    WeightedMean: Rules(weighted_mean.up, weighted_mean.down),
    Multiply: Rules(product.multiply_up, product.multiply_down),
    MatMul: Rules(product.matmul_up, product.matmul_down),
    PixelShuffle: Rules(shuffle.up, shuffle.down),
    Opaque: Rules(_opaque, _opaque),
}
