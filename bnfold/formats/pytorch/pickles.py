"""Open what torch.save wrote without running what it carries.

A pickle names globals (classes, functions) and calls them. Files are read with torch's restricted
unpickler, which admits tensors and plain containers; torch's own layer classes are added here, and
whatever the user allows by name. Nothing is imported for a name that was not allowed.
"""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn
from torch._weights_only_unpickler import _get_allowed_globals

from bnfold.archive import members_of, most_memory
from bnfold.errors import ModelError, UntrustedError
from bnfold.formats.pytorch import transcription
from bnfold.formats.pytorch.allowing import PLAIN, Allowed, advice, is_powerful, look_here
from bnfold.formats.pytorch.conventions import fused_form_of
from bnfold.formats.pytorch.numpy_stand_ins import STAND_INS, TYPES
from bnfold.formats.pytorch.pickle_scan import Contents, scan
from bnfold.formats.pytorch.quantization import require_float_tensors
from bnfold.formats.pytorch.strangers import strangers
from bnfold.process_state import alone, quiet

_SERIALIZATION: Any = torch.serialization  # what is private in it is not typed

_HOOKS = (
    *("torch.nn.utils.weight_norm.WeightNorm", "torch.nn.utils.spectral_norm.SpectralNorm"),
    "torch.nn.utils.spectral_norm.SpectralNormStateDictHook",
    "torch.nn.utils.spectral_norm.SpectralNormLoadStateDictPreHook",
)
"""The hooks that torch's own normalisations of weights leave on a layer."""

_STUBS = (
    "torch.ao.nn.quantized.modules.functional_modules.FloatFunctional",
    *("torch.ao.quantization.stubs.QuantStub", "torch.ao.quantization.stubs.DeQuantStub"),
)
"""What a model that can be quantised has where an operation on floats will be replaced."""

ACTIVATIONS = ("relu", "gelu", "silu", "elu", "leaky_relu", "tanh", "sigmoid", "softmax")
"""The functions of torch.nn.functional that torch's own layers keep as attributes."""


DEEPEST = 1000
"""Levels of nesting. A model of 100 nested modules has some 500; 100,000 break the interpreter."""

_ZIP = b"PK\x03\x04"

Known = list[Callable[..., Any] | tuple[Callable[..., Any], str]]
"""What may be built, with the names that files call it by."""


def unpickle(
    path: Path, allow: Iterable[str] = (), *, trust: bool = False, weights_only: bool = False
) -> Any:
    """The object in `path`, on the CPU.

    `allow` says which globals may be imported and built (see allowing.py); `trust` lifts every
    restriction. With `weights_only`, objects of other classes come as strangers. Raises
    UntrustedError with the globals that are missing, ModelError if the file is damaged.
    """
    with path.open("rb") as file:
        contents = _examined(file, path)
    if contents.depth > DEEPEST:
        raise _damaged(path, ValueError(f"it nests {contents.depth} levels deep"))
    if trust:
        look_here()
        return _loaded(path, [], contents, trust=True)
    known, missing = _known(path, contents, Allowed(allow))
    inert = strangers(missing) if weights_only and not any(map(is_powerful, missing)) else {}
    known |= inert
    if missing and not inert:
        raise _untrusted(path, missing, contents)
    try:
        everything = {**known, **TYPES}
        return _loaded(path, [(f, name) for name, f in everything.items()], contents, trust=False)
    except ModelError as error:
        if not inert:
            raise
        raise _untrusted(path, missing, contents) from error


