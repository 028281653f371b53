"""A meaning as nodes: the ops that a call does in order, or the Opaque that says why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bnfold.algebra.graph import (
    Identity,
    Node,
    Op,
    Opaque,
    Recurrent,
    Reshape,
    Shape,
    Take,
    Transpose,
)
from bnfold.algebra.refusal import Refusal
from bnfold.formats.meaning.operands import NotCoveredError, Operand, Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One neutral op. `makes` is empty where it makes what the call makes.

    `sums_to_one` is the axis along which the entries of the result sum to one.
    """

    op: Op
    reads: tuple[Operand, ...]
    makes: tuple[Tensor, ...] = ()
    sums_to_one: int | None = None


Meaning = tuple[Step, ...]


def one(op: Op, *reads: Operand) -> Meaning:
    return (Step(op, reads),)


def row(x: Tensor, steps: Sequence[tuple[Op, Shape | None]]) -> Meaning:
    """Ops of one operand, each reading what the one before it makes, of the shape given."""
    found: list[Step] = []
    for i, (op, shape) in enumerate(steps):
        made = () if i == len(steps) - 1 else (x.between(shape),)
        found.append(Step(op, (x,), made))
        x = made[0] if made else x
    return tuple(found) or one(Identity(), x)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of a call, the values made between them with their shapes; and which sum to one."""

    nodes: tuple[Node, ...]
    shapes: dict[str, Shape | None]
    sums_to_one: dict[str, int]


@dataclass(frozen=True, slots=True)
class Native:
    """A call as its format knows it; `reads` and `makes` are the neutral names of its values.

    What it makes that nothing reads may be without a name.

    `batchnorm` says that it is one, or was meant to be: it is listed, whatever becomes of it.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    batchnorm: bool = False


def nodes_of(
    native: Native,
    build: Callable[[], Meaning],
    name_of: Callable[[Operand], str],
    unique: Callable[[str], str] = str,
) -> Nodes:
    """The nodes for what `build` gives, or the Opaque of its refusal.

    `unique` makes names for what lies between the steps of a call that are nobody else's.
    """
    try:
        steps = build()
    except NotCoveredError as no:
        return Nodes((_opaque(native, no),), {}, {})
    return _lined_up(native, steps, name_of, unique)


def _opaque(native: Native, no: NotCoveredError) -> Node:
    """A refused call: a site if it should have been an affine, else a barrier for those nearby."""
    refusal = Refusal(no.reason, f"{native.name} ({native.kind}): {no.why}", native.name)
    site = native.batchnorm or no.is_affine
    op = Opaque(refusal, native.batchnorm) if site else Opaque(barrier=refusal)
    return Node(native.name, native.kind, op, native.reads, tuple(filter(None, native.makes)))


def _lined_up(
    native: Native,
    steps: Meaning,
    name_of: Callable[[Operand], str],
    unique: Callable[[str], str],
) -> Nodes:
    """The last node has the name of the call, those before it are numbered."""
    inner = [tensor for step in steps for tensor in step.makes if not tensor.name]
    names = {x: unique(f"{_first(native)}, step {i}") for i, x in enumerate(inner, 1)}
    shapes = {name: tensor.shape for tensor, name in names.items()}
    sums: dict[str, int] = {}
    nodes: list[Node] = []
    for i, step in enumerate(steps, 1):
        name = native.name if i == len(steps) else unique(f"{native.name}, node {i}")
        reads = [names[x] if x in names else name_of(x) for x in step.reads]
        makes, op = tuple(names.get(x, x.name) for x in step.makes), step.op
        if not makes:
            several = isinstance(op, Opaque | Recurrent) or (
                isinstance(op, Take) and len(op.parts) > 1
            )
            makes = native.makes if several else native.makes[:1]
        if isinstance(op, Take):
            parts = tuple(p for p, made in zip(op.parts, makes, strict=True) if made)
            op = Take(op.axis, parts, alone=len(steps) == len(native.makes) == 1)
        if isinstance(op, Transpose):
            op = Transpose(op.perm, alone=len(steps) == 1)
        makes = tuple(filter(None, makes))
        nodes.append(Node(name, native.kind, op, tuple(reads), makes))
        sums.update((value, axis) for value, axis in _sums_to_one(step, sums, reads, makes))
    return Nodes(tuple(nodes), shapes, sums)


def _makes_several(op: Op) -> bool:
    return isinstance(op, Opaque | Recurrent) or (isinstance(op, Take) and len(op.parts) > 1)


def _first(native: Native) -> str:
    return next(filter(None, native.makes), native.name)


def _sums_to_one(
    step: Step, sums: dict[str, int], reads: Sequence[str], makes: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """TO_ONE: the weights of a softmax, where they are only carried on the way to their product."""
    axis = step.sums_to_one
    if axis is None and len(step.reads) == 1 and isinstance(step.reads[0], Tensor):
        axis = sums.get(reads[0], step.reads[0].sums_to_one)
        axis = None if axis is None else carried(step.op, axis)
    if axis is not None:
        yield from ((value, axis) for value in makes)


def carried(op: Op, axis: int) -> int | None:
    """The axis along which the result of `op` sums to one, if what it reads does along `axis`.

    That is so for dropout in eval, a transposition, a change of shape or a selection of others.
    """
    match op:
        case Identity():
            return axis
        case Transpose(perm=perm):
            return perm.index(axis)
        case Reshape(groups=groups):
            return next((to[0] for run, to in groups if run == (axis,) and len(to) == 1), None)
        case Take(axis=divided):
            return axis if axis != divided else None
    return None
