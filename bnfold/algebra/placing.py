"""Where a pointwise linear map costs least: each is carried to the smallest value on its way.

    P(f(x))          ->  f(P(x))            before what enlarges: Resize, Expand, Tile
    P(x), then f     ->  f(x), then P       behind what makes less: a mean, a slice
    P(Concat(x, y))  ->  Px(x) + Py(y)      a part of the weights for each, the bias once; inputs
                                            that gain nothing by it stay together
    P(L(x))          ->  L'(x)              into the layer before it (chains.py)

What is a single pixel, enlarged, is added as it is: a sum repeats it.

Exact when   POINT, CHANNELS, MEAN (pointwise.py), and
             SOLE_USER  nothing else reads the values on the way, and none is a graph output
             SEGMENTS   (Concat) the size of every segment is known
             ONE_PIXEL  (sum) all axes that are enlarged have size 1, and another part is whole
             FREE       the form can make the nodes on the way anew for other numbers of channels
             CHEAPER    multiply-adds become fewer, and so does the work with all that is moved and
                        started (cost.py), by more than GAIN. Where a size is not known, nothing is
                        moved
Rounding     float64 inside, one rounding to the weight's dtype; sums are in another order
"""

from __future__ import annotations

from collections.abc import Collection, MutableSet, Sequence
from dataclasses import replace

import numpy as np

from bnfold.algebra.cost import Work, work
from bnfold.algebra.def_use import DefUse
from bnfold.algebra.graph import (
    Add,
    Concat,
    Conv,
    Identity,
    Linear,
    Node,
    Param,
    Resize,
    Shape,
    Take,
)
from bnfold.algebra.pointwise import (
    PointMap,
    behind,
    keeps_bias,
    layer,
    origins,
    point_map,
    widened,
)
from bnfold.algebra.relocation import Drafts, Relocation, Way, finished

GAIN = 0.05
"""The part of a map's work that is saved at least: estimates are not good for less."""

MOST_PASSED = 64
"""How many nodes, one after the other, a map may pass."""


def relocation(
    def_use: DefUse, node: Node, free: Collection[str], taken: MutableSet[str]
) -> Relocation | None:
    """How the map that `node` is, if it is one, costs less in another place.

    `free` are the nodes that may be made anew; new values and nodes get names that are not `taken`.
    """
    own = point_map(node, def_use.shapes) if node.name in free else None
    cost = None if own is None else work(node, def_use.shapes)
    if own is None or cost is None:
        return None
    placing = _Placing(def_use, node, own, free)
    way = placing.lifted(node.inputs[0], own.axis, own.weight, MOST_PASSED)
    if way is not None and _is_cheaper(way.cost, cost):
        return finished(node, way.with_bias(own.bias), placing.drafts.shapes, taken)
    last, way = placing.sunk()
    if way is not None and _is_cheaper(way.cost, cost):
        return finished(last, way.with_bias(own.bias), placing.drafts.shapes, taken)
    return None


def _is_cheaper(new: Work, old: Work) -> bool:
    """CHEAPER."""
    return new.multiply_adds < old.multiply_adds and new.total < (1 - GAIN) * old.total


