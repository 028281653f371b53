"""Makes the calls of maps that are carried to other places in a functional program.

A layer is made from its op. Everything else is a copy of the call that it was; where that is told
the sizes of its result, as a view is, the entry of the channels is replaced.

Free are   ONE     calls that are one node of the neutral graph
           KNOWN   of operators that say nothing of the channels but in their sizes; of convolutions
                   those that pad zeros, as many on either side
           UNSEEN  whose result nothing asks for its sizes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bnfold.algebra.graph import Add, Concat, Conv, Graph, Linear, Node, params
from bnfold.algebra.plan import Plan
from bnfold.algebra.rounding import Weights
from bnfold.formats.pytorch import aten
from bnfold.formats.pytorch.calls import name_of
from bnfold.formats.pytorch.program_reader import ProgramReader, tensor_of
from bnfold.runtimes.torch_eager import to_tensor

LAYERS = frozenset(
    {"conv1d", "conv2d", "conv3d", "convolution", "linear", "addmm", "mm", "matmul", "cat"}
)
COPIED = frozenset(
    {
        *("alias", "clone", "dropout", "permute", "transpose", "slice", "select", "mean"),
        *("flatten", "squeeze", "unsqueeze", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bicubic2d"),
        *("view", "reshape", "expand"),
    }
)
SIZED = frozenset({"view", "reshape", "expand"})
"""Operators whose second argument has the sizes of the result."""

Store = Callable[[str, torch.Tensor], torch.fx.Node]


def free_nodes(reader: ProgramReader, graph: Graph, program: torch.fx.Graph) -> frozenset[str]:
    """The nodes of the neutral graph that can be made anew for other numbers of channels."""
    calls = {call.name: call for call in program.nodes}
    parts = Counter(reader.native.values())
    found = {
        node.name: calls[reader.native[node.name]]
        for node in graph.nodes
        if node.name in reader.native
    }
    return frozenset(
        node.name
        for node in graph.nodes
        if (call := found.get(node.name)) is not None
        and parts[call.name] == 1
        and isinstance(call.target, torch._ops.OpOverload)
        and name_of(call.target) in LAYERS | COPIED
        and (not isinstance(node.op, Conv) or _is_plain(node.op))
        and all(user.op == "output" or tensor_of(user) is not None for user in call.users)
    )


def _is_plain(op: Conv) -> bool:
    return op.pad_mode == "zeros" and not op.transposed and all(lo == hi for lo, hi in op.pads)


class Making:
    """Makes the new calls of a plan in `graph`; `store` gives it a parameter under a name."""

    def __init__(self, graph: torch.fx.Graph, plan: Plan, weights: Weights, store: Store) -> None:
        self.graph = graph
        self.plan = plan
        self.weights = weights
        self.store = store
        self.before = {node.name: node for node in plan.before.nodes}
        tensors = [tensor for call in graph.nodes if (tensor := tensor_of(call)) is not None]
        self.symbols = {str(size): size for tensor in tensors for size in tensor.shape}

    def call(
        self,
        node: Node,
        inputs: list[torch.fx.Node],
        calls: Mapping[str, torch.fx.Node],
        place: torch.fx.Node,
    ) -> torch.fx.Node:
        """A new call before `place`; `calls` are those of the neutral nodes that were read."""
        like = self.plan.made[node.name].like
        if like is not None:
            target, arguments, named = self._copied(node, self.before[like], inputs[0], calls[like])
        else:
            (target, arguments), named = self._made(node, inputs), {}
        with self.graph.inserting_before(place):
            made = self.graph.call_function(target, arguments, named)
        kept = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn")
        made.meta.update({key: place.meta[key] for key in kept if key in place.meta})
        made.meta["val"] = inputs[0].meta["val"].new_empty(self._sizes(node.outputs[0]))
        return made

    def _sizes(self, value: str) -> list[Any]:
        """The sizes of a new value; to compute it, even of no numbers, could fix a free size."""
        shape = self.plan.after.shapes[value]
        assert shape is not None
        return [size if isinstance(size, int) else self.symbols[str(size)] for size in shape]

    def _made(self, node: Node, inputs: list[torch.fx.Node]) -> tuple[Any, tuple[Any, ...]]:
        operators = torch.ops.aten
        match node.op:
            case Concat(axis=axis):
                return operators.cat.default, (inputs, axis)
            case Add():
                return operators.add.Tensor, tuple(inputs)
            case Conv() | Linear():
                new = self.weights[node.name]
                stored = [
                    self.store(f"{node.name}.{r}", to_tensor(new[r])) for r, _ in params(node.op)
                ]
                target = getattr(operators, aten.layer_name(node.op)).default
                return target, (inputs[0], *stored, *_geometry(node.op))
        raise AssertionError(f"{node.name} can only be copied")

    def _copied(
        self, node: Node, old: Node, data: torch.fx.Node, call: torch.fx.Node
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The operator of a call, on other data, with what is told of the sizes of its result."""
        target = call.target
        arguments = [data, *call.args[1:]]
        assert isinstance(target, torch._ops.OpOverload)
        if name_of(target) in SIZED:
            before = self.plan.before.shapes[old.outputs[0]] or ()
            after = self.plan.after.shapes[node.outputs[0]] or ()
            sizes = list(call.args[1])  # type: ignore[arg-type]
            for axis, (was, now) in enumerate(zip(before, after, strict=True)):
                sizes[axis] = sizes[axis] if was == now else now
            arguments[1] = sizes
        if name_of(target) == "view":  # of what may lie in memory in another order
            target = torch.ops.aten.reshape.default
        return target, tuple(arguments), dict(call.kwargs)


def _geometry(op: Conv | Linear) -> tuple[Any, ...]:
    """The arguments of a layer behind its weight and bias; a bias that there is not is None."""
    bias = () if op.bias is not None else (None,)
    if isinstance(op, Linear):
        return bias
    padding = [low for low, _ in op.pads]
    return (*bias, list(op.stride), padding, list(op.dilation), op.groups)
