"""What becomes of a scale and a shift on the way through an operator that is the same in both.

If an operator reads scale * x + shift where the original reads x, what does it make of that? Only
operators that the neutral graph knows let anything pass. Each line is an identity of real numbers:

    activation   f(s x) = s f(x)                          s > 0
    maximum      max(s x + b) = s max(x) + b              s > 0, the same in a window
    average      mean(s x + b) = s mean(x) + b            the same in a window; b = 0 if 0 is added
    rearranging  f(s x + b) = f(s) f(x) + f(b)            concat, take, transpose, reshape, repeat
    products     (s x) (t y) = s t (x y)                  along no axis that is summed over
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Add,
    Concat,
    Identity,
    MatMul,
    Mean,
    Multiply,
    Node,
    Pad,
    PixelShuffle,
    Pool,
    Reshape,
    Resize,
    Shape,
    Take,
    Transpose,
    WeightedMean,
)
from bnfold.proof.ball import ZERO, Ball
from bnfold.proof.relation import IDENTITY, Relation
from bnfold.proof.taps import UnprovableError

Shapes = Sequence[Shape | None]


def passed(node: Node, given: Sequence[Relation], shapes: Shapes) -> list[Relation]:
    """The relation of each output, for those of the inputs, whose shapes are given.

    Raises UnprovableError.
    """
    if all(each.is_identity for each in given):
        return [IDENTITY] * len(node.outputs)
    match node.op:
        case Identity():
            return [given[0]]
        case Activation():
            _require(given[0].shift.is_zero, "a shift does not pass it")
            _require(bool(np.all(_least(given[0].scale) > 0)), "a scale below 0 does not pass it")
            return [given[0]]
        case Pool() | AdaptivePool() as op:
            return [_pooled(op, given[0])]
        case Mean() as op:
            return [_reduced(op, given[0], _known(shapes[0]))]
        case Resize(spatial=spatial):
            return [_even(given[0], range(-spatial, 0))]
        case Pad() as op:
            return [_padded(op, given[0])]
        case Concat(axis=axis):
            return [_joined(axis, given, shapes)]
        case Take() as op if len(given) == 1:
            return [_taken(op.axis, part, given[0], _known(shapes[0])) for part in op.parts]
        case Transpose(perm=perm):
            return [_moved(given[0], lambda a: _full(a, len(perm)).transpose(perm))]
        case Reshape() as op:
            return [_moved(given[0], partial(_reshaped, op, _known(shapes[0])))]
        case PixelShuffle() as op:
            return [_moved(given[0], partial(_shuffled, op))]
        case Multiply():
            _require(all(each.shift.is_zero for each in given), "a shift does not pass a product")
            return [Relation(given[0].scale.times(given[1].scale))]
        case MatMul():
            return [_multiplied(*given)]
        case WeightedMean(port=port, axis=axis):
            rest = [each for index, each in enumerate(given) if index != port]
            _require(all(each.is_identity for each in rest), "its weights are others")
            return [_even(given[port], (axis,))]
        case Add() as op:
            return [_summed(op.factors or (1.0,) * len(given), given)]
    raise UnprovableError("it reads a value that is scaled or shifted")


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise UnprovableError(why)


def _least(ball: Ball) -> Array:
    return np.asarray(ball.mid - ball.rad)


def _known(shape: Shape | None) -> Shape:
    if shape is None:
        raise UnprovableError("the rank of what it reads is not known")
    return shape


def _moved(relation: Relation, change: Callable[[Array], Array]) -> Relation:
    return Relation(relation.scale.mapped(change), relation.shift.mapped(change))


def _even(relation: Relation, axes: Sequence[int]) -> Relation:
    """The relation without axes, counted from the right, along which nothing may vary."""
    return Relation(*(_flat(ball, axes) for ball in (relation.scale, relation.shift)))


def _flat(ball: Ball, axes: Sequence[int]) -> Ball:
    for axis in axes:
        if -axis <= ball.mid.ndim and ball.mid.shape[axis] != 1:
            first = ball.mapped(partial(np.take, indices=[0], axis=axis))
            same = np.all(ball.mid == first.mid) and np.all(ball.rad == first.rad)
            _require(bool(same), "a scale varies along an axis that it combines")
            ball = first
    return ball


def _pooled(op: Pool | AdaptivePool, x: Relation) -> Relation:
    spatial = len(op.kernel) if isinstance(op, Pool) else len(op.output_size)
    x = _even(x, range(-spatial, 0))
    if op.kind != "avg":
        _require(bool(np.all(_least(x.scale) > 0)), "a scale below 0 does not pass a maximum")
    elif isinstance(op, Pool) and not x.shift.is_zero:
        plain = op.divisor is None and not (op.count_include_pad and any(map(any, op.pads)))
        _require(plain, "a shift does not pass an average that counts zeros")
    return x


def _reduced(op: Mean, x: Relation, shape: Shape) -> Relation:
    rank = len(shape)
    axes = [axis - rank for axis in op.axes]
    x = _even(x, axes)
    _require(not op.total or x.shift.is_zero, "a shift does not pass a sum")
    if op.keepdims:
        return x
    return _moved(x, lambda a: _full(a, rank).squeeze(tuple(op.axes)))


def _padded(op: Pad, x: Relation) -> Relation:
    rank = len(op.pads)
    x = _even(x, [axis - rank for axis, pads in enumerate(op.pads) if any(pads)])
    if op.mode == "constant":
        same = x.shift.is_zero and op.value == 0
        _require(same, "it pads a value that is scaled or shifted")
    return x


def _full(array: Array, rank: int) -> Array:
    """An array that broadcasts from the right, with all axes of a value of that rank."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _joined(axis: int, given: Sequence[Relation], shapes: Shapes) -> Relation:
    rank = len(_known(shapes[0]))
    sizes = [_known(shape)[axis] for shape in shapes]

    def joined(balls: Sequence[Ball]) -> Ball:
        if all(ball.mid.size == 1 and not ball.rad.any() for ball in balls):
            numbers = {float(ball.mid.reshape(())) for ball in balls}
            if len(numbers) == 1:
                return Ball.exact(np.full((), numbers.pop()))
        parts = [
            ball.mapped(lambda a: _full(a, rank)).mapped(partial(_along, axis, size))
            for ball, size in zip(balls, sizes, strict=True)
        ]
        others = np.broadcast_shapes(*(part.mid.take([0], axis).shape for part in parts))

        def wide(a: Array) -> Array:
            return np.broadcast_to(a, (*others[:axis], a.shape[axis], *others[axis + 1 :]))

        spread = [part.mapped(wide) for part in parts]
        mids, rads = ([getattr(part, name) for part in spread] for name in ("mid", "rad"))
        return Ball(np.concatenate(mids, axis), np.concatenate(rads, axis))

    return Relation(joined([each.scale for each in given]), joined([each.shift for each in given]))