class _Placing:
    """The search for the place of one map."""

    def __init__(self, def_use: DefUse, node: Node, own: PointMap, free: Collection[str]) -> None:
        self.def_use = def_use
        self.node = node
        self.own = own
        self.free = free
        self.drafts = Drafts(def_use.shapes)
        self.shapes = self.drafts.shapes

    def lifted(self, value: str, axis: int, weight: Param, left: int) -> Way | None:
        """The cheapest way to compute the map of `value`, past at most `left` nodes."""
        here = self.placed(value, axis, weight)
        maker = self.def_use.maker(value)
        if maker is None or left == 0 or maker.name not in self.free:
            return here
        if not self.def_use.read_once(value):
            return here
        match maker.op:
            case Concat(axis=joined) if joined == axis:
                way = self.split(maker, axis, weight, left - 1)
            case Conv() | Linear():
                way = self.merged(maker, axis, weight)
            case _:
                way = self.passed(maker, axis, weight, left - 1)
        own = work(maker, self.shapes)
        if way is None or own is None:
            return here
        way = way.instead_of(maker, own)
        return way if here is None or way.cost.total < here.cost.total else here

    def placed(self, value: str, axis: int, weight: Param) -> Way | None:
        """The map as a layer that reads `value`."""
        shape = self.shapes.get(value)
        op = None if shape is None else layer(weight, None, axis, len(shape))
        if shape is None or op is None:
            return None
        return self.drafts.node(self.node.name, op, (value,), _with(shape, axis, weight.shape[0]))

    def merged(self, maker: Node, axis: int, weight: Param) -> Way | None:
        """The map in the layer that makes the value."""
        shape = self.shapes.get(maker.outputs[0])
        op = None if shape is None else behind(maker.op, weight, axis, shape)
        if shape is None or op is None:
            return None
        shape = _with(shape, axis, weight.shape[0])
        return self.drafts.node(maker.name, op, maker.inputs, shape)

    def passed(self, maker: Node, axis: int, weight: Param, left: int) -> Way | None:
        """The map before an op that it passes."""
        axes = origins(maker, self.shapes)
        before = None if axes is None else axes[axis]
        if before is None or not (self.own.bias is None or keeps_bias(maker.op)):
            return None
        way = self.lifted(maker.inputs[0], before, weight, left)
        if way is None or isinstance(maker.op, Identity):
            return way
        copy = self.copied(maker, way.value, axis, weight.shape[0])
        return copy and way.then(copy)

    def copied(self, old: Node, value: str, axis: int, size: int) -> Way | None:
        """An op for another number of channels, which are on `axis` of its result."""
        shape = self.shapes.get(old.outputs[0])
        if shape is None:
            return None
        op = widened(old, axis, size)
        return self.drafts.node(old.name, op, (value,), _with(shape, axis, size), old)

    def split(self, maker: Node, axis: int, weight: Param, left: int) -> Way | None:
        """A part of the map before each input of a Concat that gains by it, and their sum."""
        joined, sizes = self.shapes.get(maker.outputs[0]), self.segments(maker, axis)
        if joined is None or sizes is None:
            return None
        total = _with(joined, axis, weight.shape[0])
        sum_ = self.drafts.node("", Add(), (maker.outputs[0],) * 2, total)
        parts: list[Way] = []
        rest: list[tuple[str, Param]] = []
        for value, size, end in zip(maker.inputs, sizes, np.cumsum(sizes), strict=True):
            part = _columns(weight, int(end) - size, int(end))
            way, stays = (f(value, axis, part, left) for f in (self.lifted, self.staying))
            if way is None or stays is None or sum_ is None:
                return None
            if (way.cost + sum_.cost).total < stays.cost.total and way.gone:
                parts.append(way)
            else:
                rest.append((value, part))
        together = self.together(axis, rest, joined)
        if not parts or (rest and together is None):
            return None
        return self.summed([*parts, *filter(None, (together,))])

    def segments(self, maker: Node, axis: int) -> list[int] | None:
        """SEGMENTS."""
        shapes = [self.shapes.get(value) for value in maker.inputs]
        sizes = [None if shape is None else shape[axis] for shape in shapes]
        known = [size for size in sizes if isinstance(size, int)]
        return known if len(known) == len(sizes) else None

    def staying(self, value: str, axis: int, weight: Param, left: int) -> Way | None:
        """What a part costs behind a Concat, which moves its numbers once more."""
        way, shape = self.placed(value, axis, weight), self.shapes.get(value)
        again = None if shape is None else self.drafts.node("", Concat(axis), (value,), shape)
        return way and again and way.then(again)

    def together(self, axis: int, rest: Sequence[tuple[str, Param]], joined: Shape) -> Way | None:
        """The map of the inputs of a Concat that stay, as one layer."""
        if len(rest) < 2:
            return self.placed(rest[0][0], axis, rest[0][1]) if rest else None
        values, weights = [value for value, _ in rest], [part for _, part in rest]
        width = sum(part.shape[1] for part in weights)
        shape = _with(joined, axis, width)
        first = self.drafts.node(f"{self.node.name}.concat", Concat(axis), values, shape)
        last = first and self.placed(first.value, axis, _beside(weights))
        return first and last and first.then(last)

    def summed(self, parts: Sequence[Way]) -> Way | None:
        """The sum of the parts, the small ones first; a layer last, where runtimes fuse it."""
        small = [self.shrunk(part) for part in parts]
        if not all(small):
            pairs = zip(small, parts, strict=True)
            parts = [*filter(None, small), *(part for short, part in pairs if short is None)]
        way, *others = parts
        for other in others:
            shape = self.broadcast(way.value, other.value)
            add = self.drafts.node(f"{self.node.name}.sum", Add(), (way.value, other.value), shape)
            if add is None:
                return None
            way = way.then(other).then(add)
        return Way(
            way.nodes, way.cost, tuple(sorted(way.layers, key=_takes_bias)), way.like, way.gone
        )

    def broadcast(self, one: str, other: str) -> Shape:
        first, second = self.shapes[one], self.shapes[other]
        assert first is not None
        assert second is not None
        return tuple(b if a == 1 else a for a, b in zip(first, second, strict=True))

    def shrunk(self, way: Way) -> Way | None:
        """The way without what only repeats a pixel at its end: ONE_PIXEL; None if nothing does."""
        last, short = way.nodes[-1], None
        while self.repeats(last):
            own = work(last, self.shapes)
            assert own is not None
            like = {value: old for value, old in way.like.items() if value != way.value}
            short = way = replace(way, nodes=way.nodes[:-1], cost=way.cost - own, like=like)
            last = way.nodes[-1]
        return short

    def repeats(self, node: Node) -> bool:
        """Whether an op does nothing but repeat what it reads along axes of size 1."""
        shape = self.shapes.get(node.inputs[0])
        match node.op:
            case Resize(spatial=count) if shape is not None:
                return all(size == 1 for size in shape[-count:])
            case Take(axis=axis) if shape is not None:
                return shape[axis] == 1
        return False

    def sunk(self) -> tuple[Node, Way | None]:
        """The cheapest way with the map behind its readers, and the last of them that it passes."""
        axis, last, best = self.own.axis, self.node, None
        way = Way((), Work())
        place = self.node
        for _ in range(MOST_PASSED):
            reader = self.reader(last.outputs[0])
            axes = None if reader is None else origins(reader, self.shapes)
            if reader is None or axes is None or axis not in axes:
                break
            if not (self.own.bias is None or keeps_bias(reader.op)):
                break
            axis, last, own = axes.index(axis), reader, work(reader, self.shapes)
            value = way.value if way.nodes else self.node.inputs[0]
            copy = self.copied(reader, value, axis, self.own.weight.shape[1])
            if copy is None or own is None:
                break
            way = way.then(copy).instead_of(reader, own)
            behind_it = self.placed(copy.value, axis, self.own.weight)
            found = behind_it and way.then(behind_it)
            if found and (best is None or found.cost.total < best.cost.total):
                best, place = found, reader
        return place, best

    def reader(self, value: str) -> Node | None:
        """The only node that sees a value, if it may be made anew."""
        if not self.def_use.read_once(value):
            return None
        ((name, _),) = self.def_use.readers[value]
        return self.def_use.nodes[name] if name in self.free else None


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _columns(weight: Param, start: int, stop: int) -> Param:
    """The part of a map for some of the channels that it reads."""
    shape = (weight.shape[0], stop - start)
    return Param.of(weight.name, shape, weight, lambda: weight.load()[:, start:stop], weight)


def _beside(weights: Sequence[Param]) -> Param:
    """The map of several values, one after the other on the axis of channels."""
    first = weights[0]
    shape = (first.shape[0], sum(weight.shape[1] for weight in weights))
    return Param.of(
        first.name, shape, first, lambda: np.concatenate([w.load() for w in weights], 1), *weights
    )


def _takes_bias(node: Node) -> tuple[bool, bool]:
    """Sorts a layer first that has a bias, a product last: that would need an addition."""
    assert isinstance(node.op, Conv | Linear)
    return node.op.bias is None, isinstance(node.op, Linear)
