"""Which axes a change of shape merges and splits, and what becomes of an affine on them."""

from __future__ import annotations

import math
import operator

import numpy as np

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Groups, Reshape, Shape, product


def reshape(source: Shape, target: Shape) -> Reshape | None:
    """The runs of axes that a reshape from `source` to `target` merges and splits; None if unclear.

    The shapes are cut wherever the products of the sizes from the left agree, and what then holds
    unknown sizes also where those from the right do. A size without even a name equals another only
    where each shape has just that one unknown, and only if every other size then fits.
    """
    lone = sum(not isinstance(size, int) for size in (*source, *target)) <= 2
    runs = _runs(source, target, lone)
    *certain, rest = runs or [(len(source), len(target))]
    i, j = len(source) - rest[0], len(target) - rest[1]
    if runs is None or None in (product(source[i:]), product(target[j:])):
        backwards = _runs(source[i:][::-1], target[j:][::-1], lone=False)
        if runs is None and backwards is None:
            return None
        runs = [*certain, *(backwards[::-1] if backwards else [rest])]
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    for m, n in runs:
        groups.append((tuple(range(i, i + m)), tuple(range(j, j + n))))
        i, j = i + m, j + n
    return Reshape(tuple(groups), target)


def _runs(source: Shape, target: Shape, lone: bool) -> list[tuple[int, int]] | None:
    """How many axes of either shape form each run, from the left; None if the shapes disagree."""
    runs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(source) and j < len(target):
        if source[i] == target[j] and (source[i] is not None or lone):
            cut: tuple[int, int] | None = (1, 1)
        else:
            cut = _shortest_equal_run(source[i:], target[j:])
        if cut is None:
            return None
        runs.append(cut)
        i, j = i + cut[0], j + cut[1]
    if i < len(source) or j < len(target):
        if not all(size == 1 for size in (*source[i:], *target[j:])):
            return None
        runs.append((len(source) - i, len(target) - j))
    return runs


def _shortest_equal_run(source: Shape, target: Shape) -> tuple[int, int] | None:
    """How many sizes from either front have the same product, as few as possible.

    An unknown size can only be matched by running to the end of both shapes.
    """
    m = n = 1
    while True:
        left, right = source[:m], target[:n]
        a, b = product(left), product(right)
        if a is None or b is None:
            return (len(source), len(target))
        if a == b:
            return m, n
        if a < b and m < len(source):
            m += 1
        elif b < a and n < len(target):
            n += 1
        else:
            return None


def regrouped(
    affine: ChannelAffine, groups: Groups, here: Shape, there: Shape
) -> ChannelAffine | None:
    """The affine after runs of the axes of `here` have become runs of those of `there`.

    The numbers of a run are lined up in the order of its elements, and repeated until they fill
    the new axes but the first, along which they may go on repeating: its size does not matter,
    before or after. None if another size is not known, or the numbers do not fit it.
    """
    affine = affine.reduced()
    axes: list[int] = []
    lengths: dict[int, int] = {}
    line: list[int] = []
    repeats: list[int] = []
    shape: list[int] = []
    for before, after in groups:
        if not set(before) & set(affine.axes):
            continue
        sizes = _inner_sizes(tuple(here[i] for i in before), tuple(there[j] for j in after))
        if sizes is None or any(map(operator.mod, sizes[0], map(affine.length, before[1:]))):
            return None
        own = (affine.length(before[0]), *sizes[0])
        whole, inner = math.prod(own), math.prod(sizes[1])
        filled = math.lcm(whole, inner)
        axes += after
        lengths.update(zip(before, own, strict=True))
        line.append(whole)
        repeats.append(filled // whole)
        shape += [filled // inner, *sizes[1]]
    laid = affine.laid_out(lengths)
    scale, shift = (np.tile(a.reshape(line), repeats) for a in (laid.scale, laid.shift))
    return ChannelAffine(tuple(axes), scale.reshape(shape), shift.reshape(shape)).reduced()


def _inner_sizes(own: Shape, others: Shape) -> tuple[list[int], list[int]] | None:
    """All sizes but the first of two runs of equal product; None if one is not known.

    Where it is the only one of its run, a missing size is worked out from the other run.
    """
    left, right = _completed(own, others), _completed(others, own)
    a, b = product(left), product(right)
    if 0 in (a, b) or (a != b and None not in (a, b)):
        return None
    first, second = ([s for s in run[1:] if isinstance(s, int)] for run in (left, right))
    complete = len(first) + 1 == len(own) and len(second) + 1 == len(others)
    return (first, second) if complete and 0 not in (*first, *second) else None


def _completed(own: Shape, others: Shape) -> Shape:
    """`own` with its only unknown size, if all those of `others` are known."""
    total, known = product(others), math.prod(s for s in own if isinstance(s, int))
    if total is None or known == 0 or sum(not isinstance(s, int) for s in own) != 1:
        return own
    return tuple(s if isinstance(s, int) else total // known for s in own)
