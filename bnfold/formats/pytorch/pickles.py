"""Open what torch.save wrote without running what it carries.

A pickle names globals (classes, functions) and calls them. Files are read with torch's restricted
unpickler, which admits tensors and plain containers; torch's own layer classes are added here, and
whatever the user allows by name. Nothing is imported for a name that was not allowed.
"""

from __future__ import annotations

import importlib
import pickle
import pickletools
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from torch._weights_only_unpickler import _get_allowed_globals

from bnfold.errors import ModelError, UntrustedError, UsageError

_HOOKS = (
    *("torch.nn.utils.weight_norm.WeightNorm", "torch.nn.utils.spectral_norm.SpectralNorm"),
    "torch.nn.utils.spectral_norm.SpectralNormStateDictHook",
    "torch.nn.utils.spectral_norm.SpectralNormLoadStateDictPreHook",
)
"""The hooks that torch's own normalisations of weights leave on a layer."""

ACTIVATIONS = ("relu", "gelu", "silu", "elu", "leaky_relu", "tanh", "sigmoid", "softmax")
"""The functions of torch.nn.functional that torch's own layers keep as attributes."""


_SYSTEM = sys.stdlib_module_names | {"__builtin__"}

Known = list[Callable[..., Any] | tuple[Callable[..., Any], str]]
"""What may be built, with the names that files call it by."""


def unpickle(path: Path, allow: Iterable[str] = (), *, trust: bool = False) -> Any:
    """The object in `path`, on the CPU.

    `allow` lists globals ("pkg.mod.Class") that may be imported and built; `trust` lifts every
    restriction. Raises UntrustedError with the globals that are missing, ModelError if the file is
    damaged.
    """
    needed = _globals_of(path)
    admitted = {name.replace(":", "."): resolve(name) for name in allow}
    admitted |= {name: found for name in needed if (found := _layer(name)) is not None}
    missing = tuple(sorted(name for name in needed if name not in admitted))
    if missing and not trust:
        raise UntrustedError(
            f"{path} is a pickle that would import and run {', '.join(missing)}",
            _advice(missing),
            missing,
        )
    if trust:
        look_here()
    known: Known = [(found, name) for name, found in admitted.items()]
    try:
        return _loaded(path, known, trust)
    except pickle.UnpicklingError as error:
        if "WeightsUnpickler error" not in str(error):
            raise _damaged(path, error) from error
        raise UntrustedError(
            f"{path} cannot be opened with weights only: {_gist(error)}",
            "if you know where the file comes from: --trust",
            (),
        ) from error
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path} needs code that is not here: {error}",
            "run bnfold where that code can be imported, such as the project's own folder",
        ) from error
    except Exception as error:
        raise _damaged(path, error) from error


def _loaded(path: Path, known: Known, trust: bool) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(known):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=not trust)


def _advice(missing: tuple[str, ...]) -> str:
    """What to type for classes; for functions of the system, not to."""
    if any(name.partition(".")[0] in _SYSTEM for name in missing):
        return "no model needs that: do not open the file unless you wrote it yourself (--trust)"
    flags = " ".join(f"--allow {name}" for name in missing)
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


def _globals_of(path: Path) -> set[str]:
    """The globals that the file names and torch's restricted unpickler does not admit itself."""
    try:
        if zipfile.is_zipfile(path):
            return set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        with path.open("rb") as file:
            named = set(_globals_in_pickles(file))
    except Exception as error:
        raise _damaged(path, error) from error
    return named - set(_get_allowed_globals())


def _globals_in_pickles(file: IO[bytes]) -> Iterator[str]:
    """Those of a plain pickle, or of the five that a file in torch's older format begins with."""
    begin = file.tell()
    first = {argument for _, argument, _ in pickletools.genops(file) if isinstance(argument, int)}
    file.seek(begin)
    for _ in range(5 if torch.serialization.MAGIC_NUMBER in first else 1):
        yield from _globals_in_pickle(file)


def _globals_in_pickle(file: IO[bytes]) -> Iterator[str]:
    texts: list[str] = []
    memo: list[str | None] = []
    before = ""
    for code, argument, _ in pickletools.genops(file):
        match code.name:
            case "GLOBAL":
                yield _current_name(*str(argument).split(" ", 1))
            case "STACK_GLOBAL":
                yield _current_name(*texts[-2:])
            case "MEMOIZE":
                memo.append(texts[-1] if "UNICODE" in before else None)
            case "BINGET" | "LONG_BINGET" if argument is not None and argument < len(memo):
                texts += [text for text in (memo[argument],) if text is not None]
            case name if "UNICODE" in name:
                texts.append(str(argument))
        before = code.name


def _current_name(module: str, attribute: str) -> str:
    """The name today of what pickles may still call as Python 2 did."""
    module, attribute = NAME_MAPPING.get((module, attribute), (module, attribute))
    return f"{IMPORT_MAPPING.get(module, module)}.{attribute}"


def _layer(name: str) -> Any:
    """The class or activation of torch.nn called `name`; None if it is anything else."""
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)
    if module in ("torch.nn.functional", "torch._C._nn") and attribute in ACTIVATIONS:
        return getattr(torch.nn.functional, attribute)
    if name in _HOOKS:
        return found
    if not module.startswith("torch.nn.modules.") or not isinstance(found, type):
        return None
    return found if issubclass(found, nn.Module) else None


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path} is damaged or no PyTorch file: {_gist(error)}", "save or download it again"
    )


def _gist(error: Exception) -> str:
    """The first line that says something of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "WeightsUnpickler error" in line and line[-1] != ":"]
    rest = [line for line in lines if "Only persistent_load" in line]
    return (telling or rest or lines or [type(error).__name__])[0][:200]
