"""Whether the code around a part of a network names what lies inside the part.

Seen are chains of attributes as they stand in the source ("self.block.conv", "self.block[0]",
"for layer in self.block"); a part that is handed on under another name is not followed.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch import nn

INSIDE = "[]"
"""The last link of a chain whose value is indexed or iterated over."""


def reaches_into(part: nn.Module, modules: Iterable[nn.Module]) -> str | None:
    """The first chain by which one of the modules outside of `part` gets at what is in it."""
    within = set(part.modules())
    for module in modules:
        if module not in within:
            kind: Any = type(module)
            for chain in _chains(kind):
                if _passes(module, chain, part):
                    return ".".join(chain).replace(f".{INSIDE}", INSIDE)
    return None


def _passes(start: nn.Module, chain: tuple[str, ...], part: nn.Module) -> bool:
    here: object = start
    for name in chain[1:]:
        if here is part:
            return name == INSIDE or _is_inner(part, name)
        here = getattr(here, name, None)
    return False


def _is_inner(part: nn.Module, name: str) -> bool:
    """Whether `name` is a child, a tensor or a method of the part's own; `forward` is the part."""
    if name in part._modules or name in part._parameters or name in part._buffers:
        return True
    return (
        name != "forward" and not hasattr(nn.Module, name) and callable(getattr(part, name, None))
    )


@cache
def _chains(kind: Any) -> tuple[tuple[str, ...], ...]:
    """Every chain of attributes in `forward`, and in the methods that it may call."""
    methods = _methods(kind)
    found: dict[tuple[str, ...], None] = {}
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        for method in methods.get(waiting.pop(), ()):
            for node in ast.walk(method):
                found.update(dict.fromkeys(_chain_of(node)))
                if isinstance(node, ast.Attribute) and node.attr not in seen:
                    seen.add(node.attr)
                    waiting.append(node.attr)
    return tuple(found)


def _methods(kind: Any) -> dict[str, list[ast.AST]]:
    """The methods of a class and its bases, but torch's own, by name."""
    methods: dict[str, list[ast.AST]] = {}
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] in ("torch", "builtins", "typing", "abc"):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        except (OSError, TypeError, SyntaxError):  # made at run time: there is no source
            continue
        for node in getattr(tree, "body", ()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                methods.setdefault(node.name, []).append(node)
    return methods


def _chain_of(node: ast.AST) -> Iterator[tuple[str, ...]]:
    if isinstance(node, ast.Attribute):
        yield from _links(node)
    elif isinstance(node, ast.Subscript | ast.Starred):
        yield from ((*chain, INSIDE) for chain in _links(node.value))
    elif isinstance(node, ast.For | ast.comprehension):
        yield from ((*chain, INSIDE) for chain in _links(node.iter))


def _links(node: ast.AST) -> Iterator[tuple[str, ...]]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        yield (node.id, *reversed(names))
