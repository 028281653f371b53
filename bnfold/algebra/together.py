"""Equal affines side by side, as one affine where they have come from, or where they meet.

    A(x1), A(x2), ... of the parts that x is split into   =   the parts of A(x)
    Concat(A(x1), A(x2), ...)                             =   A(Concat(x1, x2, ...))

One BatchNorm that is called for every part of a batch (ghost batches), or several times on one
value, is an affine for each call. None of them can go by itself, for the others need what is there.

Exact when   EQUAL   all have the same numbers, to the last bit
             ACROSS  they do not vary along the axis that is split or joined
             ALL     (parts) nothing else reads x or a part of it, and none is a graph output;
                     (joined) every input of the Concat is one, and read by it alone
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from bnfold.algebra.def_use import DefUse
from bnfold.algebra.graph import Affine, Concat, Identity, Node, Take

MOST = 256
"""How many affines are looked at side by side; more stay."""

Group = tuple[str, tuple[Node, ...]]
"""A value that may take the affine of all the nodes, which then go."""


def parts_of_one(def_use: DefUse, site: Node, locked: Collection[str]) -> Iterator[Group]:
    """Values above `site`, the nearest first, that only affines equal to it read."""
    assert isinstance(site.op, Affine)
    (value,) = site.inputs
    while value in def_use.producer:
        found = _readers(def_use, value, site, locked)
        if found is None:
            return
        if len(found) > 1:
            yield value, tuple(found)
        maker = def_use.maker(value)
        if maker is None or not _passes(maker, site):
            return
        value = maker.inputs[0]


def _readers(def_use: DefUse, value: str, site: Node, locked: Collection[str]) -> list[Node] | None:
    """ALL: the affines that read `value` or a part of it; None if anything else does."""
    found: list[Node] = []
    open_values = [value]
    while open_values:
        each = open_values.pop()
        readers = [(def_use.nodes[name], port) for name, port in def_use.readers.get(each, ())]
        if each in def_use.outputs or len(found) + len(readers) > MOST:
            return None
        for reader, port in readers:
            if _equal(reader, site) and reader.name not in locked:
                found.append(reader)
            elif port == 0 and _passes(reader, site):
                open_values += reader.outputs
            else:
                return None
    return sorted(found, key=lambda node: def_use.order[node.name])


def joined_in_one(def_use: DefUse, site: Node, locked: Collection[str]) -> Group | None:
    """The value in which the results of affines equal to `site` are joined."""
    assert isinstance(site.op, Affine)
    (value,) = site.outputs
    if not def_use.read_once(value):
        return None
    ((name, _),) = def_use.readers[value]
    join = def_use.nodes[name]
    if not isinstance(join.op, Concat) or len(set(join.inputs)) < len(join.inputs):
        return None
    makers = [def_use.maker(each) for each in join.inputs[:MOST]]
    fits = all(
        maker is not None
        and _equal(maker, site)
        and maker.name not in locked
        and def_use.read_once(maker.outputs[0])
        for maker in makers
    )
    alike = fits and len(join.inputs) <= MOST and _is_across(site, join.op.axis)
    return (join.outputs[0], tuple(filter(None, makers))) if alike else None


def _passes(node: Node, site: Node) -> bool:
    if isinstance(node.op, Take):
        return len(node.inputs) == 1 and _is_across(site, node.op.axis)
    return isinstance(node.op, Identity)


def _is_across(site: Node, axis: int) -> bool:
    """ACROSS."""
    assert isinstance(site.op, Affine)
    return site.op.affine.without(axis) is not None


def _equal(node: Node, site: Node) -> bool:
    """EQUAL."""
    if not isinstance(node.op, Affine) or not isinstance(site.op, Affine):
        return False
    one, two = node.op.affine, site.op.affine
    return (
        one.axes == two.axes
        and np.array_equal(one.scale, two.scale)
        and np.array_equal(one.shift, two.shift)
    )
