"""The weights of an ONNX file where they lie: read one at a time, written one after another.

protobuf reads and writes a message as a whole, and so holds all weights in memory, more than once.
Here the file is walked field by field and each large weight left in it, and a model is written as
one message without its weights and then each weight in turn. Both keep to the encoding of protobuf
(https://protobuf.dev/programming-guides/encoding): a field is a tag and a value, a nested message
its length and its fields, and the fields of a message may come in any order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from bnfold.errors import ModelError

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Field numbers of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data."""

ELSEWHERE = (13, 14)
"""Fields of TensorProto that say its data lie in another file: external_data, data_location."""

LARGE = 1024
"""Bytes from which on a weight is left where it is."""

HERE = "\0"
"""The location, which no file can have, of weights that lie in the model's own file."""

_VARINT, _FIXED64, _MESSAGE, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The file is not a protobuf message, or is cut short, or does not hold what it says."""


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a message: the file holds it from `start` to `end`, its value from `body`."""

    number: int
    kind: int
    start: int
    body: int
    end: int


class DataFile:
    """An open file with weights. It stays readable when its name is given to another file."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb")
        self._path = path
        self._stamp = self._now()
        self.size = os.fstat(self._file.fileno()).st_size

    def tensor(self, like: ir.ExternalTensor) -> ir.LazyTensor:
        """The weight that `like` describes, read whenever it is asked for.

        Raises WireError if the file holds more or fewer bytes than its shape and type take.
        """
        if like.dtype == ir.DataType.UNDEFINED:
            raise WireError("does not say of what type it is")
        offset, length = like.offset or 0, like.nbytes if like.length is None else like.length
        if length != like.nbytes or offset + length > self.size:
            held = min(length, max(self.size - offset, 0))
            raise WireError(f"has {held} bytes for it, not {like.nbytes}")
        header = onnx.TensorProto(dims=like.shape.numpy(), data_type=like.dtype.value)
        load = partial(self._tensor, header, offset, length)
        return ir.LazyTensor(
            load, like.dtype, like.shape, name=like.name, doc_string=like.doc_string
        )

    def _tensor(self, header: onnx.TensorProto, offset: int, length: int) -> ir.TensorProtoTensor:
        whole = onnx.TensorProto()
        whole.CopyFrom(header)
        whole.raw_data = self._bytes(offset, offset + length)
        if self._now() != self._stamp:
            raise ModelError(f"{self._path} was changed while it was being used", "start again")
        return ir.TensorProtoTensor(whole)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _bytes(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        found = self._file.read(end - start)
        if len(found) < end - start:
            raise WireError("the file is cut short")
        return found


class ModelFile(DataFile):
    """An open ONNX file."""

    def skeleton(self) -> bytes:
        """The message without its large weights, which it says lie at HERE. Raises WireError."""
        return self._rewritten(0, self.size, GRAPH, self._graph)

    def _graph(self, field: _Field) -> bytes:
        return self._rewritten(field.body, field.end, INITIALIZER, self._initializer)

    def _initializer(self, field: _Field) -> bytes | None:
        """A TensorProto with where its data lie in their place; None if it is left as it is."""
        fields = list(self._fields(field.body, field.end))
        raw = [f for f in fields if f.number == RAW_DATA and f.kind == _MESSAGE]
        if len(raw) != 1 or any(f.number in ELSEWHERE for f in fields):
            return None
        (data,) = raw
        if data.end - data.body < LARGE:
            return None
        where = {"location": HERE, "offset": str(data.body), "length": str(data.end - data.body)}
        entries = [onnx.StringStringEntryProto(key=k, value=v) for k, v in where.items()]
        here = onnx.TensorProto(external_data=entries, data_location=onnx.TensorProto.EXTERNAL)
        rest = [self._bytes(f.start, f.end) for f in fields if f is not data]
        return b"".join((*rest, here.SerializeToString()))

    def _rewritten(
        self, start: int, end: int, number: int, change: Callable[[_Field], bytes | None]
    ) -> bytes:
        """A message whose fields of that number hold what `change` makes of them, if anything."""
        parts: list[bytes] = []
        for field in self._fields(start, end):
            known = field.number == number and field.kind == _MESSAGE
            changed = change(field) if known else None
            if changed is None:
                parts.append(self._bytes(field.start, field.end))
            else:
                parts += [_prefix(number, len(changed)), changed]
        return b"".join(parts)

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        while start < end:
            self._file.seek(start)
            tag = self._varint()
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                body = self._file.tell()
                self._varint()
                after = self._file.tell()
            elif kind == _MESSAGE:
                length = self._varint()
                body = self._file.tell()
                after = body + length
            elif kind in (_FIXED32, _FIXED64):
                body = self._file.tell()
                after = body + (8 if kind == _FIXED64 else 4)
            else:
                raise WireError(f"byte {start} begins no field of a message")
            if after > end or number == 0:
                raise WireError("the file is cut short")
            yield _Field(number, kind, start, body, after)
            start = after

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._file.read(1)
            if not byte:
                break
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value
        raise WireError("the file is cut short")


def write(model: ir.Model, path: Path, *, external: bool = False) -> None:
    """Write `model`, its large weights read one at a time as they are written.

    They go into the file itself or, if `external`, one after another into a file beside it, which
    is named after its content: a new model never shares a name with the data of an old one, so that
    either is whole at any moment.
    """
    location = _write_data(model.graph, path) if external else HERE
    with _stood_in(model.graph, location) as tensors:
        proto: onnx.ModelProto = ir.to_proto(model)
    if external:
        path.write_bytes(proto.SerializeToString())
    else:
        _write_inside(proto, tensors, path)


def _write_data(graph: ir.Graph, path: Path) -> str:
    """Write the large weights beside `path`; gives the name of the file."""
    partial_name, digest = path.with_name(f"{path.name}.data"), hashlib.sha256()
    with partial_name.open("wb") as file:
        for _, tensor in _large(graph):
            data = _bytes_of(tensor)
            digest.update(data)
            file.write(data)
    name = f"{path.name}.{digest.hexdigest()[:12]}.data"
    partial_name.replace(path.with_name(name))
    return name


def without_weights(graph: ir.Graph) -> tuple[onnx.GraphProto, list[ir.Value]]:
    """The message of `graph` without its large initializers, and those that it now lacks."""
    with _stood_in(graph, HERE) as tensors:
        proto: onnx.GraphProto = ir.to_proto(graph)
    small = [entry for entry in proto.initializer if entry.name not in tensors]
    del proto.initializer[:]
    proto.initializer.extend(small)
    values = (graph.initializers[name] for name in tensors)
    return proto, [value for value in values if not value.is_graph_input()]


@contextmanager
def _stood_in(graph: ir.Graph, location: str) -> Iterator[dict[str, ir.TensorProtocol]]:
    """While it lasts, large initializers are tensors without data, one after another there."""
    initializers = graph.initializers
    tensors = dict(_large(graph))
    end = 0
    try:
        for name, tensor in tensors.items():
            initializers[name].const_value = _stand_in(name, tensor, location, end)
            end += tensor.nbytes
        yield tensors
    finally:
        for name, whole in tensors.items():
            initializers[name].const_value = whole


def _write_inside(
    proto: onnx.ModelProto, tensors: Mapping[str, ir.TensorProtocol], path: Path
) -> None:
    weights = [(e, tensors.get(e.name)) for e in proto.graph.initializer]
    starts = [(_start(entry, tensor), tensor) for entry, tensor in weights]
    sizes = (len(start) + (tensor.nbytes if tensor else 0) for start, tensor in starts)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(_prefix(GRAPH, len(graph) + sum(sizes)))
        file.write(graph)
        for start, data in starts:
            file.write(start)
            if data is not None:
                file.write(_bytes_of(data))


def _large(graph: ir.Graph) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.nbytes >= LARGE:
            yield name, tensor


def _stand_in(
    name: str, tensor: ir.TensorProtocol, location: str, offset: int
) -> ir.ExternalTensor:
    """A tensor of the same name, shape and type without data."""
    shape = ir.Shape(tensor.shape.numpy())
    size, doc = tensor.nbytes, tensor.doc_string
    return ir.ExternalTensor(
        location, offset, size, tensor.dtype, shape=shape, name=name, doc_string=doc
    )


def _start(entry: onnx.TensorProto, tensor: ir.TensorProtocol | None) -> bytes:
    """An initializer of a graph up to its data, which are those of `tensor`."""
    if tensor is None:
        whole: bytes = entry.SerializeToString()
        return _prefix(INITIALIZER, len(whole)) + whole
    entry.ClearField("data_location")
    entry.ClearField("external_data")
    header: bytes = entry.SerializeToString() + _prefix(RAW_DATA, tensor.nbytes)
    return _prefix(INITIALIZER, len(header) + tensor.nbytes) + header


def _bytes_of(tensor: ir.TensorProtocol) -> bytes:
    data = tensor.tobytes()
    if len(data) != tensor.nbytes:
        raise WireError(f"{tensor.name!r} has {len(data)} bytes, not {tensor.nbytes}")
    return data


def _prefix(number: int, length: int) -> bytes:
    """Tag and length of a field that holds a message or bytes."""
    return _varint(number << 3 | _MESSAGE) + _varint(length)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
