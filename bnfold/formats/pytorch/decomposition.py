"""Operators that the table of `aten` does not know, as the calls that torch decomposes them into.

A call is decomposed if all that it comes to is known, as `tensordot` with a constant matrix comes
to reshapes and a linear layer. Otherwise it stays whole, with its own reason: a hardswish in five
pieces folds no more than one.

Each operator is tried alone on tensors without data; what it makes of constants is computed up to
MOST bytes. ROUNDS bounds how deep decompositions nest, MOST_CALLS what one operator comes to: one
that goes through a sequence step by step, such as an LSTM, stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import is_tensor
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.export import ExportedProgram, default_decompositions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bnfold.algebra.graph import Opaque, Shape
from bnfold.archive import MOST
from bnfold.formats.pytorch import aten
from bnfold.formats.pytorch.calls import arguments_of, name_of
from bnfold.formats.pytorch.program_reader import ProgramReader, shape_of, tensor_of
from bnfold.formats.pytorch.tensors import dtype_of

ROUNDS = 4
MOST_CALLS = 100

Decomposition = Callable[..., Any]


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """A functional program with every unknown operator that known ones can say in their place."""
    for _ in range(ROUNDS):
        known = list(_known_by_parts(program))
        if not known:
            break
        table = default_decompositions()
        program = program.run_decompositions(
            {op: table[op] if op in table else decomposition_table[op] for op in known}
        )
    return program


def _known_by_parts(program: ExportedProgram) -> Iterator[OpOverload]:
    """The unknown operators of which every call comes to known ones."""
    calls: dict[OpOverload, list[torch.fx.Node]] = {}
    for node in program.graph.nodes:
        if tensor_of(node) is None or not isinstance(node.target, OpOverload):
            continue
        if _decomposition(node.target) is not None:
            calls.setdefault(node.target, []).append(node)
    if not calls:
        return
    reader = ProgramReader(program)
    reader.graph()
    for op, nodes in calls.items():
        open_calls = [node for node in nodes if node.name not in reader.constants]
        if open_calls and all(_is_known(node, reader.constants) for node in open_calls):
            yield op


def _decomposition(op: OpOverload) -> Decomposition | None:
    """What torch computes an operator by, if the table of `aten` does not know it."""
    if op.namespace != "aten" or op._schema.is_mutable or aten.entry(name_of(op)) is not None:
        return None
    return decomposition_table.get(op) or (op.decompose if op._can_decompose() else None)


class _UnknownError(Exception):
    """Raised from within a decomposition, at a call whose meaning is not known."""


def _is_known(node: torch.fx.Node, constants: Mapping[str, aten.Stored]) -> bool:
    """Whether all calls that `node` comes to are known."""
    parts = _Parts()

    def given(read: torch.fx.Node) -> Any:
        if read.name in constants:
            return parts.fixed(constants[read.name].tensor)
        return tree_map(parts.like, read.meta["val"])

    try:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), given)
        with torch.no_grad(), parts:
            node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # whatever a decomposition raises on tensors without data
        return False
    return True


class _Parts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries out decompositions on meta tensors, and reads each call in which they end.

    What needs constants only is computed; a meta tensor stands for it as well.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meta: dict[int, torch.Tensor] = {}
        """id -> every meta tensor there is: none of them may go, and another one get its id."""
        self._constant: dict[int, torch.Tensor] = {}
        """id of a meta tensor -> the constant that it stands for."""
        self._calls = 0

    def kept(self, value: Any) -> Any:
        return self._meta.setdefault(id(value), value) if is_tensor(value) else value

    def fixed(self, value: Any) -> Any:
        """A meta tensor in the place of a constant one."""
        if not is_tensor(value):
            return value
        meta = self.kept(torch.empty_like(value, device="meta"))
        self._constant[id(meta)] = value
        return meta

    def like(self, known: Any) -> Any:
        """A meta tensor like the fake one that the program knows; a size as the export saw it."""
        if isinstance(known, torch.SymInt):
            return known.node.hint
        if not is_tensor(known):
            return known
        sizes = [self.like(size) for size in known.shape]
        return self.kept(torch.empty(sizes, dtype=known.dtype, device="meta"))

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise _UnknownError(str(func))
        if all(id(x) in self._constant for x in filter(is_tensor, tree_leaves((args, kwargs)))):
            return self._evaluated(func, args, kwargs)
        decomposition = _decomposition(func)
        if decomposition is not None:
            with self:
                return decomposition(*args, **kwargs)
        made = tree_map(self.kept, func(*args, **kwargs))
        self._require_known(func, arguments_of(func, args, kwargs), tree_leaves(made))
        return made

    def _evaluated(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        """What `func` makes of constants: at most MOST bytes, and the same each time."""
        placed = any(argument.name == "device" for argument in func._schema.arguments)
        where: list[dict[str, Any]] = [{"device": d} if placed else {} for d in ("meta", "cpu")]
        made = tree_leaves(func(*args, **kwargs | where[0]))
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random or sum(x.nbytes for x in made if is_tensor(x)) > MOST:
            raise _UnknownError(str(func))
        args, kwargs = tree_map(lambda x: self._constant.get(id(x), x), (args, kwargs))
        return tree_map(self.fixed, func(*args, **kwargs | where[1]))

    def _require_known(
        self, op: OpOverload, arguments: dict[str, Any], made: Sequence[torch.Tensor]
    ) -> None:
        shapes: dict[str, Shape | None] = {}
        dtypes: dict[str, str] = {}
        facts = aten.Facts(shapes, dtypes)
        for tensor in filter(is_tensor, tree_leaves((arguments, made))):
            shapes[str(id(tensor))] = shape_of(tensor)
            dtypes[str(id(tensor))] = dtype_of(tensor)

        def operand(value: Any) -> Any:
            if not is_tensor(value):
                return value
            name, constant = str(id(value)), self._constant.get(id(value))
            return facts.tensor(name) if constant is None else aten.Stored.of(name, constant)

        given = {name: tree_map(operand, value) for name, value in arguments.items()}
        names = tuple(str(id(tensor)) for tensor in made)
        nodes = aten.translate(aten.Call(str(op), name_of(op), given, names, facts))
        if any(isinstance(node.op, Opaque) and node.kind != "constant" for node in nodes):
            raise _UnknownError(str(op))
