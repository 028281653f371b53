"""The attributes of a ScriptModule, which freezing takes away: they are for whoever loads it.

What `forward` does not read is kept by freezing itself, if it is told the names. What `forward`
reads becomes a constant in it; labels, thresholds and the like are put back beside it, to be read.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from bnfold.formats.torchscript.nodes import walk

_DECLARED = re.compile(r'  (?:(\w+) : (?!Final\[)|__annotations__\["(.+)"\] = )')


def attributes_of(module: Any, archive: bytes) -> dict[str, Any]:
    """The names and types of the attributes of `module`, which `archive` was written from."""
    kind = module._c._type()
    *folders, name = kind.qualified_name().split(".")
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        path = f"/code/{'/'.join(folders)}.py"
        member = next((n for n in file.namelist() if n.endswith(path)), None)
        lines = file.read(member).decode().splitlines() if member else []
    names = list(_declared(lines, f"class {name}("))
    types = kind.containedTypes()
    return dict(zip(names, types, strict=True)) if len(names) == len(types) else {}


def _declared(lines: list[str], header: str) -> Iterator[str]:
    """The names that a class declares, in the code that TorchScript is stored as."""
    start = next((i for i, line in enumerate(lines) if line.startswith(header)), len(lines))
    for line in lines[start + 1 :]:
        if line.startswith("  def ") or not line.startswith("  "):
            return
        if found := _DECLARED.match(line):
            yield found[1] or found[2]


def unread(module: Any, names: list[str]) -> list[str]:
    """Those of the attributes that `forward` does not read and that are no submodules."""
    graph = module.inlined_graph
    itself = next(iter(graph.inputs())).debugName()
    read = {
        node.s("name")
        for node in walk(graph)
        if node.kind() == "prim::GetAttr" and node.input().debugName() == itself
    }
    return [name for name in names if name not in read and not _is_module(module, name)]


def restore(frozen: Any, module: Any, attributes: dict[str, Any]) -> None:
    """Put back what freezing took from `module`, but its submodules and tensors."""
    for name, kind in attributes.items():
        if not frozen._c.hasattr(name) and not _is_module(module, name):
            value = module._c.getattr(name)
            if not isinstance(value, torch.Tensor):
                frozen._c._register_attribute(name, kind, value)


def _is_module(module: Any, name: str) -> bool:
    return isinstance(module._c.getattr(name), torch._C.ScriptModule)
