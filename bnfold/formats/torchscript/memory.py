"""Which tensors of a TorchScript graph may share memory, and which writes into it are seen.

An in-place operator (`aten::relu_`) makes a value by overwriting another. Once `rename_overwritten`
has let later readers of the overwritten value read the result, it means the same as its functional
twin, unless an older name of the same memory, such as a view, is read after the write.

Exact when   NO_OLD_NAME  no value that may share the memory and was made before the write is read
                          after it; what the body of a loop reads of values from outside the loop
                          is read again in its next turn; the caller keeps every input of the graph

Values are put in one class wherever the operator's signature says that they may alias, and where
tuples, lists, branches and loops hand them on: too large a class only forgoes a fold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bnfold.formats.torchscript.nodes import (
    METADATA,
    SAME,
    holds_tensor,
    is_joined,
    read_by,
    schema_of,
    walk,
)

_RETURNS_ALIAS = re.compile(r"\((\*|[a-z](!|\||\)| ->))")
_SILENT = (
    "dropout feature_dropout alpha_dropout feature_alpha_dropout dropout1d type_as einsum "
    "broadcast_tensors meshgrid sum_to_size pixel_shuffle pixel_unshuffle channel_shuffle "
    "atleast_1d atleast_2d atleast_3d"
)
_MAY_RETURN_INPUT = frozenset(f"aten::{name}" for name in _SILENT.split())
"""Operators that may give back what they were given, or a view, though no signature says so."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """A point of time in the run of a graph, and the loops around it."""

    time: float
    loops: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Write:
    position: int
    name: str
    moment: _Moment


def rename_overwritten(graph: Any) -> None:
    """Let what reads a value after it was overwritten in its own block read the operator's result.

    Both are one tensor: the graph computes the same.
    """
    for node in list(walk(graph)):
        if not node.kind().endswith("_") or len(_written(node)) != 1:
            continue
        value, result = next(iter(node.inputs())), next(iter(node.outputs()))
        if value.debugName() in _written(node) and _owner(value) == node.owningBlock():
            value.replaceAllUsesAfterNodeWith(node, result)


class Memory:
    """The alias classes of a graph, and the writes that break NO_OLD_NAME.

    `overwriting` maps their positions in `walk` to the old names that are read afterwards;
    `entering` maps the positions of loops to the names from outside whose memory a turn overwrites
    before the next one reads it.
    """

    def __init__(self, graph: Any) -> None:
        self.overwriting: dict[int, list[str]] = {}
        self.entering: dict[int, list[str]] = {}
        self._parent: dict[str, str] = {}
        self._made: dict[str, _Moment] = {}
        self._reads: list[tuple[str, _Moment]] = []
        self._writes: list[_Write] = []
        self._clock = 0
        self._position = -1
        self._make(graph.inputs(), ())
        self._block(graph, ())
        self._read((*graph.inputs(), *graph.outputs()), _Moment(math.inf))
        self._members: dict[str, set[str]] = {}
        for name in self._made:
            self._members.setdefault(self._root(name), set()).add(name)
        self._find_seen_writes()

    def is_written(self, value: Any) -> bool:
        """Whether anything writes into memory that the value may share."""
        root = self._root(value.debugName())
        return any(self._root(write.name) == root for write in self._writes)

    def must_copy(self, source: Any, node: Any) -> bool:
        """Whether `source` cannot stand in for the output of `node`, its reader, as it is.

        That is so if either is ever written to, unless `source` is fresh memory of which nothing
        but `node` knows.
        """
        roots = {self._root(source.debugName()), self._root(node.output().debugName())}
        if not any(self._root(write.name) in roots for write in self._writes):
            return False
        private = (
            self._members[self._root(source.debugName())] - {node.output().debugName()}
            == {source.debugName()}
            and len(source.uses()) == 1
            and source.node().kind() != "prim::Param"
            and _owner(source) == node.owningBlock()
        )
        return not private

    def substitute(self, old: Any, new: Any) -> None:
        """Take note that `new` now stands for `old`, which is gone."""
        first, second = old.debugName(), new.debugName()
        members = self._members[self._root(first)] | self._members.get(self._root(second), {second})
        self._join((first, second))
        self._members[self._root(second)] = members - {first}

    def _make(self, values: Iterable[Any], loops: tuple[int, ...]) -> None:
        for value in values:
            self._made[value.debugName()] = _Moment(self._clock, loops)

    def _block(self, block: Any, loops: tuple[int, ...]) -> None:
        for node in block.nodes():
            self._clock += 1
            self._position += 1
            position, moment = self._position, _Moment(self._clock, loops)
            self._read(read_by(node), moment)
            self._writes += [_Write(position, name, moment) for name in _written(node)]
            inside = (*loops, position) if node.kind() == "prim::Loop" else loops
            for inner in node.blocks():
                self._make(inner.inputs(), inside)
                self._block(inner, inside)
                self._clock += 1
                self._read(inner.outputs(), _Moment(self._clock, inside))
            self._clock += 1
            self._make(node.outputs(), loops)
            for group in _aliases(node):
                self._join(value.debugName() for value in group if _may_alias(value))

    def _read(self, values: Iterable[Any], moment: _Moment) -> None:
        self._reads += [(value.debugName(), moment) for value in values if holds_tensor(value)]

    def _root(self, name: str) -> str:
        while (parent := self._parent.get(name, name)) != name:
            self._parent[name] = self._parent.get(parent, parent)
            name = parent
        return name

    def _join(self, names: Iterable[str]) -> None:
        roots = [self._root(name) for name in names]
        for root in roots[1:]:
            self._parent[root] = roots[0]

    def _find_seen_writes(self) -> None:
        reads: dict[str, list[tuple[str, _Moment]]] = {}
        for name, moment in self._reads:
            reads.setdefault(self._root(name), []).append((name, moment))
        for write in self._writes:
            for name, read in reads.get(self._root(write.name), []):
                made = self._made[name]
                if made.time >= write.moment.time:
                    continue
                if read.time > write.moment.time:
                    _note(self.overwriting, write.position, name)
                turning = [loop for loop in write.moment.loops if loop not in made.loops]
                if turning and turning[0] in read.loops:
                    self.overwriting.setdefault(write.position, [])
                    _note(self.entering, turning[0], name)


def _note(notes: dict[int, list[str]], position: int, name: str) -> None:
    names = notes.setdefault(position, [])
    if name not in names:
        names.append(name)


def _owner(value: Any) -> Any:
    """The block that a value is made in."""
    return value.node().owningBlock()


def _written(node: Any) -> list[str]:
    """The inputs that the operator overwrites."""
    schema = schema_of(node)
    if schema is None:
        return []
    pairs = zip(schema.arguments, node.inputs(), strict=False)
    return [value.debugName() for argument, value in pairs if argument.is_write]


def _may_alias(value: Any) -> bool:
    """Whether memory can be reached through a value: tensors, and objects that keep them."""
    kept = value.type().kind() in ("ClassType", "InterfaceType")
    return (kept or holds_tensor(value)) and bool(value.node().kind() != "prim::Constant")


def _aliases(node: Any) -> Iterator[list[Any]]:
    """Groups of values that may share memory because of this node."""
    inputs, outputs = list(node.inputs()), list(node.outputs())
    blocks = list(node.blocks())
    kind, schema = node.kind(), schema_of(node)
    if kind in METADATA or kind == "prim::Constant" or is_joined(node):
        return
    if kind == "prim::If":
        for i, output in enumerate(outputs):
            yield [output, *(list(block.outputs())[i] for block in blocks)]
    elif kind == "prim::Loop":
        given, returned = (list(end) for end in (blocks[0].inputs(), blocks[0].outputs()))
        for i, output in enumerate(outputs):
            yield [output, inputs[i + 2], given[i + 1], returned[i + 1]]
    elif schema is None or kind in SAME:
        yield [*inputs, *outputs]
    elif kind in _MAY_RETURN_INPUT:
        yield [*read_by(node), *outputs]
    else:
        pairs = zip(schema.arguments, inputs, strict=False)
        group = [value for argument, value in pairs if argument.alias_info is not None]
        returns = node.schema().rsplit(" -> ", 1)[1]
        yield [*group, *(outputs if _RETURNS_ALIAS.search(returns) else [])]
