"""Which axes a change of shape merges and splits, from the shapes before and after."""

from __future__ import annotations

from bnfold.graph import Reshape, Shape, product


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
