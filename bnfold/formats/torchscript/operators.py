"""Which operators a TorchScript file may call, told from its code before torch compiles any of it.

torch.jit.load runs code: what restores the state of a module, and the defaults of arguments. So the
text decides, as torch's own reader of archives gives it, before that:

    from_file, save   read and write files, by whatever stands before the dot: `torch.save`,
                      `ops.aten.save`, `value.save`, `getattr(torch, "save")`
    ops.SPACE         only of the SPACES, those of layers; others reach files (debugprims), the
                      network (c10d), other processes' memory (symm_mem)
    torch.classes     only those that hold quantized weights; others are files and connections

Once it is loaded, `forward` is looked at as it was compiled (`require_admitted`): it calls no such
operator, and none that takes memory or indices on trust.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bnfold.errors import UntrustedError
from bnfold.files import spelled
from bnfold.formats.torchscript.nodes import walk

SPACES = frozenset(
    {"aten", "prim", "prims", "quantized", "_quantized", "quantized_decomposed", "torchvision"}
)

CLASSES = frozenset({"quantized", "rnn"})

_FILES = "from_file|save"

_UNSAFE = re.compile(
    r"from_file|save|set_|set_data|slice_inverse|record_stream|segment_reduce"
    r"|_sparse_\w+_unsafe|_nested_view_from_\w+|_test_\w+"
)
"""Operators of aten that `forward` may not call: files, memory, and indices that nothing checks."""

_GAP = r"(?:\s|\\\n|#[^\n]*\n)*"

_FILE = re.compile(rf"\.{_GAP}(?:{_FILES})\b")
_FILE_BY_TEXT = re.compile(rf"[\"'](?:{_FILES})[\"']")
_SPACE = re.compile(rf"(?<![\w.\"'])ops\b(?!{_GAP}:)(?:{_GAP}\.{_GAP}(\w+))?")
_DOT = rf"{_GAP}\.{_GAP}"
_CLASS = re.compile(rf"__torch__{_DOT}torch{_DOT}classes\b(?:{_DOT}(\w+))?")

_READ = re.compile(r"^ +\w+ = self\.\w+$", re.MULTILINE)
"""A line that takes a part of a module, which may have the name of an operator."""

_DEFINED = re.compile(r"\bdef\b")
_LITERAL = r"(?:None|True|False|-?[\d.]+(?:e[+-]?\d+)?)(?=[,)])"
_PLAINLY = re.compile(rf"\bdef \w+\((?:[^=#\"'(]|={_LITERAL})*?\) -> ")
_AT_LOAD = ("__setstate__", "NamedTuple")
"""What runs while a file is loaded: these, and defaults of arguments that are no literals."""

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3}))")
_SEAM = re.compile(rf"[\"']{_GAP}[\"']")
"""Where two texts are one: "sa" "ve"."""


def require_harmless(path: Path) -> None:
    """Raise UntrustedError if the code in the archive at `path` could do more than compute."""
    code, objects = _texts(path)
    found = next(_suspects(code if _runs_at_load(code) else _READ.sub("", code), objects), None)
    if found is not None:
        raise _untrusted(f"{path} is a TorchScript file", found)


def require_admitted(module: torch.jit.ScriptModule, path: Path) -> None:
    """Raise UntrustedError if `forward`, as it was compiled, calls an operator that it may not."""
    graph: Any = module.inlined_graph
    for node in walk(graph):
        space, _, name = node.kind().partition("::")
        if space not in SPACES or (space == "aten" and _UNSAFE.fullmatch(name)):
            raise _untrusted(f"{path} is a TorchScript file", node.kind())


def _texts(path: Path) -> tuple[str, str]:
    """All code in an archive, and the pickles beside it, which name classes."""
    reader = torch._C.PyTorchFileReader(str(spelled(path)))
    names = reader.get_all_records()
    anywhere = any(name.lower() == "model.json" for name in names)  # which says where the code is
    code, objects = [], []
    for name in names:
        if anywhere or name.lower().endswith(".py"):
            code.append(reader.get_record(name).decode("latin-1"))
        elif name.lower().endswith("pkl"):
            objects.append(reader.get_record(name).decode("latin-1"))
    return "\n".join(code), "\n".join(objects)


def _runs_at_load(code: str) -> bool:
    computes_defaults = len(_DEFINED.findall(code)) != len(_PLAINLY.findall(code))
    return computes_defaults or any(name in code for name in _AT_LOAD)


def _suspects(code: str, objects: str) -> Iterator[str]:
    """What the code names that it may not."""
    if found := _FILE.search(code):
        yield found[0].lstrip(".").strip()
    if "getattr" in code:
        plain = _SEAM.sub("", _ESCAPE.sub(_unescaped, code))
        if found := _FILE_BY_TEXT.search(plain):
            yield f"getattr(..., {found[0]})"
    for found in _SPACE.finditer(code):
        if found[1] not in SPACES:
            yield f"ops.{found[1]}" if found[1] else "ops"
    for text in (code, objects):
        for found in _CLASS.finditer(text):
            if found[1] not in CLASSES:
                yield f"torch.classes.{found[1] or ''}"


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 16) if found[1] else int(found[2], 8))


def _untrusted(what: str, suspect: str) -> UntrustedError:
    return UntrustedError(
        f"{what} that could do more than compute: it calls {suspect}",
        "if you know where the file comes from: --trust",
        (suspect,),
    )
