"""Selection: what ATen's operators that take indices of an axis mean, all of them a Take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate, pairwise

from bnfold.algebra.graph import Identity, Node, Op, Opaque, Resize, Shape, Take
from bnfold.algebra.reshaping import reshape
from bnfold.formats.pytorch.calls import (
    Call,
    Constant,
    Facts,
    NotCoveredError,
    axis_of,
    ints_of,
    rank_of,
)


def slice_(call: Call, facts: Facts) -> Op:
    axis = axis_of(call["dim"], rank_of(call, facts))
    size = _size(call, facts, axis)
    bounds = [call.get(name) for name in ("start", "end", "step")]
    if not all(isinstance(bound, int | None) for bound in bounds):
        raise NotCoveredError
    return Take(axis, (tuple(range(size))[slice(*bounds)],))


def narrow(call: Call, facts: Facts) -> Op:
    axis = axis_of(call["dim"], rank_of(call, facts))
    size = _size(call, facts, axis)
    start, length = ints_of((call["start"], call["length"]), 2)
    return Take(axis, (tuple(range(size))[start % size : start % size + length],))


def index_select(call: Call, facts: Facts) -> Op:
    axis = axis_of(call["dim"], rank_of(call, facts))
    return Take(axis, (_indices(call["index"], _size(call, facts, axis)),))


def index(call: Call, facts: Facts) -> Op:
    """x[:, [2, 0, 1]]: one list of indices, for one axis."""
    entries = call["indices"] if isinstance(call["indices"], list) else []
    given = [(axis, entry) for axis, entry in enumerate(entries) if entry is not None]
    if len(given) != 1:
        raise NotCoveredError
    ((axis, entry),) = given
    return Take(axis, (_indices(entry, _size(call, facts, axis)),))


def _indices(argument: object, size: int) -> tuple[int, ...]:
    if not isinstance(argument, Constant) or argument.tensor.ndim != 1:
        raise NotCoveredError
    if argument.tensor.is_floating_point() or argument.tensor.element_size() == 1:
        raise NotCoveredError  # a mask of booleans or bytes
    return tuple(int(i) % size for i in argument.tensor.tolist())


def select(call: Call, facts: Facts) -> Op:
    """One index; `without_axis` follows it."""
    axis = axis_of(call["dim"], rank_of(call, facts))
    (chosen,) = ints_of(call["index"], 1)
    return Take(axis, ((chosen % _size(call, facts, axis),),))


def unbind(call: Call, facts: Facts) -> Op:
    """Every index by itself; `without_axis` follows each."""
    axis = axis_of(call["dim"], rank_of(call, facts))
    size = _size(call, facts, axis)
    if size != len(call.outputs):
        raise NotCoveredError
    return Take(axis, tuple((i,) for i in range(size)))


def without_axis(call: Call, op: Take, facts: Facts) -> tuple[Node, ...]:
    """select and unbind as two steps: what they take, and its shape without the axis of size 1."""
    shape = facts.shapes[call.values[0]]
    assert shape is not None
    kept: Shape = (*shape[: op.axis], 1, *shape[op.axis + 1 :])
    dropped = reshape(kept, kept[: op.axis] + kept[op.axis + 1 :])
    if dropped is None:
        return (Node(call.name, call.op, Opaque(), call.values, call.outputs),)
    taken = tuple(f"{value} before it loses axis {op.axis}" for value in call.outputs)
    facts.shapes.update(dict.fromkeys(taken, kept))
    first = Node(call.name, call.op, op, call.values, taken)
    rest = [
        Node(f"{call.name}[{i}]", call.op, dropped, (value,), (result,))
        for i, (value, result) in enumerate(zip(taken, call.outputs, strict=True))
    ]
    return (first, *rest)


def flip(call: Call, facts: Facts) -> Op:
    if len(call["dims"]) != 1:
        raise NotCoveredError
    axis = axis_of(call["dims"][0], rank_of(call, facts))
    return Take(axis, (tuple(range(_size(call, facts, axis)))[::-1],))


def roll(call: Call, facts: Facts) -> Op:
    shifts, axes = ints_of(call["shifts"], 1), list(call.get("dims") or [])
    if len(shifts) != 1 or len(axes) != 1:
        raise NotCoveredError
    axis = axis_of(axes[0], rank_of(call, facts))
    size = _size(call, facts, axis)
    return Take(axis, (tuple((i - shifts[0]) % size for i in range(size)),))


def axis_by_axis(call: Call, facts: Facts) -> tuple[Node, ...]:
    """roll and flip along several axes, one after the other; nothing for a single one."""
    axes = list(call.get("dims") or [])
    if len(axes) < 2:
        return ()
    value, nodes = call.values[0], []
    for step, axis in enumerate(axes, 1):
        alone = {**call.arguments, "dims": [axis]}
        if call.op == "roll":
            alone["shifts"] = [ints_of(call["shifts"], len(axes))[step - 1]]
        op = (roll if call.op == "roll" else flip)(replace(call, arguments=alone), facts)
        last = step == len(axes)
        made = call.outputs[0] if last else f"{call.outputs[0]} before step {step + 1}"
        name = call.name if last else f"{call.name}[{step}]"
        facts.shapes[made] = facts.shapes[call.values[0]]
        nodes.append(Node(name, call.op, op, (value,), (made,)))
        value = made
    return tuple(nodes)


def channel_shuffle(call: Call, facts: Facts) -> Op:
    """[groups, C/groups] -> [C/groups, groups], on axis 1."""
    rank_of(call, facts)
    (groups,) = ints_of(call["groups"], 1)
    size = _size(call, facts, 1)
    each = size // groups
    return Take(1, (tuple(i for first in range(each) for i in range(first, size, each)),))


def split(call: Call, facts: Facts) -> Op:
    """split, split_with_sizes, chunk, tensor_split: one output for each part."""
    axis = axis_of(call.get("dim") or 0, rank_of(call, facts))
    size = _size(call, facts, axis)
    cuts = _tensor_split(call, size) if call.op == "tensor_split" else _cuts(call, size)
    if len(cuts) != len(call.outputs) + 1 or cuts[-1] != size:
        raise NotCoveredError
    indices = tuple(range(size))
    return Take(axis, tuple(indices[a:b] for a, b in pairwise(cuts)))


def _cuts(call: Call, size: int) -> list[int]:
    sizes = call.get("split_size") or call.get("split_sizes")
    if call.op.endswith("chunk"):
        sizes = -(-size // ints_of(call["chunks"], 1)[0])
    if isinstance(sizes, int):
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    if not isinstance(sizes, list | tuple):
        raise NotCoveredError
    return _sums(ints_of(sizes, len(sizes)))


def _tensor_split(call: Call, size: int) -> list[int]:
    """The first parts are longer by one where the number of parts does not divide the size."""
    sections = call.get("sections")
    if isinstance(sections, int):
        return _sums(size // sections + (i < size % sections) for i in range(sections))
    if call.get("indices") is None:
        raise NotCoveredError
    return [0, *(min(i % size if i < 0 else i, size) for i in ints_of(call["indices"], 0)), size]


def _sums(lengths: Iterable[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))


def expand(call: Call, facts: Facts) -> Op:
    """Axes of size 1 repeated: one by indices, several as the enlargement that it is."""
    source, target = (facts.shapes.get(v) for v in (call.values[0], call.outputs[0]))
    if source is None or target is None or len(source) != len(target) or None in (*source, *target):
        raise NotCoveredError
    wider = [axis for axis, pair in enumerate(zip(source, target, strict=True)) if len({*pair}) > 1]
    if not wider:
        return Identity()
    size = target[wider[0]]
    if len(wider) == 1 and isinstance(size, int):
        return Take(wider[0], ((0,) * size,))
    factors = tuple(1 if s == t else t for s, t in zip(source, target, strict=True))[wider[0] :]
    known = tuple(f for f in factors if isinstance(f, int))
    return Resize(len(factors), known if len(known) == len(factors) else None)


def repeat(call: Call, facts: Facts) -> Op:
    times = ints_of(call["repeats"], 0)
    several = [axis for axis, n in enumerate(times) if n != 1]
    if len(times) != rank_of(call, facts) or len(several) > 1:
        raise NotCoveredError
    if not several:
        return Identity()
    (axis,) = several
    return Take(axis, (tuple(range(_size(call, facts, axis))) * times[axis],))


def _size(call: Call, facts: Facts, axis: int) -> int:
    shape = facts.shapes.get(call.values[0])
    size = None if shape is None else shape[axis]
    if not isinstance(size, int):
        raise NotCoveredError
    return size
