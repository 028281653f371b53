"""Ops that move and join data, and compute nothing: identity, reshape, transpose, concat."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.algebra.graph import Concat, Identity, PixelShuffle, Reshape, Shape, Transpose
from bnfold.algebra.refusal import Reason
from bnfold.algebra.reshaping import reshape
from bnfold.formats.meaning.operands import NotCoveredError, Operand, Tensor, not_linear, unknown
from bnfold.formats.meaning.steps import Meaning, Step, one


def identity(x: Operand) -> Meaning:
    return one(Identity(), x)


def cast(x: Tensor, made: Tensor) -> Meaning:
    """A cast to the same type; between others a value is rounded."""
    if x.dtype and x.dtype == made.dtype:
        return one(Identity(), x)
    if not x.dtype or not made.dtype:
        raise NotCoveredError(Reason.PRECISION, "what type it turns into which is not known")
    raise NotCoveredError(Reason.PRECISION, f"it turns {x.dtype} into {made.dtype}")


def reshaped(x: Tensor, made: Tensor) -> Meaning:
    """Any change of shape, as far as the shapes on both sides are known."""
    return one(runs(x.known, made.known), x)


def runs(source: Shape, target: Shape) -> Reshape:
    """The runs of axes that a change of shape merges and splits."""
    found = reshape(source, target)
    if found is None:
        raise unknown("which axes it merges and splits")
    return found


def transpose(x: Tensor, perm: Sequence[int] | None = None) -> Meaning:
    """The axes in the order `perm`, or backwards; one that there is not contradicts the model."""
    if perm is None:
        return one(Transpose(tuple(reversed(range(x.rank)))), x)
    return one(Transpose(tuple(axis + x.rank if axis < 0 else axis for axis in perm)), x)


def swapped(x: Tensor, first: int, second: int) -> Meaning:
    """Two axes change places."""
    perm = list(range(x.rank))
    a, b = x.axis(first), x.axis(second)
    if x.rank:
        perm[a], perm[b] = b, a
    return one(Transpose(tuple(perm)), x)


def moved(x: Tensor, sources: Sequence[int], targets: Sequence[int]) -> Meaning:
    """Axes go to other places; the rest keep their order."""
    from_, to = ([x.axis(axis) for axis in axes] for axes in (sources, targets))
    rest = iter(axis for axis in range(x.rank) if axis not in from_)
    placed = dict(zip(to, from_, strict=True))
    return one(Transpose(tuple(placed[i] if i in placed else next(rest) for i in range(x.rank))), x)


def concat(operands: Sequence[Operand], axis: int, made: Tensor) -> Meaning:
    return (Step(Concat(axis if axis >= 0 else made.axis(axis)), tuple(operands)),)


def stack(operands: Sequence[Operand], axis: int, made: Tensor) -> Meaning:
    """A new axis of size 1 for each, along which they are concatenated."""
    axis = made.axis(axis)
    steps: list[Step] = []
    for x in operands:
        shape = x.known if isinstance(x, Tensor) else x.shape
        wider = (*shape[:axis], 1, *shape[axis:])
        steps.append(Step(runs(shape, wider), (x,), (Tensor("", wider, x.dtype),)))
    return (*steps, Step(Concat(axis), tuple(step.makes[0] for step in steps)))


def pixel_shuffle(x: Tensor, factor: int, *, inverse: bool, strided: bool = False) -> Meaning:
    """Channels into space, or back; `strided` is the order that ONNX calls DCR."""
    if x.rank < 3:
        raise not_linear("it has no channels and pixels")
    return one(PixelShuffle(factor, inverse, strided), x)
