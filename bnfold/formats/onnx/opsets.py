"""A model in another opset: by onnx's version converter, past the operators that it need not touch.

Downwards the converter has no way for most operators, though most of their versions differ in the
types that they admit alone, or in attributes that a node does not use. Such a node is the same in
either opset; it is kept out of the converter's sight.

Same when    SIGNATURE   the newer version has the attributes of the older, of the same type and
                         default, and either takes and gives what the node has
             UNUSED      attributes that came later are not set, or to their default
             CURRENT     the newer version is not deprecated
Source       the schemas in onnx.defs (ONNX, Operators.md)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import onnx
from onnx.defs import OpSchema

from bnfold.errors import ExportError
from bnfold.formats.onnx.model import OnnxModel

_HELD = "bnfold.held"
"""The domain in which a node is out of the version converter's sight."""

_CHANGED_DEFAULT = frozenset({"RoiAlign"})
"""Operators of which an attribute came with a default other than what they did before."""


def at_opset(model: OnnxModel, opset: int | None) -> OnnxModel:
    """The model in another opset; itself if it has it already, or if that is None.

    Raises ExportError with the operator and the nearest opset that can be reached.
    """
    own = model.ir.opset_imports.get("", 1)
    if opset is None or own == opset:
        return model
    proto = model.native
    try:
        return OnnxModel.from_proto(_converted(proto, own, opset))
    except Exception as error:  # the converter documents no exception types of its own
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        why = why.rpartition("failed: ")[2]
        raise ExportError(
            f"the model cannot be brought from opset {own} to {opset}: {why}",
            f"use --opset {_nearest(proto, own, opset)}",
        ) from error


def _nearest(proto: onnx.ModelProto, own: int, wanted: int) -> int:
    """The opset between `wanted` and the model's own that can be reached and is nearest to it."""
    newest = onnx.defs.onnx_opset_version()
    step = 1 if wanted < own else -1
    for opset in range(min(wanted, newest + 1) + step, own, step):
        try:
            _converted(proto, own, opset)
        except Exception:  # as above
            continue
        return opset
    return own


def _converted(proto: onnx.ModelProto, own: int, opset: int) -> onnx.ModelProto:
    """Upwards in one go, downwards version by version."""
    if opset > own:
        return onnx.version_converter.convert_version(proto, opset)
    for version in range(own, opset, -1):
        proto = _one_down(proto, version)
    return proto


def _one_down(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        if _is_same(node, version):
            node.domain = _HELD
    copy.opset_import.append(onnx.helper.make_opsetid(_HELD, 1))
    made = onnx.version_converter.convert_version(copy, version - 1)
    for node in made.graph.node:
        if node.domain in ("", _HELD):
            node.domain = ""
            _drop_later(node, version)
    imports = [each for each in made.opset_import if each.domain != _HELD]
    del made.opset_import[:]
    made.opset_import.extend(imports)
    return made


def _is_same(node: onnx.NodeProto, version: int) -> bool:
    """Whether a node of an opset means the same in the one before it."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _CHANGED_DEFAULT:
        return False
    if any(each.HasField("g") or each.graphs for each in node.attribute):
        return False  # what is inside needs the converter
    newer, older = _schema(node.op_type, version), _schema(node.op_type, version - 1)
    return newer is not None and older is not None and _has(older, node, newer)


def _has(older: OpSchema, node: onnx.NodeProto, newer: OpSchema) -> bool:
    """SIGNATURE, UNUSED and CURRENT."""
    if newer.deprecated:
        return False
    for name, attribute in older.attributes.items():
        other = newer.attributes.get(name)
        if other is None or (attribute.type, attribute.default_value) != (
            other.type,
            other.default_value,
        ):
            return False
    later = newer.attributes.keys() - older.attributes.keys()
    for given in node.attribute:
        if given.name in later and not _is_default(given, newer):
            return False
    return _fits(node.input, older.inputs, older.max_input) and _fits(
        node.output, older.outputs, older.max_output
    )


def _fits(given: Sequence[str], declared: Sequence[OpSchema.FormalParameter], most: int) -> bool:
    """Whether what a node reads or makes is what a schema declares, by position."""
    needed = [
        position
        for position, parameter in enumerate(declared)
        if parameter.option == OpSchema.FormalParameterOption.Single
    ]
    return len(given) <= most and all(
        position < len(given) and given[position] for position in needed
    )


def _is_default(given: onnx.AttributeProto, schema: OpSchema) -> bool:
    default = schema.attributes[given.name].default_value
    if not default.name:  # it has none
        return False
    value = onnx.helper.get_attribute_value
    return bool(value(given) == value(default))


def _drop_later(node: onnx.NodeProto, version: int) -> None:
    """Take away the attributes that the opset before has not, where they are at their default."""
    newer, older = _schema(node.op_type, version), _schema(node.op_type, version - 1)
    if newer is None or older is None:
        return
    kept = [
        each
        for each in node.attribute
        if each.name in older.attributes
        or each.name not in newer.attributes
        or not _is_default(each, newer)
    ]
    del node.attribute[:]
    node.attribute.extend(kept)


@cache
def _schema(kind: str, opset: int) -> OpSchema | None:
    return onnx.defs.get_schema(kind, opset, "") if onnx.defs.has(kind, opset, "") else None