def _along(axis: int, size: object, array: Array) -> Array:
    """Spread over an axis whose size must be known."""
    if not isinstance(size, int):
        raise UnprovableError("a size is not known")
    shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
    if array.shape[axis] not in (1, size):
        raise UnprovableError("a size is another")
    return np.broadcast_to(array, shape)


def _taken(axis: int, part: Sequence[int] | None, x: Relation, shape: Shape) -> Relation:
    def chosen(array: Array) -> Array:
        full = _full(array, len(shape))
        if full.shape[axis] == 1:
            return array
        if part is None:
            raise UnprovableError("which of the channels it takes is not known")
        return full.take(list(part), axis)

    return _moved(x, chosen)


def _reshaped(op: Reshape, shape: Shape, array: Array) -> Array:
    """A run of axes along which nothing varies stays so; another one is spread and laid anew."""
    full = _full(array, len(shape))
    made: list[int] = []
    for merged, split in op.groups:
        if all(full.shape[axis] == 1 for axis in merged):
            made += [1] * len(split)
            continue
        for axis in merged:
            full = _along(axis, shape[axis], full)
        count = math.prod(full.shape[axis] for axis in merged)
        sizes = [op.target[axis] for axis in split]
        open_ = [index for index, size in enumerate(sizes) if not isinstance(size, int)]
        known = math.prod(size for size in sizes if isinstance(size, int))
        if len(open_) > 1 or known == 0 or count % known or (not open_ and count != known):
            raise UnprovableError("a size is not known")
        made += [size if isinstance(size, int) else count // known for size in sizes]
    return full.reshape(made)


def _shuffled(op: PixelShuffle, array: Array) -> Array:
    """Channels that go to one pixel, or come from one, must have one scale."""
    if array.ndim < 3 or array.shape[-3] == 1:
        _require(all(n == 1 for n in array.shape[-2:]), "a scale varies within an image")
        return array
    _require(all(n == 1 for n in array.shape[-2:]), "a scale varies within an image")
    area = op.factor**2
    outer, channels = array.shape[:-3], array.shape[-3]
    if op.inverse:
        wide = array.reshape(*outer, 1, channels) if op.strided else array.reshape(*outer, -1, 1)
        shape = (*outer, area, channels) if op.strided else (*outer, channels, area)
        return np.broadcast_to(wide, shape).reshape(*outer, -1, 1, 1)
    split = (area, channels // area) if op.strided else (channels // area, area)
    parts = array.reshape(*outer, *split)
    first = parts.take([0], -2 if op.strided else -1)
    _require(bool(np.all(parts == first)), "a scale varies within a pixel")
    return first.reshape(*outer, -1, 1, 1)


def _multiplied(x: Relation, y: Relation) -> Relation:
    _require(x.shift.is_zero and y.shift.is_zero, "a shift does not pass a product")
    return Relation(_flat(x.scale, (-1,)).times(_flat(y.scale, (-2,))))


def _summed(factors: Sequence[float], given: Sequence[Relation]) -> Relation:
    """Operands of unlike shapes: all have one scale, the same for everything."""
    first = given[0].scale
    same = all(each.scale.mid.size == 1 and not each.scale.rad.any() for each in given)
    same = same and all(float(each.scale.mid.reshape(())) == 1 for each in given)
    _require(same, "its operands are scaled")
    shift = ZERO
    for factor, each in zip(factors, given, strict=True):
        shift = shift.plus(each.shift.times(Ball.exact(np.full((), factor))))
    return Relation(first, shift)
