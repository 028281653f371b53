"""Ops that take indices of axes: slice, split, gather, flip, roll, repeat, expand.

Each is a Take for each axis. Where a size is not known, or an index is computed, what is taken is
left open, and what does not vary along the axis still passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from bnfold.algebra.graph import Op, Part, Shape, Size, Take
from bnfold.formats.meaning.layout import runs, swapped
from bnfold.formats.meaning.operands import Operand, Tensor, not_linear, unknown
from bnfold.formats.meaning.steps import Meaning, Step, one, row

MOST_INDICES = 1 << 20
"""An axis with more indices than this is taken from as if its size were not known."""

END = 1 << 31
"""A bound that is beyond every size."""

Choice = Callable[[int], Sequence[int] | None]
"""The size of an axis -> the indices that are taken, in order; None leaves open which."""


Lengths = Callable[[int], Sequence[int]]
"""The size of an axis -> the lengths of the parts that it is divided into."""


def taken(x: Tensor, choices: Mapping[int, Choice]) -> Meaning:
    """Along each axis, counted from the left, what its choice says."""
    steps: list[tuple[Op, Shape | None]] = []
    shape = x.known
    for axis, choice in choices.items():
        part = _part(shape[axis], choice)
        shape = (*shape[:axis], None if part is None else len(part), *shape[axis + 1 :])
        steps.append((Take(axis, (part,)), shape))
    return row(x, steps)


def _part(size: Size, choice: Choice) -> Part:
    if not isinstance(size, int) or size > MOST_INDICES:
        return None
    chosen = choice(size)
    return None if chosen is None or len(chosen) > MOST_INDICES else tuple(chosen)


def sliced(x: Tensor, cuts: Mapping[int, tuple[int, int, int]]) -> Meaning:
    """(start, end, step) of each axis, bounded as Python's slices are; a negative step turns.

    An end below -size is before the first index.
    """
    return taken(
        x,
        {
            x.axis(axis): _slice(*cut)
            for axis, cut in cuts.items()
            if cut[::2] != (0, 1) or cut[1] < _end(x.known[x.axis(axis)])
        },
    )


def _end(size: Size) -> int:
    return size if isinstance(size, int) else END


def _slice(start: int, end: int, step: int) -> Choice:
    return lambda size: range(size)[start : None if step < 0 and end < -size else end : step]


def split(x: Tensor, axis: int, count: int, lengths: Lengths) -> Meaning:
    """One output for each of the lengths that the size of the axis is divided into."""
    axis = x.axis(axis)
    size = x.known[axis]
    if not isinstance(size, int) or size > MOST_INDICES:
        return one(Take(axis, (None,) * count), x)
    ends = list(accumulate(lengths(size), initial=0))
    if len(ends) != count + 1 or ends[-1] != size or ends != sorted(ends):
        raise not_linear(f"its parts do not make up axis {axis}")
    return one(Take(axis, tuple(tuple(range(a, b)) for a, b in pairwise(ends))), x)


def fixed(lengths: Sequence[int]) -> Lengths:
    return lambda size: lengths


def runs_of(length: int) -> Lengths:
    """Parts of one length; the last one may be shorter."""
    return lambda size: [min(length, size - start) for start in range(0, size, max(length, 1))]


def chunks(count: int) -> Lengths:
    """So many parts, of one length but for the last; or fewer."""
    return lambda size: runs_of(-(-size // count))(size)


def sections(count: int) -> Lengths:
    """So many parts, the first ones longer by one where their number does not divide the size."""
    return lambda size: [size // count + (i < size % count) for i in range(count)]


def cut_at(indices: Sequence[int]) -> Lengths:
    """The parts between indices, counted from either end."""

    def lengths(size: int) -> list[int]:
        inner = [min(i % size if i < 0 else i, size) for i in indices]
        return [b - a for a, b in pairwise([0, *inner, size])]

    return lengths


def gather(x: Tensor, axis: int, index: Operand) -> Meaning:
    """Whole indices of an axis, which becomes the axes of `index`: none for a single number."""
    axis = x.axis(axis)
    if isinstance(index, Tensor):
        if index.rank != 1:
            raise unknown("which indices it takes")
        return one(Take(axis, (None,)), x, index)
    chosen = index.integers()
    size = x.size(axis)
    if not all(-size <= i < size for i in chosen):
        raise not_linear(f"it takes indices that axis {axis} does not have")
    shape = (*x.known[:axis], len(chosen), *x.known[axis + 1 :])
    take = Take(axis, (tuple(i % size for i in chosen),))
    if len(index.shape) == 1:
        return one(take, x)
    target = (*x.known[:axis], *index.shape, *x.known[axis + 1 :])
    return row(x, [(take, shape), (runs(shape, target), target)])


def masked(index: Operand) -> bool:
    """Whether an index is a mask of booleans or bytes."""
    return index.dtype in ("bool", "uint8")


def unbind(x: Tensor, axis: int, results: Sequence[Tensor]) -> Meaning:
    """Every index by itself, without the axis."""
    axis = x.axis(axis)
    if x.size(axis) != len(results):
        raise not_linear("not all of its parts are known")
    kept = (*x.known[:axis], 1, *x.known[axis + 1 :])
    dropped = runs(kept, kept[:axis] + kept[axis + 1 :])
    read = [(i, result) for i, result in enumerate(results) if result.name]
    alone = tuple(x.between(kept) for _ in read)
    first = Step(Take(axis, tuple((i,) for i, _ in read)), (x,), alone)
    pairs = zip(alone, read, strict=True)
    return (first, *(Step(dropped, (one_of,), (result,)) for one_of, (_, result) in pairs))


def flip(x: Tensor, axes: Sequence[int]) -> Meaning:
    return taken(x, {x.axis(axis): lambda size: range(size)[::-1] for axis in axes})


def rotate(x: Tensor, quarters: int, first: int, second: int) -> Meaning:
    """Quarter turns in the plane of two axes, from the first to the second."""
    half = quarters % 4
    axes = {0: (), 1: (second,), 2: (first, second), 3: (first,)}[half]
    flipped = flip(x, axes)
    if half in (0, 2):
        return flipped
    turned = x.between(x.shape)
    last = replace(flipped[-1], makes=(turned,))
    return (*flipped[:-1], last, *swapped(turned, first, second))


def roll(x: Tensor, shifts: Sequence[int], axes: Sequence[int]) -> Meaning:
    if not axes or len(shifts) != len(axes):
        raise not_linear("it rolls across axes")
    total: dict[int, int] = {}
    for axis, shift in zip(axes, shifts, strict=True):
        total[x.axis(axis)] = total.get(x.axis(axis), 0) + shift
    return taken(x, {axis: _rolled(shift) for axis, shift in total.items()})


def _rolled(shift: int) -> Choice:
    return lambda size: [(i - shift) % size for i in range(size)]


def channel_shuffle(x: Tensor, groups: int) -> Meaning:
    """[groups, C/groups] -> [C/groups, groups], on axis 1."""
    return taken(x, {1: lambda size: _columns(size, size // groups)})


def _columns(size: int, each: int) -> list[int]:
    return [i for first in range(each) for i in range(first, size, each)]


def tile(x: Tensor, times: Sequence[int]) -> Meaning:
    """The whole, so often along each axis; the times may begin with new axes."""
    shape = x.known
    more = len(times) - len(shape)
    if more < 0:
        return tile(x, (*(1,) * -more, *times))
    wider = (*(1,) * more, *shape)
    choices = {axis: _tiled(n) for axis, n in enumerate(times) if n != 1}
    return _widened(x, wider, choices)


def _tiled(times: int) -> Choice:
    return lambda size: None if size * times > MOST_INDICES else tuple(range(size)) * times


def _widened(x: Tensor, wider: Shape, choices: Mapping[int, Choice]) -> Meaning:
    """New axes of size 1 in front, then a choice along some."""
    if wider == x.shape:
        return taken(x, choices)
    if not choices:
        return one(runs(x.known, wider), x)
    first = x.between(wider)
    return (Step(runs(x.known, wider), (x,), (first,)), *taken(first, choices))


def repeat_each(x: Tensor, times: int, axis: int) -> Meaning:
    """Each index so often in a row."""
    axis = x.axis(axis)
    return taken(x, {axis: lambda size: [i for i in range(size) for _ in range(times)]})


def expand(x: Tensor, made: Tensor) -> Meaning:
    """Axes of size 1 are repeated; new ones come in front."""
    target = made.known
    wider = (*(1,) * (len(target) - len(x.known)), *x.known)
    choices: dict[int, Choice] = {}
    for axis, (own, size) in enumerate(zip(wider, target, strict=True)):
        if own == size and own is not None:
            continue
        if own != 1:
            raise unknown(f"whether axis {axis} is repeated")
        choices[axis] = _repeated(size)
    return _widened(x, wider, choices)


def _repeated(times: Size) -> Choice:
    """The one index of an axis, so often."""
    open_ = not isinstance(times, int) or times > MOST_INDICES
    return lambda size: None if open_ or not isinstance(times, int) else (0,) * times


def left_open(size: int) -> Sequence[int] | None:
    """Some of the indices: it is not known which."""
    return None
