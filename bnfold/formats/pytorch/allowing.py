"""What a user lets a pickle import and build: --allow, as names, packages and patterns.

    pkg.mod.Class     one class or function, which the file may call with what it likes
    pkg, pkg.mod      the classes of a package, which the file may fill but not call
    pkg.mod.*         those whose names fit

What is allowed is decided by what a name leads to, not by how it is spelled: a function of the
system stays one wherever it is imported. What could do anything cannot be allowed at all.
"""

from __future__ import annotations

import argparse
import enum
import functools
import importlib
import inspect
import pathlib
import sys
import typing
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from bnfold.errors import UntrustedError, UsageError
from bnfold.formats.allow_list import allow_list

SYSTEM = sys.stdlib_module_names | {"__builtin__"}

PLAIN: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "builtins.slice": slice,
    "functools.partial": functools.partial,
    "pathlib.PosixPath": pathlib.PosixPath,
    "pathlib.PurePosixPath": pathlib.PurePosixPath,
    "pathlib.WindowsPath": pathlib.PureWindowsPath,
    "typing.Any": typing.Any,
}
"""Classes of the system that hold data and run nothing; they stand in many a checkpoint."""

_CONTAINERS = (
    *("collections.defaultdict", "collections.deque", "datetime.datetime", "datetime.timedelta"),
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "frozenset", "int", "list")),
    *(f"builtins.{name}" for name in ("object", "range", "str", "tuple")),
)
"""Those that can be allowed: they run nothing, but can take much memory."""

_WILD = frozenset("*?[")

_DATA = (enum.Enum, str, int, float, tuple, list, dict, set, frozenset, torch.Tensor, torch.Size)
"""What classes are made of that do no more than hold what they are called with."""


class Allowed:
    """The names that a user allows. Raises UsageError for what could do anything."""

    def __init__(self, given: Iterable[str]) -> None:
        self._patterns = [_checked(each) for each in allow_list(given)]

    def get(self, name: str, called: bool, path: Path) -> Any:
        """What `name` in the file `path` leads to, if it is allowed; else None.

        `called` says that the file calls it, rather than to make an empty object of it. Raises
        UntrustedError for what no package or pattern covers, UsageError for what does not exist.
        """
        exact = name in self._patterns
        if not exact and not any(_covers(pattern, name) for pattern in self._patterns):
            return None
        found = resolve(name)
        if (trouble := _trouble(found)) is not None:
            if exact:
                raise _too_much(name)
            raise UntrustedError(
                f"{path} would run {name}, which {trouble}",
                "no package covers that: do not open the file unless you wrote it (--trust)",
                (name,),
            )
        if not exact and (trouble := _beyond_packages(name, found, called)) is not None:
            raise UntrustedError(
                f"{path} needs {name}, which {trouble}",
                f"allow it by its own name, if you know where the file comes from: --allow {name}",
                (name,),
            )
        return found


def is_powerful(name: str) -> bool:
    """Does building what is called `name` allow more than to hold data?

    True of most that is no class. The object itself tells more: see Allowed.
    """
    root, _, _ = name.partition(".")
    if name in (*PLAIN, *_CONTAINERS):
        return False
    if root == "torch":
        module, _, attribute = name.rpartition(".")
        found = getattr(sys.modules.get(module), attribute, None)
        return _is_powerful_torch(name, isinstance(found, type))
    return root in SYSTEM


def advice(missing: tuple[str, ...], called: Iterable[str]) -> str:
    """What to type for what is missing; where it could do anything, not to."""
    if any(name.partition(".")[0] in SYSTEM and is_powerful(name) for name in missing):
        return "no model needs that: do not open the file unless you wrote it yourself (--trust)"
    if any(map(is_powerful, missing)):
        return "if you know where the file comes from: --trust, or save it again with torch.save"
    flags = " ".join(f"--allow {name}" for name in _shortest(missing, set(called)))
    return f"if you know where the file comes from: {flags} (or --trust to allow everything)"


def resolve(name: str) -> Any:
    """The object called `pkg.mod:attribute` or `pkg.mod.attribute`, looked up from this folder."""
    module, colon, attribute = name.partition(":")
    if not colon:
        module, _, attribute = name.rpartition(".")
    if not module or not attribute:
        raise UsageError(f"{name!r} does not name anything", "write it as pkg.mod:name")
    look_here()
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise UsageError(f"{name}: {module} has no {attribute}") from error
    except Exception as error:  # importing runs the module, which may raise anything
        raise UsageError(
            f"{name}: cannot import {module}: {error}",
            "run bnfold in the folder that holds it, or set PYTHONPATH",
        ) from error
    return found


def look_here() -> None:
    """Let the user's own modules be imported from the current folder, as with `python -m`."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _checked(pattern: str) -> str:
    root = pattern.partition(".")[0]
    named = "." in pattern and not _WILD & set(pattern)
    if _WILD & set(root) or (root in SYSTEM and is_powerful(pattern)):
        raise _too_much(pattern)
    if root == "torch" and named and is_powerful(pattern) and pattern not in sys.modules:
        raise _too_much(pattern)
    return pattern


def _covers(pattern: str, name: str) -> bool:
    return name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _trouble(found: Any) -> str | None:
    """Why `found` could do anything, wherever its name stands; None if it cannot."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return "is neither a class nor a function"
    if not isinstance(found, type) and (not inspect.isroutine(found) or "." in name):
        return "is neither a class nor a function"
    home = f"{module}.{name}"
    root = module.partition(".")[0]
    if root == "torch":
        powerful = _is_powerful_torch(home, isinstance(found, type))
    else:
        powerful = root in SYSTEM and home not in (*PLAIN, *_CONTAINERS)
    return f"is {home} and could do anything" if powerful else None


def _beyond_packages(name: str, found: Any, called: bool) -> str | None:
    """What about `found` a package or a pattern does not allow."""
    home = str(getattr(found, "__module__", ""))
    if home.partition(".")[0] != name.partition(".")[0]:
        return f"comes from {home}"
    if not isinstance(found, type):
        return "is no class"
    if called and not issubclass(found, _DATA):
        return "it calls with arguments of its own"
    return None


def _is_powerful_torch(name: str, is_class: bool) -> bool:
    if name.startswith("torch.nn."):
        return False
    inside = name.startswith(("torch.fx.", "torch.jit.", "torch.package.", "torch._"))
    return inside or not is_class


def _too_much(name: str) -> UsageError:
    return UsageError(
        f"--allow {name} would allow the file to do anything",
        "only --trust does that: give it if you know where the file comes from",
    )


def _shortest(missing: tuple[str, ...], called: set[str]) -> Iterator[str]:
    """The package of several classes; the names of others, such as of functions."""
    for root, group in groupby(sorted(missing), key=lambda name: name.partition(".")[0]):
        names = list(group)
        classes = [name for name in names if name not in called and _looks_like_a_class(name)]
        if root in SYSTEM or root == "torch" or len(classes) < 2:
            yield from names
        else:
            yield root
            yield from (name for name in names if name not in classes)


def _looks_like_a_class(name: str) -> bool:
    return name.rpartition(".")[2].lstrip("_")[:1].isupper()
