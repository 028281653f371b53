"""Where in a graph linear nodes become one: at sums, and where they follow one another.

Exact when   ONE_ROOT   (sum) the terms start at one value (sums.py), and fit (branches.py)
             SOLE_USER  (row) nothing else reads the first or what stands between, and none of it is
                        a graph output
             GEOMETRY   (row) the node that stays has the groups of the result
             CHEAPER    (row) neither multiply-adds nor weights grow
             UNLOCKED   every node that changes or goes may be edited
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from bnfold.algebra.affine import UNIT, ChannelAffine
from bnfold.algebra.branches import affine_sum, fits, holds, summed
from bnfold.algebra.chains import as_conv, composed, in_a_row, is_pointwise
from bnfold.algebra.def_use import DefUse, Port
from bnfold.algebra.graph import Affine, Conv, Identity, Linear, Node, Op
from bnfold.algebra.permuted import taken_before, taken_behind, taken_from
from bnfold.algebra.sums import NestedSum, Term, is_inner


@dataclass(frozen=True, eq=False, slots=True)
class Merging:
    """`result` is a node with its new op, and has taken over the work of `branches`.

    The nodes named in `gone` dissolve in this order; the input given is read in their place.
    """

    result: Node
    branches: tuple[Node, ...]
    gone: tuple[Port, ...]


def at_sum(def_use: DefUse, add: Node, locked: Collection[str]) -> list[Merging]:
    """How the terms of a sum, and of the sums in it, become fewer."""
    if is_inner(def_use, add, locked):
        return []
    whole = NestedSum(def_use, add, locked)
    return [
        merging
        for terms in whole.by_root()
        for merging in (*_into_layers(def_use, whole, terms), *_into_affines(whole, terms))
    ]


def _into_layers(def_use: DefUse, whole: NestedSum, terms: list[Term]) -> Iterator[Merging]:
    """The widest layer takes what fits, then the next; `terms` keeps those that are left."""
    for main in sorted(filter(_layer, terms), key=_width):
        op = _layer(main)
        if op is None or main not in terms:
            continue
        found: dict[Term, Conv] = {}
        for term in terms:
            row = in_a_row(term.nodes, op, def_use.shapes) if term is not main else None
            if row is not None and fits(op, row):
                found[term] = row
        factor = main.factor
        taken, gone = whole.without(found, main)
        if not taken:
            continue
        terms[:] = [term for term in terms if term not in taken]
        others = [(found[term], term.factor / main.factor) for term in taken]
        yield _merging(main, summed((op, factor / main.factor), others), taken, gone)


def _into_affines(whole: NestedSum, terms: list[Term]) -> Iterator[Merging]:
    """An affine takes others and the value itself."""
    for main in list(filter(_affine, terms)):
        op = _affine(main)
        if op is None or main not in terms:
            continue
        found = {
            term: affine
            for term in terms
            if term is not main and (affine := _map(term)) is not None and holds(op, affine)
        }
        factor = main.factor
        taken, gone = whole.without(found, main)
        if not taken:
            continue
        terms[:] = [term for term in terms if term not in taken]
        others = [(found[term], term.factor / main.factor) for term in taken]
        yield _merging(main, affine_sum(op, factor / main.factor, others), taken, gone)


def _merging(main: Term, op: Op, taken: Sequence[Term], gone: Sequence[Port]) -> Merging:
    """The main term becomes `op`, and may be taken over by another in its turn."""
    (node,) = main.nodes
    branches = tuple(node for term in taken for node in term.nodes)
    result = _with_weights(node, op) if isinstance(op, Conv) else node.with_op(op)
    main.nodes = (result,)
    return Merging(result, branches, tuple(gone))


def _with_weights(node: Node, made: Conv) -> Node:
    """A layer with the weights of `made`, under its own names."""
    old = node.op
    assert isinstance(old, Conv | Linear)
    bias = made.bias
    if bias is not None and bias is not old.bias:
        name, dtype = f"{node.name}.bias", old.weight.dtype
        if old.bias is not None:
            name, dtype = old.bias.name, old.bias.dtype
        bias = replace(bias, name=name, dtype=dtype)
    return node.with_op(replace(old, weight=made.weight, bias=bias))


def _layer(term: Term) -> Conv | None:
    """The weights of a term that is one layer."""
    return as_conv(term.nodes[0].op) if len(term.nodes) == 1 else None


def _width(term: Term) -> int:
    """Sorts the widest layer first."""
    op = _layer(term)
    return 0 if op is None else -math.prod(op.weight.shape)


def _affine(term: Term) -> Affine | None:
    op = term.nodes[0].op if len(term.nodes) == 1 else None
    return op if isinstance(op, Affine) else None


def _map(term: Term) -> ChannelAffine | None:
    """What a term does to its root, if that is a scale and shift."""
    op = _affine(term)
    return op.affine if op is not None else None if term.nodes else UNIT


def in_row(def_use: DefUse, second: Node, locked: Collection[str]) -> list[Merging]:
    """How a layer and the one before it become one, with what does nothing in between."""
    idle, first = _before(def_use, second)
    if first is None or any(node.name in locked for node in (first, *idle)):
        return []
    one, two = as_conv(first.op), as_conv(second.op)
    op = None if one is None or two is None else composed(one, two)
    if one is None or two is None or op is None or not _is_cheaper(op, one, two):
        return []
    stays, other = (second, first) if is_pointwise(one) else (first, second)
    if op.groups != (two if stays is second else one).groups:
        return []
    gone = tuple((node.name, 0) for node in (*idle, other))
    return [Merging(_with_weights(stays, op), (other,), gone)]


def reordered(def_use: DefUse, layer: Node, locked: Collection[str]) -> list[Merging]:
    """How a layer takes over the order in which the channels are taken that it reads."""
    taken = taken_from(def_use, layer.inputs[0], locked)
    op = taken and taken_before(layer, taken, def_use.shapes.get(taken.value))
    return [Merging(layer.with_op(op), (), taken.gone)] if taken and op else []


def reordered_behind(def_use: DefUse, take: Node, locked: Collection[str]) -> list[Merging]:
    """How the layer before takes over the order in which its channels are taken."""
    idle, layer = _before(def_use, take)
    if layer is None or any(each.name in locked for each in (layer, *idle)):
        return []
    op = taken_behind(layer, take, def_use.shapes.get(take.inputs[0]))
    gone = tuple((each.name, 0) for each in (*idle, take))
    return [] if op is None else [Merging(layer.with_op(op), (), gone)]


def _before(def_use: DefUse, node: Node) -> tuple[list[Node], Node | None]:
    """The identities right before `node` and what feeds them, if each is read once."""
    idle: list[Node] = []
    (value,) = node.inputs
    while def_use.read_once(value):
        maker = def_use.maker(value)
        if maker is None or not isinstance(maker.op, Identity):
            return idle, maker
        idle.append(maker)
        (value,) = maker.inputs
    return idle, None


def _is_cheaper(op: Conv, first: Conv, second: Conv) -> bool:
    """CHEAPER: with no more weights, and none of them at more places than before."""
    weights = [math.prod(each.weight.shape) for each in (op, first, second)]
    reach = (d * (k - 1) for d, k in zip(second.dilation, second.kernel, strict=True))
    more_places = any(lo + hi > r for (lo, hi), r in zip(second.pads, reach, strict=True))
    return weights[0] <= weights[1] + weights[2] and not more_places
