"""An ONNX model that shows its values: every one of them is an output as well."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from bnfold.formats.onnx.values import dtype_name, given_of

_SCOPES = ("pkg.torch.onnx.name_scopes", "namespace")
"""Where exporters note the module that a node comes from."""


def showing(model: ir.Model) -> ir.Model:
    """A copy whose main graph gives all that its nodes compute, outputs of its own last.

    What is computed from constants alone is left out: a fold changes it, and nothing is wrong.
    """
    copy = model.clone()
    own = list(copy.graph.outputs)
    taken = {id(value) for value in own}
    hanging = {value.name for value in copy.graph.inputs if not value.is_initializer()}
    inner = []
    for node in copy.graph:
        if hanging.intersection(_read(node)):
            hanging.update(value.name for value in node.outputs)
            inner += [value for value in node.outputs if _shown(value)]
    copy.graph.outputs[:] = [value for value in inner if id(value) not in taken] + own
    return copy


def giving(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy whose outputs are the values of the main graph that are called so, in that order.

    Inputs and initializers go through an Identity, called NAME.given.
    """
    copy = model.clone()
    made = {value.name: value for node in copy.graph for value in node.outputs}
    given = {value.name: value for value in given_of(copy.graph)}
    for name in names:
        if name not in made and name in given:
            node = ir.Node("", "Identity", [given[name]])
            node.outputs[0].name = f"{name}.given"
            node.outputs[0].type = given[name].type
            copy.graph.append(node)
            made[name] = node.outputs[0]
    copy.graph.outputs[:] = [made[name] for name in names if name in made]
    return copy


def _shown(value: ir.Value) -> bool:
    tensor = value.type is None or isinstance(value.type, ir.TensorType)
    dtype = dtype_name(value.dtype) if value.dtype is not None else None
    return bool(value.name) and tensor and (dtype is None or "float" in dtype)


def sources(model: ir.Model) -> dict[str, tuple[str, ...]]:
    """Value -> the values that its node reads, those that its bodies read from outside too."""
    return {value.name or "": tuple(_read(node)) for node in model.graph for value in node.outputs}


def _read(node: ir.Node) -> Iterator[str]:
    yield from (value.name or "" for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _read(inner)


def owners(model: ir.Model) -> dict[str, str]:
    """Value -> its node, with the module that the node comes from where the exporter noted it."""
    return {value.name or "": _title(node) for node in model.graph for value in node.outputs}


def _title(node: ir.Node) -> str:
    title = f"{node.name or node.outputs[0].name} ({node.op_type})"
    noted = next((node.metadata_props[key] for key in _SCOPES if key in node.metadata_props), "")
    return f"{title} of {noted}" if noted else title
