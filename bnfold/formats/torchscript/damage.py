"""One number of a TorchScript module changed: what `verify --self-test` judges.

A weight is a parameter, or a constant of the graph once the module is frozen; an epsilon is a
number in the graph. A constant is known by its place among all nodes of the inlined graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from bnfold.formats.model import off
from bnfold.formats.pytorch.damage import damage, damageable
from bnfold.formats.torchscript.copies import copied
from bnfold.formats.torchscript.nodes import argument_names, constant_tensor, walk

Damaged = Callable[[float], Any]


def damages(module: Any) -> Iterator[tuple[str, str, Damaged]]:
    """Kind, place and maker of every damage to a ScriptModule."""
    for kind, where, name in damageable(module.state_dict()):
        yield kind, where, partial(_parameter, module, name)
    for i, node in enumerate(_nodes(copied(module))):
        if node.kind() != "prim::Constant":
            continue
        roles = {_role(use) for use in node.output().uses()}
        name, tensor = node.output().debugName(), constant_tensor(node)
        if tensor is not None and tensor.is_floating_point() and tensor.ndim:
            kind = "weight" if tensor.ndim > 1 else "bias"
            if kind == "weight" or "bias" in roles:
                yield kind, f"the {kind} %{name}", partial(_constant, module, i)
        elif "eps" in roles and node.hasAttribute("value"):
            yield "epsilon", f"the epsilon %{name}", partial(_epsilon, module, i)


def _role(use: Any) -> str:
    """The name of the argument as which an operator reads a value."""
    names = argument_names(use.user)
    return names[use.offset] if use.offset < len(names) else ""


def _nodes(module: Any) -> list[Any]:
    """Those of a module's graph, once everything in it is inlined."""
    torch._C._jit_pass_inline(module.graph)
    return list(walk(module.graph))


def _parameter(module: Any, name: str, size: float) -> Any:
    damaged = copied(module)
    damage(damaged.state_dict()[name], size)
    return damaged


def _constant(module: Any, place: int, size: float) -> Any:
    damaged = copied(module)
    node = _nodes(damaged)[place]
    tensor = constant_tensor(node)
    assert tensor is not None
    tensor = tensor.clone()
    damage(tensor, size)
    return _replaced(damaged, node, tensor)


def _epsilon(module: Any, place: int, size: float) -> Any:
    damaged = copied(module)
    node = _nodes(damaged)[place]
    return _replaced(damaged, node, off(node.output().toIValue(), 1000 * size))


def _replaced(module: Any, node: Any, value: Any) -> Any:
    module.graph.setInsertPoint(node)
    node.output().replaceAllUsesWith(module.graph.insertConstant(value))
    return module
