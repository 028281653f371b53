"""Shapes and types of the values of a TorchScript graph, which stores none.

`record` runs the graph once with a log of every tensor as it is made, also inside branches and
loops; `infer` says what an operator alone makes certain, for what no run has shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bnfold.algebra.graph import Shape, Size, product
from bnfold.formats.pytorch import aten

_DTYPES = {
    **{0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 11: "bool"},
    **{5: "float16", 6: "float32", 7: "float64", 15: "bfloat16"},
    **{8: "complex32", 9: "complex64", 10: "complex128"},
}
"""The types of tensors by the number that TorchScript gives them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a tensor; `shape` is None where not even the rank is, `dtype` maybe ""."""

    shape: Shape | None
    dtype: str


_NOTHING = Seen(None, "")


def record(graph: Any, arguments: Sequence[Any]) -> dict[str, Seen]:
    """What a run of `graph` makes; `arguments` are its inputs, the module itself first."""
    copy = graph.copy()
    names = [value.debugName() for value, _ in _watched(graph.block())]
    watched = list(_watched(copy.block()))
    first = next(iter(copy.nodes()), copy.block())
    copy.setInsertPoint(first)
    log = copy.insertNode(copy.create("prim::ListConstruct", [], 1)).output()
    log.setType(torch._C.ListType(torch._C.ListType.ofInts()))
    for number, (value, place) in enumerate(watched):
        copy.setInsertPoint(place)
        sizes = copy.insert("aten::size", [value])
        for entry in (copy.insert("prim::dtype", [value]), copy.insertConstant(number)):
            copy.insert("aten::append", [sizes, entry])
        copy.insert("aten::append", [log, sizes])
    while copy.return_node().inputsSize():
        copy.eraseOutput(0)
    copy.registerOutput(log)
    module, *rest = arguments
    if next(iter(copy.inputs())).uses():
        rest = [module, *rest]
    else:
        copy.eraseInput(0)
    run = torch._C._create_function_from_graph("record", copy)
    with torch.no_grad():
        return _merged(names, run(*rest))


def _watched(block: Any) -> Iterator[tuple[Any, Any]]:
    """Every tensor that is computed, with the place in the graph right after it."""
    nodes = list(block.nodes())
    for value in block.inputs():
        if _is_tensor(value):
            yield value, nodes[0] if nodes else block
    for node, after in zip(nodes, (*nodes[1:], block), strict=False):
        for inner in node.blocks():
            yield from _watched(inner)
        for value in node.outputs():
            if _is_tensor(value) and node.kind() != "prim::Constant" and not _may_be_nothing(value):
                yield value, after


def _may_be_nothing(value: Any) -> bool:
    """Whether a branch that raises or returns early leaves the value without a tensor."""
    node = value.node()
    position = [output.debugName() for output in node.outputs()].index(value.debugName())
    ends = [list(block.outputs()) for block in node.blocks()] if node.kind() == "prim::If" else []
    return node.kind() == "prim::Uninitialized" or any(
        _may_be_nothing(end[position])
        for end in ends
        if end[position].node().kind() != "prim::Param"
    )


def _is_tensor(value: Any) -> bool:
    return bool(value.type().kind() == "TensorType")


def _merged(names: Sequence[str], log: Sequence[Sequence[int]]) -> dict[str, Seen]:
    """One entry for each name; where the turns of a loop differ, what they have in common."""
    found: dict[str, Seen] = {}
    for *sizes, dtype, number in log:
        name = names[number]
        seen = Seen(tuple(sizes), _DTYPES.get(dtype, ""))
        before = found.get(name, seen)
        same = seen.dtype if seen.dtype == before.dtype else ""
        found[name] = Seen(_common(seen.shape, before.shape), same)
    return found


def _common(a: Shape | None, b: Shape | None) -> Shape | None:
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))


_KEEPING = (
    "batch_norm instance_norm relu leaky_relu prelu dropout feature_dropout alpha_dropout clone "
    "detach contiguous alias sigmoid tanh silu gelu elu selu mish hardtanh relu6 hardswish "
    "hardsigmoid softplus softmax log_softmax"
)
"""Operators that give the shape and type of their first tensor."""

_CONVOLUTIONS = (
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
    "_convolution"
)


def infer(call: aten.Call) -> Seen:
    """What is certain of the call's one output, given what is known of its inputs."""
    op = call.op.removesuffix("_")
    given = [Seen(tensor.shape, tensor.dtype) for tensor in call.tensors]
    first = given[0]
    if op in _KEEPING.split():
        return first
    if op in _CONVOLUTIONS.split():
        return _convolved(call, first)
    if op == "linear" and isinstance(weight := call["weight"], aten.Stored):
        if len(weight.shape) != 2:
            return _NOTHING
        shape = None if first.shape is None else (*first.shape[:-1], weight.shape[0])
        return Seen(shape, weight.dtype)
    if op in ("add", "sub", "mul", "div"):
        return _broadcast(call, given)
    if "_pool" in op and first.shape is not None:
        rank = next(int(c) for c in op if c.isdigit())
        return Seen((*first.shape[:-rank], *[None] * rank), first.dtype)
    if op == "flatten" and (call.get("start_dim"), call.get("end_dim")) == (1, -1) and first.shape:
        return Seen((first.shape[0], product(first.shape[1:])), first.dtype)
    return _NOTHING


def _convolved(call: aten.Call, source: Seen) -> Seen:
    weight, groups = call["weight"], call["groups"]
    if not isinstance(weight, aten.Stored) or not isinstance(groups, int):
        return _NOTHING
    transposed = bool(call.get("transposed")) or "transpose" in call.op
    if len(weight.shape) < 3:  # no convolution runs with that
        return _NOTHING
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    rank = len(weight.shape) - 2
    batch: tuple[Size, ...] = (f"{call.values[0]}[0]",)
    if source.shape is not None:
        batch = source.shape[: -rank - 1]
    return Seen((*batch, channels, *[None] * rank), weight.dtype)


def _broadcast(call: aten.Call, given: Sequence[Seen]) -> Seen:
    """The result has the shape of an operand that the other surely broadcasts to."""
    if len(given) == 2:
        same = given[0].dtype if given[0].dtype == given[1].dtype else ""
        return Seen(_common(given[0].shape, given[1].shape), same)
    shape, dtype = given[0].shape, given[0].dtype
    constant = next((a for a in call.arguments.values() if isinstance(a, aten.Stored)), None)
    if constant is None or len(constant.shape) == 0:
        return given[0]
    if shape is None or len(constant.shape) > len(shape):
        return _NOTHING
    own = (1,) * (len(shape) - len(constant.shape)) + constant.shape
    fits = all(c in (1, size) for c, size in zip(own, shape, strict=True))
    return Seen(shape if fits else None, dtype if constant.dtype == dtype else "")
