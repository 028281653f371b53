"""An ONNX model with some of its outputs, and what these need."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnfold.algebra.refusal import listed
from bnfold.errors import UsageError


def selecting(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy with the outputs called `names`, in that order, without what only others need.

    Raises UsageError for what is no output of the model, or named twice.
    """
    copy = model.clone()
    outputs = {value.name: value for value in copy.graph.outputs}
    own = [name or "" for name in outputs]
    if unknown := [name for name in names if name not in outputs]:
        raise UsageError(f"the model has no output {unknown[0]!r}", f"it gives {listed(own)}")
    if len({*names}) < len(names):
        raise UsageError("an output is named twice", f"name each once, of {listed(own)}")
    needed = {value.name for value in copy.graph.inputs if value.uses()}
    copy.graph.outputs[:] = [outputs[name] for name in names]
    RemoveUnusedNodesPass()(copy)
    read = {id(value) for value in copy.graph.outputs}
    copy.graph.inputs[:] = [
        value
        for value in copy.graph.inputs
        if value.uses() or value.name not in needed or id(value) in read
    ]
    return copy
