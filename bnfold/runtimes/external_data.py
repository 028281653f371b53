"""Where an ONNX file keeps weights, told without the package onnx: by the encoding of protobuf.

Fields of the messages, from onnx.proto: a model holds a graph, functions and training information;
these hold nodes, whose attributes hold tensors and graphs again. Bytes that are no such message are
left to the runtime, which refuses them. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bnfold.errors import ModelError

Span = tuple[int, int]

_HOLDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        **{5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
        **{22: "sparse", 23: "sparse"},
    },
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Message -> field -> the message in it."""

_NAME, _ENTRY, _WHERE = 8, 13, 14
"""Of a tensor: its name, an entry of its external_data, and its data_location, 1 if external."""

_VARINT, _FIXED64, _MESSAGE, _FIXED32 = 0, 1, 2, 5


def check_external_data(path: Path) -> bool:
    """Whether the ONNX file at `path` keeps weights in other files.

    Raises ModelError if it cannot be read, or one of them lies elsewhere than in its own folder.
    """
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = dict.fromkeys(_locations(content))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{path} cannot be read: {why}", "check the path") from error
    for tensor, location in found:
        inside(path, tensor, location)
    return bool(found)


def inside(path: Path, tensor: str, location: str) -> Path:
    """The file in the folder of the model at `path` that holds `tensor`. Raises ModelError."""
    folder = path.absolute().parent
    where = f"{path}: the data of {tensor!r} lie in {location!r}, "
    target = folder / location
    if os.path.isabs(location) or ".." in Path(location).parts:
        raise ModelError(where + "outside the model's folder", "put the file beside the model")
    try:
        status = target.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        hint = "put the file beside the model"
        raise ModelError(where + f"which cannot be read: {why}", hint) from error
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ModelError(where + "a link out of the model's folder", "replace it by a copy")
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise ModelError(where + "which is a hard link or not a plain file", "replace it by a copy")
    return target


def _locations(content: mmap.mmap) -> Iterator[tuple[str, str]]:
    """Name and location of every tensor whose data are elsewhere."""
    waiting = [("model", (0, len(content)))]
    while waiting:
        kind, span = waiting.pop()
        if kind == "tensor":
            yield from _location(content, span)
            continue
        for number, wire, value in _fields(content, span):
            if wire == _MESSAGE and number in _HOLDS[kind]:
                waiting.append((_HOLDS[kind][number], value))


def _location(content: mmap.mmap, span: Span) -> Iterator[tuple[str, str]]:
    name, location, external = "", None, False
    for number, wire, value in _fields(content, span):
        if number == _WHERE and wire == _VARINT:
            external = _varint(content, value)[0] == 1
        elif number == _NAME and wire == _MESSAGE:
            name = _text(content, value)
        elif number == _ENTRY and wire == _MESSAGE:
            entry = {number: _text(content, part) for number, _, part in _fields(content, value)}
            if entry.get(1) == "location":
                location = entry.get(2)
    if external and location is not None:
        yield name, location


def _fields(content: mmap.mmap, span: Span) -> Iterator[tuple[int, int, Span]]:
    """Number, kind and place of each field of a message, as far as it is one."""
    start, end = span
    while start < end:
        tag, body = _varint(content, (start, end))
        kind = tag & 7
        if kind == _VARINT:
            _, after = _varint(content, (body, end))
        elif kind == _MESSAGE:
            length, body = _varint(content, (body, end))
            after = body + length
        elif kind in (_FIXED32, _FIXED64):
            after = body + (8 if kind == _FIXED64 else 4)
        else:
            return
        if after > end or after <= start:
            return
        yield tag >> 3, kind, (body, after)
        start = after


def _varint(content: mmap.mmap, span: Span) -> tuple[int, int]:
    """The number that begins there, and where it ends; past the end if it does not."""
    start, end = span
    value = 0
    for place in range(start, min(end, start + 10)):
        value |= (content[place] & 0x7F) << 7 * (place - start)
        if content[place] < 0x80:
            return value, place + 1
    return value, end + 1


def _text(content: mmap.mmap, span: Span) -> str:
    return content[span[0] : span[1]].decode("utf-8", "replace")
