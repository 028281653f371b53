"""What a rule answers when an affine asks to be moved through, or absorbed by, a node.

    up    an affine follows the node: "make scale * output + shift instead of output"
    down  an affine comes before the node: "read x where so far you read scale * x + shift"

An answer is a refusal, or the ways in which the node can do it, best first. Each is a Move: the
node as it becomes, if it changes, and what it asks of its own neighbours, in the same direction
unless an ask turns round. A move without asks absorbs the affine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Node, Shape
from bnfold.algebra.refusal import Reason, Refusal

Shapes = Mapping[str, Shape | None]
OpT = TypeVar("OpT")


@dataclass(frozen=True, eq=False, slots=True)
class Ask:
    """`affine` is wanted on `value`: an input of the node (up) or an output (down).

    A question that is going down may ask up, of another input of the node, if it is `turned`.
    """

    value: str
    affine: ChannelAffine
    turned: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Move:
    node: Node | None = None
    asks: tuple[Ask, ...] = ()


Answer = tuple[Move, ...] | Refusal
Rule = Callable[[OpT, Node, ChannelAffine, int, Shapes], Answer]
"""(op, node, affine, port, shapes) -> answer; `op` is the node's own, `port` the output (up) or
input (down) in question."""


def absorbed(node: Node) -> Answer:
    return (Move(node),)


def passed_up(node: Node, affine: ChannelAffine) -> Answer:
    return (Move(asks=(Ask(node.inputs[0], affine),)),)


def passed_down(node: Node, affine: ChannelAffine) -> Answer:
    return (Move(asks=(Ask(node.outputs[0], affine),)),)


def refused(reason: Reason, node: Node, why: str) -> Refusal:
    return Refusal(reason, f"{node.name} ({node.kind}): {why}", node.name)


def unknown_shape(node: Node, value: str) -> Refusal:
    return refused(Reason.UNKNOWN_SHAPE, node, f"the rank or a size of {value} is not known")


def on_features(
    node: Node, affine: ChannelAffine, value: str, axis: int | None, size: int
) -> ChannelAffine | Refusal:
    """The affine as one of a layer's features, `size` of them on `axis` of `value`."""
    if affine.axes and axis is None:
        return unknown_shape(node, value)
    return affine.spread(axis or 0, size) or _not_features(node, affine, axis or 0)


def _not_features(node: Node, affine: ChannelAffine, wanted: int) -> Refusal:
    others = [str(axis) for axis in affine.axes if axis != wanted]
    where = f"ax{'i' if len(others) == 1 else 'e'}s {' and '.join(others)}"
    if wanted in affine.axes:
        why = f"each of the layer's features, on axis {wanted}, has several scales along {where}"
        return refused(Reason.NOT_UNIFORM, node, why)
    many = f"{affine.size} channel{'' if affine.size == 1 else 's'}"
    why = f"the affine has {many} on {where}, the layer's features are on axis {wanted}"
    return refused(Reason.WRONG_AXIS, node, why)


def negative_scales(affine: ChannelAffine) -> str:
    """How many scales are below zero, and where the first is."""
    negative = np.flatnonzero(affine.scale < 0)
    if not affine.axes:
        return f"the scale {affine.scale:.3g} is negative"
    be = "is" if negative.size == 1 else "are"
    first = f"channel {negative[0]}" + (" first" if negative.size > 1 else "")
    return f"{negative.size} of {affine.size} scales {be} negative ({first})"
