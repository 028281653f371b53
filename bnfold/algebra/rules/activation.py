"""Move a scale through a positively homogeneous activation: f(s * x) = s * f(x) for s >= 0.

ReLU, LeakyReLU and PReLU, in both directions.

Exact when   NO_SHIFT   b = 0 for every channel
             SIGN       every s >= 0
"""

from __future__ import annotations

import numpy as np

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Activation, Node
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import (
    Answer,
    Shapes,
    negative_scales,
    passed_down,
    passed_up,
    refused,
)


def up(op: Activation, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return _unfit(node, affine) or passed_up(node, affine)


def down(op: Activation, node: Node, affine: ChannelAffine, port: int, shapes: Shapes) -> Answer:
    return _unfit(node, affine) or passed_down(node, affine)


def _unfit(node: Node, affine: ChannelAffine) -> Refusal | None:
    if affine.shifts:
        return refused(Reason.SHIFT, node, "a shift cannot pass an activation")
    if np.any(affine.scale < 0):
        why = f"{negative_scales(affine)}, which cannot pass an activation"
        return refused(Reason.NEGATIVE_SCALE, node, why)
    return None
