"""The linear operators of a graph as forms of what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import (
    Add,
    Affine,
    Conv,
    Identity,
    Linear,
    Node,
    Param,
    Pool,
    Shape,
)
from bnfold.proof.ball import Ball
from bnfold.proof.form import Form, average, beside, layer, total
from bnfold.proof.taps import Taps, UnprovableError, arranged, geometry_of
from bnfold.proof.written import Written


class Linearity:
    """What the linear operators of one model make of forms.

    Numbers of the candidate are `rounded`: each stands for all that are rounded to it.
    """

    def __init__(self, model: Written, *, rounded: bool) -> None:
        self.model = model
        self.rounded = rounded

    def covers(self, node: Node) -> bool:
        """Whether the operator is linear, and known so well that it has a form."""
        shapes = self.model.graph.shapes
        match node.op:
            case Conv() | Linear() | Add() | Identity():
                return True
            case Affine(affine=a):
                return not a.axes or _sizes(shapes.get(node.inputs[0]), a.axes) == a.scale.shape
            case Pool() as op:
                padded = any(map(any, op.pads))
                plain = op.divisor is None and not op.ceil_mode
                even = op.kind == "avg" and plain and (op.count_include_pad or not padded)
                return even and self._channels(node, op) is not None
        return False

    def made(self, node: Node, read: Sequence[Form], *, deep: bool = False) -> Form:
        """What `node` makes of forms. Raises UnprovableError."""
        match node.op:
            case Conv() | Linear() as op:
                geometry, offsets = geometry_of(op)
                weight = self._ball(op.weight).mapped(partial(arranged, op))
                groups = op.groups if isinstance(op, Conv) else 1
                made = layer(read[0], geometry, Taps(offsets, groups, weight), deep=deep)
                if op.bias is None:
                    return made
                return made.plus(beside(self._ball(op.bias), geometry.spatial))
            case Pool() as op:
                channels = self._channels(node, op)
                assert channels is not None
                return layer(read[0], *average(op, channels), deep=deep)
            case Affine():
                scale, shift = self._affine(node)
                return read[0].times(scale).plus(shift)
            case Add() as op:
                factors = op.factors or (1.0,) * len(read)
                parts = [
                    form.times(Ball.exact(np.full((), factor)))
                    for factor, form in zip(factors, read, strict=True)
                ]
                return total(parts, self._of_one_shape(node))
        return read[0]

    def _ball(self, param: Param) -> Ball:
        values = param.load()
        if not np.all(np.isfinite(values)):
            raise UnprovableError(f"{param.name} is not finite")
        return Ball.rounded(values, param.dtype) if self.rounded else Ball.computed(values)

    def _affine(self, node: Node) -> tuple[Ball, Ball]:
        """The scale and the shift of an affine, as they broadcast from the right."""
        assert isinstance(node.op, Affine)
        if not (
            np.all(np.isfinite(node.op.affine.scale)) and np.all(np.isfinite(node.op.affine.shift))
        ):
            raise UnprovableError("its constants are not finite")
        a, shape = node.op.affine, self.model.graph.shapes.get(node.inputs[0])

        def laid(array: Array) -> Array:
            if not a.axes:
                return array.reshape(())
            assert shape is not None
            along = dict(zip(a.axes, array.shape, strict=True))
            return array.reshape([along.get(axis, 1) for axis in range(a.axes[0], len(shape))])

        balls = [Ball.computed(a.scale), Ball.computed(a.shift)]
        if self.rounded:
            radii = self.model.radii(node)
            dtype = self.model.dtype(node.inputs[0])
            if radii is None:
                balls = [Ball.rounded(a.scale, dtype), Ball.rounded(a.shift, dtype)]
            else:
                balls = [Ball(b.mid, b.rad + rad) for b, rad in zip(balls, radii, strict=True)]
        scale, shift = (ball.mapped(laid) for ball in balls)
        if node.op.holds == "shift":
            scale = replace(scale, rad=np.zeros(()))
        if node.op.holds == "scale":
            shift = replace(shift, rad=np.zeros(()))
        return scale, shift

    def _channels(self, node: Node, op: Pool) -> int | None:
        shape = self.model.graph.shapes.get(node.inputs[0])
        along = None if shape is None else len(shape) - len(op.kernel) - 1
        size = None if shape is None or along is None or along < 0 else shape[along]
        return size if isinstance(size, int) else None

    def _of_one_shape(self, node: Node) -> bool:
        shapes = [self.model.graph.shapes.get(value) for value in node.inputs]
        return shapes[0] is not None and None not in shapes[0] and len(set(shapes)) == 1


def _sizes(shape: Shape | None, axes: Sequence[int]) -> tuple[object, ...] | None:
    return None if shape is None else tuple(shape[axis] for axis in axes)


def readers_of(nodes: Sequence[Node]) -> Mapping[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in nodes:
        for value in dict.fromkeys(node.inputs):
            found.setdefault(value, []).append(node)
    return found
