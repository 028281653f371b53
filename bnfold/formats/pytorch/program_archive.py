"""Look into a `.pt2` archive before torch.export.load does, which runs what it finds there.

Ways to run code from an archive, all closed here:
    pickled weights, constants, sample inputs    loaded with weights only, by an environment switch
    custom and opaque objects, compiled code     refused
    symbolic sizes, which sympy evaluates        refused unless they are plain formulas
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

from bnfold.errors import ModelError, UntrustedError

_CODE = re.compile(r"/(custom_obj_|opaque_obj_)|/data/aotinductor/")
_FORMULA = re.compile(r"[\w\s+\-*/(),.<>=!&|~]*")
_SUSPICIOUS = re.compile(r"__|\.\s*[A-Za-z_]|\b[a-z_]\w*\s*\(")
"""Names with a double underscore, attributes, calls of anything but a (capitalised) sympy class."""

_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def refuse_code(path: Path) -> None:
    """Raise UntrustedError if loading the archive would run code that it carries."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            texts = {name: archive.read(name) for name in names if _is_program(name)}
        found = [name for name in names if _CODE.search(f"/{name}")]
        for text in texts.values():
            found += [expression for expression in _formulas(json.loads(text)) if _runs(expression)]
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ModelError(
            f"{path} is a damaged exported program (.pt2): {error}", "save or download it again"
        ) from error
    if found:
        raise UntrustedError(
            f"{path} is an exported program that would run code of its own: {found[0]}",
            "if you know where the file comes from: --trust",
            tuple(found),
        )


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


def _is_program(name: str) -> bool:
    return re.search(r"(^|/)(models/.*\.json|serialized_exported_program\.json)$", name) is not None


def _formulas(entry: Any) -> Iterator[str]:
    if isinstance(entry, dict):
        for key, value in entry.items():
            if key == "expr_str":
                yield str(value)
            else:
                yield from _formulas(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _formulas(value)


def _runs(expression: str) -> bool:
    expression = re.sub(r"'[a-z]+[0-9]*'", "", expression)  # the name of a symbol
    return not _FORMULA.fullmatch(expression) or _SUSPICIOUS.search(expression) is not None
