"""What an ONNX model says of itself: names of inputs and outputs, where it is from."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence

import onnx
import onnx_ir as ir

from bnfold.errors import UsageError
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.onnx.values import values_of
from bnfold.naming import claim

MODULE = "bnfold.module"
"""The key under which a node names the module that it came from."""

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter writes the modules around a node, outermost first, and the node itself."""


def finished(
    model: OnnxModel,
    facts: Mapping[str, str],
    *,
    names: tuple[Sequence[str], Sequence[str]] = ((), ()),
    ir_version: int | None = None,
    external: bool = False,
) -> OnnxModel:
    """The model with `facts` in its metadata, and its inputs and outputs called `names`.

    Raises UsageError if there are not as many names as inputs or outputs, or one is given twice.
    """
    copy = model.ir.clone()
    copy.metadata_props.update(facts)
    copy.ir_version = ir_version or copy.ir_version
    given = [value for value in copy.graph.inputs if not value.is_initializer()]
    wanted = {
        **_by_value("input", given, names[0]),
        **_by_value("output", list(copy.graph.outputs), names[1]),
    }
    if len(set(wanted.values())) < len(wanted):
        raise UsageError("two inputs or outputs were given the same name", "give each its own")
    for value in (*given, *copy.graph.outputs):
        if value not in wanted and value.name in wanted.values():
            what = "output" if value in copy.graph.outputs else "input"
            raise UsageError(f"{value.name!r} is the name of an {what}", "choose another name")
    _free(copy, set(wanted.values()))
    for value, name in wanted.items():
        value.name = name
    return OnnxModel(copy, external=external or model.external)


def name_modules(proto: onnx.ModelProto, original: Callable[[str], str]) -> None:
    """Of what torch's exporter says of each node, keep its module, not its lines of source.

    `original` gives the module's own path for the one that the exporter was given.
    """
    for node in proto.graph.node:
        said = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(said.get(_SCOPES, "[]"))
        del node.metadata_props[:]
        if len(scopes) > 1 and scopes[-2]:
            node.metadata_props.add(key=MODULE, value=original(scopes[-2]))


def _by_value(what: str, values: Sequence[ir.Value], names: Sequence[str]) -> dict[ir.Value, str]:
    if names and len(names) != len(values):
        have = ", ".join(value.name or "" for value in values)
        raise UsageError(
            f"{len(names)} {what} names were given, the model has {len(values)}: {have}",
            f"give {len(values)}, with commas",
        )
    return dict(zip(values, names, strict=False))


def _free(model: ir.Model, names: set[str]) -> None:
    """Give what is called one of `names` another name."""
    taken = {value.name for graph in model.graphs() for value in values_of(graph)} | names
    for graph in model.graphs():
        for value in values_of(graph):
            if value.name in names:
                value.name = claim(value.name, taken, "_")
