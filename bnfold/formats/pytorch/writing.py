"""Write with torch.save and safetensors so that the same content gives the same bytes.

Left alone, Python writes sets in the order of their hashes, which are random for texts; torch names
the folder inside an archive after the file; safetensors shuffles its metadata.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import torch

from bnfold.errors import ExportError, first_line
from bnfold.formats.pytorch.strangers import StrangerType
from bnfold.process_state import changed

_FRAMES = 20_000
"""Levels of calls that pickling may take: some ten for each level of nested modules."""

_PythonPickler: Any = pickle._Pickler  # the one that can be extended


class _Pickler(_PythonPickler):  # type: ignore[misc]
    """Sets are written in the order of their members' names, strangers as they were read."""

    def _save_set(self, entries: set[Any] | frozenset[Any]) -> None:
        ordered = sorted(entries, key=lambda entry: (type(entry).__qualname__, repr(entry)))
        self.save_reduce(type(entries), (ordered,), obj=entries)

    def _save_stranger(self, kind: StrangerType) -> None:
        module, _, name = kind.address.rpartition(".")
        self.write(b"c" + f"{module}\n{name}\n".encode())
        self.memoize(kind)

    dispatch: ClassVar[dict[Any, Any]] = {
        **_PythonPickler.dispatch,
        StrangerType: _save_stranger,
        set: _save_set,
        frozenset: _save_set,
    }


_PICKLING: Any = SimpleNamespace(__name__=__name__, Pickler=_Pickler)


class _Patient(io.RawIOBase):
    """A file that takes everything: what it cannot write is an error once all was written.

    torch's writer of archives ends the process when a write fails under it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._place = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._try(lambda: self._file.seek(offset, whence))
        self._place = self._file.tell() if self.error is None else offset
        return self._place

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._try(lambda: self._file.write(data))
        self._place += size
        return size

    def _try(self, action: Callable[[], int]) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error


@contextmanager
def patient(path: Path) -> Iterator[Any]:
    """A new file at `path` for torch to write to. Raises OSError at the end if that failed."""
    with path.open("wb") as raw:
        file = _Patient(raw)
        yield file
        if file.error is not None:
            raise file.error


def save(entry: Any, path: Path) -> None:
    """torch.save of anything. Raises ExportError for what cannot be pickled, such as a lambda."""
    frames = max(sys.getrecursionlimit(), _FRAMES)
    try:
        with (
            changed(sys.getrecursionlimit, sys.setrecursionlimit, frames),
            patient(path) as file,
        ):
            torch.save(entry, file, pickle_module=_PICKLING)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ExportError(
            f"the result cannot be pickled: {first_line(error)}",
            "fold its state_dict with --model, or export it",
        ) from error


def save_safetensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))
