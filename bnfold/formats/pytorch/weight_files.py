"""The files of a folder that hold the weights of one network: one, or several with an index."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bnfold.errors import ModelError, UsageError
from bnfold.formats.pytorch.changes import MARK
from bnfold.formats.pytorch.checkpoint import METADATA
from bnfold.formats.pytorch.pickles import unpickle
from bnfold.formats.pytorch.state_dict import read_safetensors
from bnfold.formats.pytorch.writing import save, save_safetensors

_INDEX = ".index.json"

_FIRST = (
    *("model.safetensors.index.json", "model.safetensors"),
    *("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
"""What libraries call them, in the order in which they are looked for."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *_PICKLED, ".h5", ".msgpack", ".onnx", ".ot", ".gguf", _INDEX)
"""What files of weights end in, of any library."""


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """`names` are the tensors, each with the file that it is in; `index` names the index."""

    files: tuple[str, ...]
    index: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_safetensors(self) -> bool:
        return self.files[0].endswith(".safetensors")

    def read(self, folder: Path, allow: Iterable[str], *, trust: bool) -> Mapping[str, Any]:
        """All of them as one mapping. Raises ModelError."""
        if len(self.files) == 1 and self.index is None:
            return self._read_one(folder / self.files[0], allow, trust)
        state: Any = OrderedDict()
        for file in self.files:
            part = self._read_one(folder / file, allow, trust)
            state.update(part)
            for attribute in (MARK, METADATA):
                if found := getattr(part, attribute, None):
                    setattr(state, attribute, found)
        return state  # type: ignore[no-any-return]

    def _read_one(self, path: Path, allow: Iterable[str], trust: bool) -> Mapping[str, Any]:
        if self.is_safetensors:
            return read_safetensors(path)
        found = unpickle(path, allow, trust=trust, weights_only=True)
        if not isinstance(found, Mapping):
            raise ModelError(f"{path} holds a {type(found).__name__}, no weights", "name the file")
        return found

    def write(
        self, folder: Path, state: Mapping[str, Any], said: Any, metadata: Mapping[str, str]
    ) -> None:
        """Write every tensor into the file where it was, and a new one where its layer is."""
        groups: dict[str, dict[str, Any]] = defaultdict(dict)
        parents = {name.rpartition(".")[0]: file for name, file in self.names.items()}
        for name, tensor in state.items():
            file = self.names.get(name) or parents.get(name.rpartition(".")[0], self.files[0])
            groups[file][name] = tensor
        for file, group in groups.items():
            self._write_one(folder / file, group, said, metadata)
        if self.index is not None:
            sizes = (tensor.nbytes for tensor in state.values() if hasattr(tensor, "nbytes"))
            places = {name: file for file, group in groups.items() for name in group}
            index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
            text = json.dumps(index, indent=2, sort_keys=True)
            (folder / self.index).write_text(text + "\n", encoding="utf-8")

    def _write_one(
        self, path: Path, group: Mapping[str, Any], said: Any, metadata: Mapping[str, str]
    ) -> None:
        if self.is_safetensors:
            tensors: dict[str, torch.Tensor] = {k: t.clone().contiguous() for k, t in group.items()}
            save_safetensors(tensors, path, {**metadata, MARK: json.dumps(said)})
        else:
            entries: Any = OrderedDict(group)
            setattr(entries, MARK, said)
            save(entries, path)


def weight_files(folder: Path) -> WeightFiles:
    """Those of `folder`. Raises ModelError if there are none, UsageError if they are several's."""
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    chosen = next((name for name in _FIRST if name in there), None)
    if chosen is None:
        indices = [name for name in there if name.endswith(_INDEX)]
        single = [name for name in there if name.endswith((".safetensors", *_PICKLED))]
        found = indices or single
        if len(found) > 1:
            raise UsageError(
                f"{folder} holds several files of weights: {', '.join(found)}",
                "name the one to take, and --model",
            )
        if not found:
            raise ModelError(f"{folder} is a folder without weights", "name a model file in it")
        (chosen,) = found
    if not chosen.endswith(_INDEX):
        return WeightFiles((chosen,))
    names = _weight_map(folder / chosen)
    files = tuple(sorted(set(names.values())))
    if lacking := next((file for file in files if file not in there), None):
        raise ModelError(f"{folder / chosen} names {lacking}, which is not there", "download it")
    return WeightFiles(files, chosen, names)


def _weight_map(path: Path) -> dict[str, str]:
    try:
        names = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        if not names or not all(Path(file).name == file for file in names.values()):
            raise ValueError("it names no files of its own folder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no index of weights: {error}", "download it again") from error
    return names
