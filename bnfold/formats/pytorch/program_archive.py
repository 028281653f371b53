"""Look into a `.pt2` archive before torch.export.load does, which runs what it finds there.

Ways to run code from an archive, all closed here:
    pickled weights, constants, sample inputs    loaded with weights only, by an environment switch
    custom and opaque objects, compiled code     refused
    symbolic sizes, which sympy evaluates        refused unless they are plain formulas
    guards, which become a Python function       refused unless they compare sizes
    names, which become Python code of torch.fx  refused unless they are plain
    operators that read and write files          refused
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bnfold.errors import ModelError, UntrustedError
from bnfold.formats.archive import members, most_memory
from bnfold.formats.pytorch.identifiers import is_identifier

_CODE = re.compile(r"/(custom_obj_|opaque_obj_)|/data/aotinductor/", re.IGNORECASE)
_PROGRAM = re.compile(r"([^/]+/)?(models/.+|serialized_exported_program\.json)", re.IGNORECASE)

_MODEL = re.compile(r"[^/]+/models/(.+)\.json")

_EXTRA = re.compile(r"(?:[^/]+/extra|extra_files)/(.+)")

_FORMULA = re.compile(r"[\w\s+\-*/(),.<>=!&|~]*")
_SUSPICIOUS = re.compile(r"__|\.\s*[A-Za-z_]|\b[a-z_]\w*\s*\(")
"""Names with a double underscore, attributes, calls of anything but a (capitalised) sympy class."""

_GUARD_WORDS = re.compile(
    r"L(\[(\d+|'\w*'|\"\w*\")\])+(\.(size|stride|storage_offset|dtype|shape)\b(\(\))?)?"
    r"|\b(and|or|not|is|in|None|True|False|inf|math\.isnan|math\.inf|[A-Z]\w*)\b"
)
_GUARD_SIGNS = re.compile(r"[\d\s.eE+\-*/%(),<>=!&|~\[\]]*")

_NAME = re.compile(r"[\w.:@+\-/]*")
_TEXT = re.compile(r"[^'\"\\\x00-\x1f\x7f]*")
_OPERATORS_ON_FILES = re.compile(r"torch\.ops\.(aten\.(save|from_file)|debugprims)\b")

_COMMENTS = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"}
"""Entries of a node that nothing evaluates."""

_IMPORTS = {"__enum__", "default_factory_module"}
"""Parts of the structure of inputs that name a module, which torch would import."""

_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def refuse_code(path: Path) -> None:
    """Raise UntrustedError if loading the archive would run code that it carries."""
    try:
        members = dict(_members(path))
        found = [name for name, _ in members.items() if _CODE.search(f"/{name}")]
        for text in {text for text in members.values() if text is not None}:
            found += _suspects("", json.loads(text))
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
        raise ModelError(
            f"{path} is a damaged exported program (.pt2): {error}", "save or download it again"
        ) from error
    if found:
        raise UntrustedError(
            f"{path} is an exported program that would run code of its own: {found[0][:200]!r}",
            "if you know where the file comes from: --trust",
            tuple(found),
        )


def require_one_program(path: Path) -> None:
    """Raise ModelError for a package of several models: all but one would be lost."""
    found = sorted({m[1] for name in members(path) if (m := _MODEL.fullmatch(name))})
    if len(found) > 1:
        raise ModelError(
            f"{path} holds {len(found)} models: {', '.join(found)}",
            "save each to a file of its own with torch.export.save",
        )


def extra_names(path: Path) -> list[str]:
    """The names of the files that its maker added to the archive, for torch to fill."""
    found = [_EXTRA.fullmatch(name) for name in members(path)]
    return [match[1] for match in found if match]


def _members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """All names, and the texts of programs, as both of torch's ways to read archives see them."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name, archive.read(name) if _PROGRAM.fullmatch(name) else None
    try:
        reader = torch._C.PyTorchFileReader(str(path))
    except RuntimeError:  # the format of torch before 2.8, which torch reads with zipfile
        return
    for name in reader.get_all_records():
        if not _PROGRAM.fullmatch(name):
            yield f"archive/{name}", None
        elif reader.get_record_size(name) > most_memory(path):
            raise ValueError(f"{name} would unpack to more than the file's own size explains")
        else:
            yield f"archive/{name}", reader.get_record(name)


def _suspects(key: str, entry: Any) -> Iterator[str]:
    """The texts in an entry of a program that could be more than data."""
    if isinstance(entry, dict):
        for name, value in entry.items():
            if not _NAME.fullmatch(name) or name in _IMPORTS:
                yield name
            yield from _suspects(name, value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _suspects(key, value)
    elif isinstance(entry, str) and not _is_harmless(key, entry):
        yield entry


def _is_harmless(key: str, text: str) -> bool:
    match key:
        case "expr_str":
            return _is_formula(text)
        case "guards_code":
            return _GUARD_SIGNS.fullmatch(_GUARD_WORDS.sub("", text)) is not None
        case "in_spec" | "out_spec" | "context":
            return not any(_suspects("", json.loads(text))) if text else True
        case "as_string":
            return _TEXT.fullmatch(text) is not None
        case "name":  # of a value, which is a variable in the code that torch writes
            return not text or is_identifier(text)
        case "target":
            return bool(_NAME.fullmatch(text)) and not _OPERATORS_ON_FILES.match(text)
        case _:
            return key in _COMMENTS or _NAME.fullmatch(text) is not None


def _is_formula(expression: str) -> bool:
    expression = re.sub(r"'[a-z]+[0-9]*'", "", expression)  # the name of a symbol
    return bool(_FORMULA.fullmatch(expression)) and not _SUSPICIOUS.search(expression)


@contextmanager
def weights_only(wanted: bool) -> Iterator[None]:
    """Make every torch.load, also those inside torch.export.load, admit tensors only."""
    before = os.environ.get(_SWITCH)
    if wanted:
        os.environ[_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = before
