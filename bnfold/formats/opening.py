"""Recognise a model file by its content and load it. torch is imported only for torch's formats.

zip with .../code/             TorchScript
zip with .../models/*.json     ExportedProgram (.pt2)
zip with .../data.pkl, pickle  whatever torch.save wrote: a module or a state_dict
8-byte length and "{"          safetensors
protobuf of a ModelProto       ONNX
folder                         weights of transformers, timm or segmentation-models
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnfold.archive import members
from bnfold.errors import ModelError, UsageError
from bnfold.files import special
from bnfold.formats.model import WEIGHTS, Format, Model
from bnfold.processes.supervision import loading, opened


@dataclass(frozen=True, slots=True)
class Opening:
    """What the user says about opening files: a factory for weights, and whom to trust.

    `weights` is the key or prefix of those to take from a checkpoint that holds several.
    """

    factory: str | None = None
    factory_args: Any = None
    allow: tuple[str, ...] = field(default_factory=tuple)
    trust: bool = False
    weights: str | None = None


def open_model(source: Any, opening: Opening | None = None) -> Model:
    """The native model of a path, or of a framework's own object."""
    opening = opening or Opening()
    if isinstance(source, Model):
        return source
    if isinstance(source, str | Path):
        try:
            model = _loaded(Path(source), opening)
        except (MemoryError, RecursionError) as error:
            raise ModelError(
                f"{source} is damaged: opening it takes more memory or levels than a model has",
                "save or download it again",
            ) from error
        model.origin = (Path(source), opening)
        opened(model.stored or Path(source).stat().st_size)
        return model
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    if kind.startswith("onnx.") and hasattr(source, "opset_import"):
        from bnfold.formats.onnx.model import OnnxModel

        return OnnxModel.from_proto(source)
    return _from_torch(source, kind)


def _loaded(path: Path, opening: Opening) -> Model:
    if opening.factory is not None or opening.allow or opening.trust:  # code of the user's own
        return _open_file(path, opening)
    with loading(path.stat().st_size if path.is_file() else 0):
        return _open_file(path, opening)


def recognise(path: Path) -> Format:
    """The format of a file, or folder. Raises ModelError for what is none of them."""
    if path.is_dir():
        return Format.FOLDER
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        return _inside_zip(path)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return Format.SAFETENSORS  # its length may begin as a pickle does
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return Format.MODULE
    if _is_text(head):
        raise ModelError(f"{path} is a text file, not a model", _hint(head))
    if head[:1] in b"\x08\x12\x1a\x22\x2a\x32\x3a\x42":
        return Format.ONNX
    raise ModelError(f"{path} is in no format that bnfold knows", KNOWN)


KNOWN = (
    "it reads PyTorch modules, state_dicts, TorchScript, .pt2, .safetensors, .onnx, and folders of "
    "transformers, timm and segmentation-models"
)


def _open_file(path: Path, opening: Opening) -> Model:
    found = recognise(path)
    if opening.weights is not None and found not in (Format.MODULE, *WEIGHTS):
        raise UsageError(f"--weights is for checkpoints, and {path} is {found}", "leave it out")
    match found:
        case Format.ONNX:
            from bnfold.formats.onnx.model import OnnxModel

            return OnnxModel.load(path)
        case Format.TORCHSCRIPT:
            from bnfold.formats.torchscript.model import TorchScriptModel

            return TorchScriptModel.load(path, trust=opening.trust)
        case Format.EXPORTED_PROGRAM:
            from bnfold.formats.pytorch.exported_program import ExportedProgramModel

            return ExportedProgramModel.load(path, trust=opening.trust)
        case Format.FOLDER:
            from bnfold.formats.pytorch.folders import open_folder

            return open_folder(path, _factory(opening), opening)
        case Format.SAFETENSORS:
            from bnfold.formats.pytorch.state_dict import SafetensorsModel, build, read_safetensors

            state = read_safetensors(path)
            return build(path, state, _factory(opening), SafetensorsModel, opening.weights)
        case _:
            return _open_pickle(path, opening)