def _known(
    path: Path, contents: Contents, allowed: Allowed
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the file needs beside what torch itself admits; and the names that nobody allowed."""
    needed = contents.names - set(_get_allowed_globals())
    known = {name: found for name in needed if (found := _own(name)) is not None}
    if contents.by_torch:
        known.pop(_OF_PLAIN_PICKLES, None)
    called = contents.names if _CALLS_ITS_ARGUMENT in contents.names else contents.called
    for name in sorted(needed - set(known)):
        found = allowed.get(name, name in called, path)
        if found is not None:
            known[name] = found
    missing = tuple(sorted(needed - set(known)))
    _refuse_unknown(path, missing)
    return known, missing


def _untrusted(path: Path, missing: tuple[str, ...], contents: Contents) -> UntrustedError:
    return UntrustedError(
        f"{path} is a pickle that would import and run {', '.join(missing)}",
        advice(missing, contents.called),
        missing,
    )


def unpickle_member(content: bytes, path: Path, member: str) -> Any:
    """The tensors and plain containers that torch.save wrote into a member of an archive.

    Nothing can be allowed: what else it needs is refused. Raises as `unpickle` does.
    """
    stream = io.BytesIO(content)
    if content[:4] == _ZIP:
        members_of(stream, path, most_memory(path))
    contents = _examined(stream, path)
    if contents.depth > DEEPEST or not contents.by_torch:
        raise _damaged(path, ValueError(f"{member} is not what torch.save writes"))
    missing = tuple(sorted(contents.names - set(_get_allowed_globals())))
    if missing:
        raise UntrustedError(
            f"{path} has pickled {', '.join(missing)} in {member}",
            "if you know where the file comes from: --trust",
            missing,
        )
    try:
        with quiet():
            found = _built(stream, contents)
    except Exception as error:  # whatever the unpickler raises
        raise _damaged(path, error) from error
    check_sizes(path, found)
    return found


def _loaded(path: Path, known: Known, contents: Contents, *, trust: bool) -> Any:
    try:
        with quiet(), _safe(known):
            if trust:
                found = _run(path, contents)
            else:
                with path.open("rb") as file:
                    found = _built(file, contents)
    except pickle.UnpicklingError as error:
        if trust:
            raise _damaged(path, error) from error
        raise UntrustedError(
            f"{path} cannot be opened with weights only: {_gist(error)}",
            "if you know where the file comes from: --trust, or save it again with torch.save",
            (),
        ) from error
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path} needs code that is not here: {error}",
            "run bnfold where that code can be imported, such as the project's own folder",
        ) from error
    except Exception as error:
        raise _damaged(path, error) from error
    check_sizes(path, found)
    return found


@contextmanager
def _safe(known: Known) -> Iterator[None]:
    """torch's unpickler admits these as well; what the caller has told it before stays."""
    admitted = torch.serialization.get_safe_globals()
    with alone(), torch.serialization.safe_globals([e for e in known if e not in admitted]):
        yield


def _run(path: Path, contents: Contents) -> Any:
    """Without any restriction."""
    if contents.by_torch:
        return torch.load(path, map_location="cpu", weights_only=False)
    return pickle.loads(path.read_bytes())


def _built(file: IO[bytes], contents: Contents) -> Any:
    """By the restricted unpickler, within the containers that torch.load knows."""
    file.seek(0)
    if not contents.by_torch:
        return transcription.load(file)
    if contents.is_zip:
        reader = torch._C.PyTorchFileReader(file)
        return _SERIALIZATION._load(reader, "cpu", transcription, encoding="utf-8")
    return _SERIALIZATION._legacy_load(file, "cpu", transcription, encoding="utf-8")


def _storage(content: bytes) -> Any:
    """In place of torch.storage._load_from_bytes, which would run what it is given.

    A plain pickle has its storages as torch.save wrote them, in its older format.
    """
    contents = scan(io.BytesIO(content))
    if not contents.by_torch or not contents.names <= set(_get_allowed_globals()):
        raise pickle.UnpicklingError("a storage is something else")
    stream = io.BytesIO(content)
    return _SERIALIZATION._legacy_load(stream, "cpu", transcription, encoding="utf-8")


def check_sizes(path: Path, found: Any) -> None:
    """Raise ModelError for tensors without values, or far larger than the file: strides of 0;
    and for those that are stored in another way than number by number."""
    most = most_memory(path)
    for name, tensor in _tensors(found, path):
        require_float_tensors([(name, tensor)], str(path))
        if tensor.layout is not torch.strided:
            raise ModelError(
                f"{path} has sparse numbers in {name}", "fold the model before it is made so"
            )
        if tensor.is_meta:
            raise ModelError(
                f"{path} has no values for {name}", "save the model off the meta device"
            )
        if tensor.numel() * tensor.element_size() > most:
            raise ModelError(
                f"{path} is damaged: {name} would have {tensor.numel()} elements",
                "save or download it again",
            )


def _tensors(found: Any, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in containers and modules, with a name for people.

    Raises ModelError for a container with something in the place of a method of its class.
    """
    pending: list[tuple[str, Any]] = [("", found)]
    seen: set[int] = set()
    while pending:
        name, entry = pending.pop()
        if id(entry) in seen:
            continue
        seen.add(id(entry))
        if isinstance(entry, torch.Tensor):
            yield name or "the tensor", entry
        elif isinstance(entry, nn.Module):
            pending.append((name, vars(entry)))
        elif isinstance(entry, Mapping):
            if hidden := getattr(entry, "__dict__", {}).keys() & set(dir(type(entry))):
                raise ModelError(
                    f"{path} is damaged: {name or 'what it holds'} has a value called "
                    f"{min(hidden)!r} in the place of a method",
                    "save or download it again",
                )
            pending += [(f"{name}.{key}".lstrip("."), value) for key, value in entry.items()]
        elif isinstance(entry, list | tuple):
            pending += [(f"{name}[{index}]", value) for index, value in enumerate(entry)]


def _refuse_unknown(path: Path, missing: tuple[str, ...]) -> None:
    """Raise ModelError for layers that another version of torch has, and this one has not."""
    for name in missing:
        module, _, attribute = name.rpartition(".")
        if name.startswith("torch.nn.") and not hasattr(sys.modules.get(module), attribute):
            raise ModelError(
                f"{path} needs {name}, which torch {torch.__version__} does not have",
                "open it with the torch that wrote it, save its state_dict, and use --model",
            )


def _examined(file: IO[bytes], path: Path) -> Contents:
    try:
        file.seek(0)
        if file.read(4) != _ZIP:
            file.seek(0)
            contents = scan(file)
            file.seek(0)
            if tarfile.is_tarfile(file):
                raise ValueError("it is a tar archive as well")
            return contents
        file.seek(0)
        record = torch._C.PyTorchFileReader(file).get_record("data.pkl")
        return replace(scan(io.BytesIO(record)), by_torch=True, is_zip=True)
    except Exception as error:
        raise _damaged(path, error) from error


def _own(name: str) -> Any:
    """The plain class, or the class or activation of torch.nn, called `name`; else None."""
    if name in _DATA:
        return _DATA[name]
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)
    if module in ("torch.nn.functional", "torch._C._nn") and attribute in ACTIVATIONS:
        return getattr(torch.nn.functional, attribute)
    if name in _HOOKS or name in _STUBS:
        return found
    if not module.startswith("torch.nn.modules.") or not isinstance(found, type):
        return None
    return found if issubclass(found, nn.Module) else None


_CALLS_ITS_ARGUMENT = "torch._tensor._rebuild_from_type_v2"

_OF_PLAIN_PICKLES = "torch.storage._load_from_bytes"

_DATA = {
    **PLAIN,
    **STAND_INS,
    _OF_PLAIN_PICKLES: _storage,
    "builtins.getattr": fused_form_of,
}
"""What is built without being asked for, beside torch's own layers."""


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
