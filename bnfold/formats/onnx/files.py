"""ONNX files in and out. Weights kept outside the file stay on disk until they are asked for.

A file that is not a model, or one whose weights lie elsewhere than in its own folder, is refused
with a ModelError: external data may not leave the folder by `..`, an absolute path, a symbolic link
or a hard link.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bnfold.errors import ExportError, ModelError, first_line
from bnfold.formats.onnx.tensors import misfit
from bnfold.formats.onnx.wire import HERE, DataFile, ModelFile, WireError, write
from bnfold.runtimes.external_data import inside

MOST_INLINE = 2**31 - 2**24
"""Bytes of weights that one protobuf file may hold (2 GiB), less room for the graph itself."""

_AGAIN = "save or download it again"

TRAINING = "training_info"
"""Set in the `meta` of a model that came with algorithms to train it, which onnx_ir leaves out."""

_LONG_DOMAIN = "ai.onnx"
"""The other name of the domain "" of the ONNX operators; onnx_ir calls nodes by the short one."""


def load_model(path: Path) -> tuple[ir.Model, Mapping[str, DataFile]]:
    """The model in the ONNX file at `path`; and by their names that file and those of its weights.

    Large weights stay where they are until they are asked for. Raises ModelError.
    """
    file = _opened(path)
    model = parse_model(_message(file, path), str(path))
    files: dict[str, DataFile] = {HERE: file}
    for tensor in external_tensors(model):
        location = os.fspath(tensor.location)
        if location not in files:
            files[location] = DataFile(_inside(path, tensor))
        tensor.base_dir = path.absolute().parent
    for value in _initialized(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _on_demand(path, files, value.const_value)
    _bring_in_attributes(model)
    return model, files


def _opened(path: Path) -> ModelFile:
    try:
        file = ModelFile(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    if not file.size:
        raise ModelError(f"{path} is empty", _AGAIN)
    return file


def _message(file: ModelFile, path: Path) -> onnx.ModelProto:
    """The message in the file, without its large weights."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(file.skeleton())
    except (DecodeError, WireError) as error:
        raise ModelError(f"{path} is not an ONNX model, or is cut short", _AGAIN) from error
    return proto


def _refers_to_no_function(graph: onnx.GraphProto) -> str | None:
    """What of the graph that is run has the value of an attribute of a function around it."""
    for inner in _graphs(graph):
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.ref_attr_name:
                    where = node.name or next(iter(node.output), "a node")
                    return (
                        f"the attribute {attribute.name} of {where} ({node.op_type}) has no value"
                    )
    return None


def _on_demand(
    path: Path, files: Mapping[str, DataFile], tensor: ir.ExternalTensor
) -> ir.LazyTensor:
    location = os.fspath(tensor.location)
    try:
        return files[location].tensor(tensor)
    except WireError as error:
        where = "the file itself" if location == HERE else repr(location)
        why = f"{path}: the data of {tensor.name!r} lie in {where}, which {error}"
        raise ModelError(why, _AGAIN) from error


def parse_model(proto: onnx.ModelProto, name: str) -> ir.Model:
    """The model that `proto` describes; `name` is what messages call it. Raises ModelError."""
    if not (proto.HasField("graph") and proto.opset_import and proto.graph.output):
        why = "is not an ONNX model: it has no graph with outputs, or names no opset"
        raise ModelError(f"{name} {why}", _AGAIN)
    if not proto.ir_version:
        raise ModelError(f"{name} is not an ONNX model: it names no IR version", _AGAIN)
    if any(graph.sparse_initializer for graph in _graphs(proto.graph)):
        raise ModelError(f"{name} has sparse initializers", "make them dense first")
    if twice := next(filter(None, map(_named_twice, _graphs(proto.graph))), None):
        raise ModelError(f"{name} has two initializers called {twice!r}", _AGAIN)
    if any(map(_takes_a_graph, proto.functions)):
        hint = "put it in place first: onnx.inliner.inline_local_functions(model)"
        raise ModelError(f"{name} has a function that is given a graph to run", hint)
    if (loose := _refers_to_no_function(proto.graph)) is not None:
        hint = "give it a value: only a function has attributes to refer to"
        raise ModelError(f"{name} is not a valid ONNX model: {loose}", hint)
    if (wrong := misfit(proto)) is not None:
        raise ModelError(f"{name} is not a valid ONNX model: {wrong}", _AGAIN)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir documents no exception types of its own
        why = _root(error)
        raise ModelError(f"{name} is not a valid ONNX model: {why}", _AGAIN) from error
    if proto.training_info:
        model.meta[TRAINING] = True
    for opsets in (model.opset_imports, *(f.opset_imports for f in model.functions.values())):
        if _LONG_DOMAIN in opsets:
            opsets.setdefault("", opsets.pop(_LONG_DOMAIN))
    return model


def _root(error: BaseException) -> str:
    """What went wrong in the first place: onnx_ir wraps an error once for each message around."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return first_line(error)


def data_files(path: Path) -> set[Path]:
    """The files beside the model at `path` that hold some of its weights. Raises ModelError."""
    model = parse_model(_message(_opened(path), path), str(path))
    return {_inside(path, tensor) for tensor in external_tensors(model) if tensor.location != HERE}


def save_model(model: ir.Model, path: Path, *, external: bool) -> None:
    """Write `model`; weights go to a file beside it if `external`, or past 2 GiB."""
    try:
        write(model, path, external=external or is_large(model))
    except ValueError as error:
        raise ExportError(f"{path.name} cannot be written: {error}") from error


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


def _initialized(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _initializers(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    yield from (v.const_value for v in _initialized(model) if v.const_value is not None)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _named_twice(graph: onnx.GraphProto) -> str | None:
    """The name of an initializer that there is another of: runtimes take one or the other."""
    count = Counter(tensor.name for tensor in graph.initializer)
    return next((name for name, times in count.items() if times > 1), None)


def _takes_a_graph(function: onnx.FunctionProto) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    bodies = (body for node in function.node for body in _bodies(node))
    nodes = [*function.node, *(node for body in bodies for g in _graphs(body) for node in g.node)]
    return any(a.ref_attr_name and a.type in kinds for node in nodes for a in node.attribute)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs)


def _inside(path: Path, tensor: ir.ExternalTensor) -> Path:
    return inside(path, tensor.name or "", os.fspath(tensor.location))