def _open_pickle(path: Path, opening: Opening) -> Model:
    from collections.abc import Mapping

    from torch import nn

    from bnfold.formats.pytorch.checkpoint import Surroundings, has_tensors, preferred
    from bnfold.formats.pytorch.pickles import unpickle
    from bnfold.formats.pytorch.state_dict import StateDictModel, build

    by_weights = opening.factory is not None
    found = unpickle(path, opening.allow, trust=opening.trust, weights_only=by_weights)
    if by_weights and not has_tensors(found):
        found = unpickle(path, opening.allow, trust=opening.trust)
    if isinstance(found, nn.Module):
        if opening.weights is not None:
            raise UsageError(f"{path} holds one module", "leave out --weights")
        return _whole(path, found)
    if isinstance(found, Mapping):
        modules = [key for key, value in found.items() if isinstance(value, nn.Module)]
        taken = preferred(modules)
        if opening.weights is not None:
            taken = opening.weights if opening.weights in modules else None
        if taken is None:
            return build(path, found, _factory(opening), StateDictModel, opening.weights)
        others = " or ".join(repr(key) for key in modules if key != taken)
        note = f"the module under {taken!r} was taken; --weights takes that under {others}"
        around = Surroundings((found,), (taken,))
        return _whole(path, found[taken], (note,) if others else (), around)
    raise ModelError(f"{path} holds a {type(found).__name__}, neither a module nor weights", KNOWN)


def _whole(path: Path, module: Any, notes: tuple[str, ...] = (), around: Any = None) -> Model:
    """The model of an unpickled module, which another version of torch may have made."""
    from torch import nn

    from bnfold.formats.pytorch.nn_module import ModuleModel

    try:
        for name, part in module.named_modules():
            missing = sorted(vars(nn.Module()).keys() - vars(part).keys())
            if isinstance(part, nn.modules.conv._ConvNd):
                needed = (*part.__constants__, "transposed")
                missing += [attribute for attribute in needed if not hasattr(part, attribute)]
            if missing:
                raise AttributeError(f"{name or type(part).__name__} has no {missing[0]}")
        return ModuleModel(module, notes, around)
    except (AttributeError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path} holds a module that is damaged or of another torch: {error}",
            "open it with the torch that wrote it, save its state_dict, and use --model",
        ) from error


def _from_torch(source: Any, kind: str) -> Model:
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"a {kind} is not a model that bnfold knows", KNOWN) from error
    if isinstance(source, torch.jit.ScriptModule):
        from bnfold.formats.torchscript.model import TorchScriptModel

        return TorchScriptModel.from_module(source)
    if isinstance(source, torch.nn.Module):
        from bnfold.formats.pytorch.nn_module import ModuleModel

        return ModuleModel(source)
    if isinstance(source, torch.export.ExportedProgram):
        from bnfold.formats.pytorch.exported_program import ExportedProgramModel

        return ExportedProgramModel(source)
    raise UsageError(f"a {kind} is not a model that bnfold knows", KNOWN)


def _factory(opening: Opening) -> Any:
    from bnfold.formats.pytorch.state_dict import Factory

    if opening.factory is None:
        return None
    return Factory(opening.factory, opening.factory_args)


def _head(path: Path) -> bytes:
    if (kind := special(path)) == "a folder":
        raise ModelError(f"{path} is a folder, not a model file", "name a file in it")
    if kind is not None:
        raise ModelError(f"{path} is {kind}, not a file", "write the model to a file; name that")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist", "check the path") from error
    except (OSError, ValueError) as error:  # of a name with a character that no name has
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{path} cannot be read: {why}", "check the path") from error
    if not head:
        raise ModelError(f"{path} is empty", "save or download it again")
    return head


def _inside_zip(path: Path) -> Format:
    names = members(path)
    if any(re.match(r"[^/]+/code/", name) for name in names):
        return Format.TORCHSCRIPT
    if any(re.match(r"([^/]+/)?(models/.*\.json|serialized_exported_program)", n) for n in names):
        return Format.EXPORTED_PROGRAM
    if any(name.endswith("data.pkl") for name in names):
        return Format.MODULE
    raise ModelError(f"{path} is a zip archive without a model in it", KNOWN)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\r\n\t" for c in text)


def _hint(head: bytes) -> str:
    if b'"weight_map"' in head or b'"total_size"' in head:
        return "it is the index of weights in several files: name the folder that it is in"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run git lfs pull"
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page: the download did not give the file, but a page about it"
    return KNOWN
