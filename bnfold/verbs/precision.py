"""The type that the floats of a model are written in: cast once, with the original at hand.

The cast model gives the noise floor; the truth stays the original in float64. A fold reads the
parameters of the original, so that each new one is rounded once, whatever its type.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from bnfold.algebra.graph import Affine, Graph, Layer, Node, params
from bnfold.algebra.rounding import EPSILON
from bnfold.errors import UsageError
from bnfold.formats.model import MODULES, Model
from bnfold.inputs import Inputs
from bnfold.runtimes import Sample

Precision = Literal["float32", "float16", "bfloat16"]


def require_precision(dtype: str | None) -> None:
    if dtype is not None and dtype not in get_args(Precision):
        raise UsageError(
            f"{dtype!r} is no type that a model is written in",
            f"choose from {', '.join(get_args(Precision))}",
        )


def in_precision(
    original: Model, inputs: Inputs | None, dtype: str | None
) -> tuple[Model, Inputs | None]:
    """The model and its inputs with every float in `dtype`; themselves if that is None.

    Raises UsageError where the form or an operator has no place for that type.
    """
    require_precision(dtype)
    if dtype is None:
        return original, inputs
    cast = original.cast(dtype)
    if inputs is None:
        return cast, None
    specs = tuple(
        replace(spec, dtype=dtype) if spec.dtype in EPSILON else spec for spec in inputs.specs
    )
    return cast, inputs.of(specs)


def read_exactly(cast: Model, sample: Sample | None, original: Graph) -> Graph:
    """The graph of a model that was cast, with the parameters of its layers as `original` has them.

    A node whose parameters are not there in the same shapes keeps its own. Raises UsageError if the
    model does not run in that type, because its code asks for another.
    """
    try:
        graph = cast.read(sample)
    except UsageError as error:
        if cast.format not in MODULES:
            raise
        hint = "add --form graph: there the types that its code asks for change, too"
        raise UsageError(f"in the type that was asked for, {error}", hint) from error
    known = {node.name: node for node in original.nodes}
    return replace(graph, nodes=tuple(_exact(node, known.get(node.name)) for node in graph.nodes))


def _exact(node: Node, original: Node | None) -> Node:
    if original is None or type(node.op) is not type(original.op):
        return node
    if isinstance(node.op, Affine) and isinstance(original.op, Affine):
        own, its = node.op.affine, original.op.affine
        if own.axes != its.axes or own.scale.shape != its.scale.shape:
            return node
        return replace(node, op=replace(node.op, affine=its))
    if not isinstance(node.op, Layer):
        return node
    known = dict(params(original.op))
    exact: dict[str, Any] = {
        role: replace(param, load=known[role].load)
        for role, param in params(node.op)
        if role in known and known[role].shape == param.shape
    }
    return replace(node, op=replace(node.op, **exact))
