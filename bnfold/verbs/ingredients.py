"""What the artefacts of a model of a pipeline are made of, and the hash by which it is known again.

The model's file with its external data, recorded inputs, the Python source of the packages that its
factory and the classes allowed to it lie in, what it depends on besides, its settings, and the
versions of bnfold and of what bnfold uses.
"""

from __future__ import annotations

import glob
import hashlib
import json
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from bnfold.environment import versions
from bnfold.errors import ModelError
from bnfold.files import sha256
from bnfold.formats.allow_list import files, packages
from bnfold.formats.model import Format
from bnfold.formats.opening import recognise
from bnfold.verbs.pipeline import Entry


def key(entry: Entry) -> str:
    """A hash of everything that the artefacts of a model depend on. Raises ModelError."""
    content = {str(path): _hash(path) for path in sorted(ingredients(entry))}
    facts = {"versions": versions(), "settings": repr(entry), "content": content}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def ingredients(entry: Entry) -> set[Path]:
    """The files that a model is made of. Raises ModelError for what is no model."""
    found = {entry.source}
    if recognise(entry.source) is Format.ONNX:
        from bnfold.formats.onnx.files import data_files

        found.update(data_files(entry.source))
    factory = entry.opening.factory or ""
    named = {factory.partition(":")[0].partition(".")[0]} - {""}
    for package in named | packages(entry.opening.allow):
        found.update(_sources(package))
    for pattern in entry.depends:
        found.update(Path(name) for name in glob.glob(pattern, recursive=True))
    found.update(entry.gate.recorded, files(entry.opening.allow))
    return {file for path in found for file in _files(path)}


def _files(path: Path) -> Iterator[Path]:
    """The file, or all files in the folder."""
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    elif path.is_file():
        yield path


def _sources(package: str) -> Iterator[Path]:
    """The Python files of a package, or of a module; none if it is built in or cannot be found."""
    spec = _spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from Path(folder).rglob("*.py")
    if spec is not None and spec.has_location and spec.origin is not None:
        yield Path(spec.origin)


def _spec(package: str) -> ModuleSpec | None:
    """Where the package would be imported from: the current folder counts, as it does then."""
    try:
        return PathFinder.find_spec(package, [str(Path.cwd()), *sys.path]) or find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return None


def _hash(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check the path") from error
