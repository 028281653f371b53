"""Modules that show their values, by the name of the part or of the node that gave them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from bnfold.formats.pytorch.identifiers import Identifiers
from bnfold.naming import unique


def showing(module: nn.Module, values: dict[str, tuple[str, ...]]) -> Callable[..., Any]:
    """`module` as a function that gives the tensors of its parts too, before its own outputs.

    Each run fills `values`: the name of a tensor -> those that it was computed from, as far as that
    can be seen: what its part read, or else what was computed before it.
    """

    def call(*args: Any, **kwargs: Any) -> dict[str, Any]:
        values.clear()
        shown: dict[str, Any] = {}
        with _watched(module, shown, values):
            made = module(*args, **kwargs)
        before = tuple(shown)[-1:]
        values.update(dict.fromkeys(("output", *_names(made)), before))
        return {**shown, **(made if isinstance(made, dict) else {"output": made})}

    return call


def _names(made: Any) -> Iterator[str]:
    if isinstance(made, dict):
        yield from map(str, made)
    elif isinstance(made, tuple | list):
        yield from (f"output.output.{i}" for i in range(len(made)))


@contextmanager
def _watched(
    module: nn.Module, shown: dict[str, Any], values: dict[str, tuple[str, ...]]
) -> Iterator[None]:
    made: dict[int, str] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(part: nn.Module, args: Any, result: Any) -> None:
            if not isinstance(result, torch.Tensor):
                return
            shown_as = unique(name, shown)
            known = tuple(made[id(arg)] for arg in args if id(arg) in made)
            values[shown_as] = known or tuple(shown)[-1:]
            shown[shown_as] = result.clone()
            made[id(result)] = shown_as
            kept.append(result)

        return keep

    kept: list[torch.Tensor] = []
    with ExitStack() as stack:
        for name, part in module.named_modules():
            if name and not any(True for _ in part.children()):
                handle = part.register_forward_hook(hook(name))
                stack.callback(handle.remove)
        yield


class ShowingGraph(torch.fx.Interpreter):
    """Runs the graph of an exported program and keeps the tensor of every operator."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.shown: dict[str, torch.Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        made = super().run_node(n)
        if n.op == "call_function" and isinstance(made, torch.Tensor):
            self.shown[n.name] = made.clone()  # a later operator may write to it
        return made


def owner(node: torch.fx.Node, names: Identifiers) -> str:
    """The innermost module that an operator came from, if the program knows; else its own name."""
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{names.original(stack[-1])} ({node.name})" if stack else node.name
