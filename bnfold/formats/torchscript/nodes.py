"""What the nodes and values of a TorchScript graph say about themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from bnfold.formats.pytorch import recurrent
from bnfold.formats.pytorch.aten import SPLITS

METADATA = frozenset(
    f"{space}::{name}"
    for space, names in {
        "aten": (
            "size sym_size dim len numel stride is_contiguous is_floating_point is_complex "
            "element_size get_device __is__ __isnot__"
        ),
        "prim": "device dtype layout shape is_cuda is_cpu requires_grad isinstance",
    }.items()
    for name in names.split()
)
"""Nodes that read of a tensor only its shape, type or presence, which no fold changes."""

_LIKENESS = {
    "other": "type_as expand_as view_as reshape_as",
    "self": (
        "zeros_like ones_like full_like empty_like rand_like randn_like "
        "new_zeros new_ones new_full new_empty"
    ),
}
METADATA_ARGUMENTS = {f"aten::{op}": role for role, ops in _LIKENESS.items() for op in ops.split()}
"""The one argument of an operator of which it reads only shape and type."""

SAME = frozenset({"prim::unchecked_cast", "aten::_unwrap_optional"})
"""Nodes that return the tensor that they are given."""

CONTAINERS = frozenset({"prim::TupleConstruct", "prim::ListConstruct", "prim::DictConstruct"})

_JOINS = frozenset(
    f"aten::{op}"
    for op in ["cat", "concat", "concatenate", "stack", "einsum", "index", *recurrent.OPERATORS]
)
_DIVISIONS = frozenset(f"aten::{name}" for name in SPLITS)


def walk(block: Any) -> Iterator[Any]:
    """Every node of a graph or block and of the blocks inside, each before its own blocks."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from walk(inner)


def operator_name(node: Any) -> str:
    """The name without namespace: "conv2d", "relu_", "If"."""
    name: str = node.kind().split("::")[-1]
    return name


@cache
def _parsed(signature: str) -> Any | None:
    return None if signature == "(no schema)" else torch._C.parse_schema(signature)


def schema_of(node: Any) -> Any | None:
    """The signature of the operator; None for what has none, such as prim::If."""
    return _parsed(node.schema())


def argument_names(node: Any) -> list[str]:
    """The names of the node's inputs; numbers where there is no signature."""
    schema = schema_of(node)
    if schema is None:
        return [str(i) for i in range(node.inputsSize())]
    return [argument.name for argument in schema.arguments]


def holds_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or of a type that may have one inside."""
    kind = value.type().kind()
    return "Tensor" in value.type().annotation_str or kind in ("AnyType", "FutureType")


def constant_tensor(node: Any) -> torch.Tensor | None:
    """The tensor that the node is, if it is a constant one."""
    if node.kind() != "prim::Constant" or node.output().type().kind() != "TensorType":
        return None
    tensor: torch.Tensor = node.output().toIValue().detach()
    return tensor


def is_joined(node: Any) -> bool:
    """Whether a list of tensors is read only by what makes one tensor of its entries."""
    if node.kind() != "prim::ListConstruct" or not holds_tensor(node.output()):
        return False
    users = [use.user.kind() for use in node.output().uses()]
    return bool(users) and all(user in _JOINS for user in users)


def is_divided(node: Any, following: Any | None) -> bool:
    """Whether the node gives a list of tensors that the following one alone takes apart."""
    if following is None or following.kind() != "prim::ListUnpack":
        return False
    if node.kind() not in _DIVISIONS:
        return False
    users = [use.user for use in node.output().uses()]
    return len(users) == 1 and bool(users[0] == following)


def read_by(node: Any) -> list[Any]:
    """The computed values that a node reads: joined lists by entry, without shape-only reads."""
    if node.kind() in METADATA or is_joined(node) or node.kind() == "prim::Constant":
        return []
    skipped = METADATA_ARGUMENTS.get(node.kind())
    found: list[Any] = []
    for name, value in zip(argument_names(node), node.inputs(), strict=False):
        if name != skipped:
            found += value.node().inputs() if is_joined(value.node()) else [value]
    return [v for v in found if holds_tensor(v) and v.node().kind() != "prim::Constant"]
