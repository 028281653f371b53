"""Names are data: what a file calls its modules and tensors never becomes Python.

torch writes Python for every program: `self.NAME` for a name that is an identifier, else
`getattr(self, "NAME")` with nothing escaped. A quote in a name ends the text there; a keyword, or
what a module calls something of its own, is not found. So every program passes here before torch
writes anything for it (`program_names.identified`): a name that would not stay data is replaced by
an identifier, and put back in what people and files read: reports, keys of weights, ONNX.

Plain, and left as it is     NAME is found by `self.NAME`, or needs no escape between quotes:
                             "conv", "0", "block1-0", "größe"
Replaced                     keywords, names of a module's own attributes, quotes, brackets, line
                             breaks, and all other characters that mean something to somebody
Refused                      what torch does not let a module be called: no path leads there

A generated identifier is none of the names of the model, so the way back is unique.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from bnfold.errors import ModelError

_IN_QUOTES = re.compile(r"[\w-](?:[\w -]*[\w-])?")
"""What is the same between quotes, in every text in which torch puts names."""

_REPEATED = re.compile(r"(.+)@\d+")
"""What torch calls a module when it is called again: its own name, and a number."""

_LONGEST = 60

_TWICE = "something else beside it has that name already"

_IN_MODULES = frozenset({*dir(nn.Module), *vars(nn.Module())})
_OF_PROGRAMS = {"_guards_fn", "_in_spec", "_out_spec", "range_constraints", "validate_inputs"}


@dataclass(frozen=True, slots=True)
class Identifiers:
    """The parts of paths that are replaced, and what by; true if there are any."""

    made: Mapping[str, str] = field(default_factory=dict)
    _given: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_given", {new: old for old, new in self.made.items()})

    @classmethod
    def of(cls, paths: Iterable[str]) -> Identifiers:
        """Identifiers for whatever is not plain in the paths of a model's modules and tensors."""
        parts: dict[str, bool] = {}
        for path in filter(None, paths):
            for level, part in enumerate(path.split(".")):
                parts[part] = parts.get(part, True) and _is_plain(part, level == 0)
        taken, made = set(parts), {}
        for part, plain in parts.items():
            if not plain:
                made[part] = _identifier(part, taken)
                taken.add(made[part])
        return cls(made)

    def __bool__(self) -> bool:
        return bool(self.made)

    def identifier(self, path: str) -> str:
        """The path that code may have for `path`."""
        return ".".join(self.made.get(part, part) for part in path.split("."))

    def original(self, path: str) -> str:
        """The path that `identifier` was given."""
        return ".".join(self._given.get(part, part) for part in path.split("."))


AS_THEY_ARE = Identifiers()


def is_plain(path: str) -> bool:
    """Whether every code generator of torch keeps a path of modules as it is."""
    return all(_is_plain(part, level == 0) for level, part in enumerate(path.split(".")) if path)


def is_identifier(name: str) -> bool:
    """Whether Python reads `name` as this very name, and as nothing else."""
    same = unicodedata.normalize("NFKC", name) == name
    return name.isidentifier() and same and not keyword.iskeyword(name)


def require_names(module: nn.Module) -> None:
    """Raise ModelError for names that no path leads to: torch itself never gives them."""
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        seen: set[Any] = set()
        for kind in ("_modules", "_parameters", "_buffers"):
            names: Mapping[Any, Any] = getattr(part, kind)
            for name in names:
                if why := _fault(name, names) or (_TWICE if name in seen else None):
                    raise ModelError(
                        f"{path or 'the model'} holds a {kind[1:-1]} that is called {name!r:.200}: "
                        f"{why}",
                        "give it another name with add_module or register_buffer",
                    )
            seen.update(names)


def base_of(path: str, known: Iterable[str]) -> tuple[str, str]:
    """The module of a call, and what torch puts after its name where it is not the first."""
    again = _REPEATED.fullmatch(path)
    if again is None or again[1] not in known:
        return path, ""
    return again[1], path[len(again[1]) :]


def _fault(name: Any, beside: Iterable[Any]) -> str | None:
    if not isinstance(name, str) or not name or "." in name:
        return "no path leads to it"
    if any(unicodedata.category(character) == "Cs" for character in name):
        return "it is no text"
    if name in _IN_MODULES:
        return "every module has an attribute of that name"
    if base_of(name, beside)[1]:
        return "that is how torch calls a second call of the module beside it"
    return None


def _is_plain(part: str, outermost: bool) -> bool:
    if outermost and part in _in_programs():
        return False
    if part.startswith("__"):
        return False
    if not part.isidentifier():
        return _IN_QUOTES.fullmatch(part) is not None
    return is_identifier(part) and part not in _IN_MODULES


@cache
def _in_programs() -> frozenset[str]:
    """What the module that torch makes of a program calls its own."""
    made = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    return frozenset({*dir(made), *vars(made), *_OF_PROGRAMS})


def _identifier(part: str, taken: set[str]) -> str:
    """An identifier that is not taken, as close to `part` as one can be."""
    stem = re.sub(r"\W+", "_", part, flags=re.ASCII)[:_LONGEST].strip("_") or "name"
    stem = f"_{stem}" if stem[0].isdigit() else stem
    found, count = stem, 1
    while found in taken or not is_identifier(found) or not _is_plain(found, outermost=True):
        count += 1
        found = f"{stem}_{count}"
    return found
