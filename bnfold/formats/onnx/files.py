"""ONNX files in and out. Weights kept outside the file stay on disk until they are asked for.

A file that is not a model, or one whose weights lie elsewhere than in its own folder, is refused
with a ModelError: external data may not leave the folder by `..`, an absolute path, a symbolic link
or a hard link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bnfold.errors import ExportError, ModelError
from bnfold.formats.onnx.wire import HERE, LARGE, ModelFile, WireError, write

MOST_INLINE = 2**31 - 2**24
"""Bytes of weights that one protobuf file may hold (2 GiB), less room for the graph itself."""

_AGAIN = "save or download it again"


def load_model(path: Path) -> ir.Model:
    """The model in the ONNX file at `path`. Raises ModelError."""
    try:
        file = ModelFile(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    if not file.size:
        raise ModelError(f"{path} is empty", _AGAIN)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(file.skeleton())
    except (DecodeError, WireError) as error:
        raise ModelError(f"{path} is not an ONNX model, or is cut short", _AGAIN) from error
    model = parse_model(proto, str(path))
    folder = path.absolute().parent
    _leave_in(file, model, path)
    for tensor in external_tensors(model):
        tensor.base_dir = folder
        _check_inside(path, folder, tensor)
    _bring_in_attributes(model)
    return model


def parse_model(proto: onnx.ModelProto, name: str) -> ir.Model:
    """The model that `proto` describes; `name` is what messages call it. Raises ModelError."""
    if not (proto.HasField("graph") and proto.opset_import and proto.graph.output):
        why = "is not an ONNX model: it has no graph with outputs, or names no opset"
        raise ModelError(f"{name} {why}", _AGAIN)
    if any(graph.sparse_initializer for graph in _graphs(proto.graph)):
        raise ModelError(f"{name} has sparse initializers", "make them dense first")
    try:
        return ir.from_proto(proto)
    except Exception as error:  # onnx_ir documents no exception types of its own
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{name} is not a valid ONNX model: {why}", _AGAIN) from error


def save_model(model: ir.Model, path: Path, *, external: bool) -> None:
    """Write `model`; weights go to `path`.data beside it if `external`, or past 2 GiB."""
    try:
        if not external and not is_large(model):
            write(model, path)
            return
        data = f"{path.name}.data"
        ir.save(model, path, format="protobuf", external_data=data, size_threshold_bytes=LARGE)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be written: {error}") from error


def is_large(model: ir.Model) -> bool:
    """Whether the weights do not fit into one file."""
    return sum(tensor.nbytes for tensor in _initializers(model)) > MOST_INLINE


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor, of initializers and of attributes, whose data lie outside the file."""
    yield from (t for t in _initializers(model) if isinstance(t, ir.ExternalTensor))
    for node in _nodes(model):
        for attribute in node.attributes.values():
            if isinstance(attribute.value, ir.ExternalTensor):
                yield attribute.value


def _leave_in(file: ModelFile, model: ir.Model, path: Path) -> None:
    """Let the large weights of the main graph be read from the model's own file when needed."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and os.fspath(tensor.location) == HERE:
            try:
                value.const_value = file.tensor(tensor)
            except WireError as error:
                raise ModelError(f"{path} is not valid: {error}", _AGAIN) from error


def _bring_in_attributes(model: ir.Model) -> None:
    """Read the tensors of attributes that lie outside: onnx_ir writes only initializers there."""
    for node in _nodes(model):
        for name, attribute in node.attributes.items():
            tensor = attribute.value
            if isinstance(tensor, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(tensor.numpy().copy()))


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _initializers(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _graphs(body)


def _check_inside(path: Path, folder: Path, tensor: ir.ExternalTensor) -> None:
    location = os.fspath(tensor.location)
    where = f"{path}: the data of {tensor.name!r} lie in {location!r}, "
    target = folder / location
    if os.path.isabs(location) or ".." in Path(location).parts:
        raise ModelError(where + "outside the model's folder", "put the file beside the model")
    try:
        status = target.stat()
    except OSError as error:
        hint = "put the file beside the model"
        raise ModelError(where + f"which cannot be read: {error.strerror}", hint) from error
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ModelError(where + "a link out of the model's folder", "replace it by a copy")
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise ModelError(where + "which is a hard link or not a plain file", "replace it by a copy")
    if (tensor.offset or 0) + tensor.nbytes > status.st_size:
        raise ModelError(where + f"which is too short ({status.st_size} bytes)", _AGAIN)
