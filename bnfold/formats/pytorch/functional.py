"""A program without in-place operators, which could hide a second reader.

Each is replaced by the operator that gives its result as a new value, and whatever reads the value
later reads the new one. All else is read as torch.export gave it.

Exact when   ONE_NAME   no other value that may share the memory is read later, and it belongs to
                        the program: no input or stored tensor shares it
             ALIKE      the new value has the shape and type of the old one
             SEEN       the program calls no graphs of its own, and no operator that writes to a
                        tensor without saying so
Elsewhere torch functionalises the whole program: `run_decompositions` with an empty table, which
traces it again.

A view becomes a reshape: whether a value can be viewed depends on its layout in memory, which
changes with the operators and weights that it is computed by.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram

from bnfold.formats.pytorch.calls import arguments_of, name_of
from bnfold.formats.pytorch.decomposition import decomposed
from bnfold.formats.pytorch.program_names import with_own_graph
from bnfold.formats.pytorch.program_reader import shape_of, tensor_of
from bnfold.process_state import quiet

_ATEN = torch.ops.aten


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMPUTES = _words(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d avg_pool1d
    batch_norm clip concat concatenate conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d divide group_norm hstack instance_norm layer_norm linear linalg_matmul
    log_sigmoid log_softmax matmul max_pool1d max_pool2d max_pool3d multiply negative outer prelu
    relu6 rms_norm scaled_dot_product_attention selu softmax square std subtract true_divide
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d var vstack where
    """
)
"""Operators that are made of others, and give a value in memory of its own all the same."""

_MAY_UPDATE = ("batch_norm", "instance_norm", "native_batch_norm", "cudnn_batch_norm")
"""Operators that write to running statistics in train mode; their schemas do not say so."""


def functional(program: ExportedProgram, *, traced: bool = False) -> ExportedProgram:
    """The same program without in-place operators, and without what nothing reads.

    Operators that only their decompositions are known by are decomposed. `traced` has torch trace
    the program again even where nothing asks for that.
    """
    with quiet("torch"):
        made = None if traced else _in_new_values(program)
        return _reshaping(decomposed(program.run_decompositions({}) if made is None else made))


def _reshaping(program: ExportedProgram) -> ExportedProgram:
    """The program, one of its own, with reshapes for views."""
    for node in program.graph.find_nodes(op="call_function", target=_ATEN.view.default):
        node.target = _ATEN.reshape.default
    return program


def _in_new_values(program: ExportedProgram) -> ExportedProgram | None:
    """A copy with a new value for every one that is written to; None if not all can be."""
    if any(map(_hides_a_write, program.graph.nodes)):
        return None
    made = with_own_graph(program)
    if any(map(_is_in_place, made.graph.nodes)) and not _Memory(made.graph).rewrite():
        return None
    made.graph.eliminate_dead_code()
    return made


def _hides_a_write(node: torch.fx.Node) -> bool:
    if node.op == "get_attr" or isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    if not isinstance(node.target, OpOverload) or name_of(node.target) not in _MAY_UPDATE:
        return False
    arguments = arguments_of(node.target, node.args, node.kwargs)
    return any(arguments.get(name) is not False for name in _flags(node.target))


def _flags(op: OpOverload) -> Iterator[str]:
    names = [argument.name for argument in op._schema.arguments]
    yield from (name for name in ("training", "use_input_stats") if name in names)


def _is_in_place(node: torch.fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


class _Memory:
    """A graph, and which of its values may share memory."""

    def __init__(self, graph: torch.fx.Graph) -> None:
        self._graph = graph
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self._sharing: dict[torch.fx.Node, list[torch.fx.Node]] = {}

    def rewrite(self) -> bool:
        """Give every value that is written to a new one; False if that would not be the same."""
        for node in self._graph.nodes:
            if _is_in_place(node) and not self._replaced(node):
                return False
            self._place(node)
        return True

    def _place(self, node: torch.fx.Node) -> None:
        """Note which earlier values the node's own may lie in the memory of."""
        shared = [node]
        if tensor_of(node) is not None and not _gives_new_memory(node):
            for source in (n for n in node.all_input_nodes if tensor_of(n) is not None):
                shared += [each for each in self._sharing[source] if each not in shared]
        for each in shared:
            self._sharing[each] = shared

    def _replaced(self, node: torch.fx.Node) -> bool:
        written, target = node.args[0] if node.args else None, _out_of_place(node.target)
        if target is None or not isinstance(written, torch.fx.Node):
            return False
        now = self._order[node]
        for each in self._sharing[written]:
            later = (self._order[user] > now for user in each.users)
            if each.op == "placeholder" or (each is not written and any(later)):
                return False
        if not _is_alike(target, node, written):
            return False
        node.target = target
        written.replace_all_uses_with(node, lambda user: self._order[user] > now)
        return True


def _gives_new_memory(node: torch.fx.Node) -> bool:
    """Whether the node's value lies in no memory that one of its inputs has."""
    target = node.target
    if target is operator.getitem or not isinstance(target, OpOverload):
        return not node.all_input_nodes
    if any(given.alias_info is not None for given in target._schema.returns):
        return False
    return not target._can_decompose() or name_of(target) in _COMPUTES


def _out_of_place(op: Any) -> OpOverload | None:
    """The operator that computes what an in-place one writes to its first argument."""
    name = name_of(op)
    packet = getattr(_ATEN, name[:-1], None) if op.namespace == "aten" else None
    found = getattr(packet, op._overloadname, None)
    if not name.endswith("_") or not isinstance(found, OpOverload):
        return None
    if torch.Tag.nondeterministic_seeded in op.tags or found._schema.is_mutable:
        return None
    ours, theirs = (
        [(argument.name, str(argument.type)) for argument in each._schema.arguments]
        for each in (op, found)
    )
    return found if ours == theirs else None


def _is_alike(op: OpOverload, node: torch.fx.Node, written: torch.fx.Node) -> bool:
    """ALIKE: whether `op` keeps the shape, as what it replaces did, and the type.

    The types are tried on tensors of one element.
    """
    old, new = written.meta.get("val"), node.meta.get("val")
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
        return False
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), _of_one_element)
    try:
        with torch.no_grad():
            made = op(*args, **kwargs)
    except Exception:  # it wants others, or sizes that nobody knows
        return False
    return shape_of(old) == shape_of(new) and made.dtype == old.dtype


def _of_one_element(node: torch.fx.Node) -> Any:
    like = node.meta["val"]
    if not isinstance(like, torch.Tensor):
        return like
    return torch.empty((1,) * like.ndim, dtype=like.dtype, device="meta")
