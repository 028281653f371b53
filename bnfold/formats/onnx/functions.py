"""Functions of a model, put in place of their calls: what they hold can then be folded.

A function that is called twice becomes two copies, so that each call can have weights of its own.
One that neither computes with weights nor has a BatchNorm may stay, if folding loses nothing by it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

BUILT_IN = ("ai.onnx", "com.microsoft")
"""How the domains begin whose operators are built into ONNX Runtime."""


LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")


def inlined(model: ir.Model, spared: Collection[ir.OperatorIdentifier] = ()) -> ir.Model:
    """`model` itself, or a copy without those of its functions that can be inlined.

    A function of another opset than the model's stays: its operators would change their meaning. So
    does one that is called like an operator of the runtime, which may take either, and `spared`.
    """
    alike = {name for name, function in model.functions.items() if _is_alike(function, model)}
    if not alike.difference(spared):
        return model
    copy = model.clone()
    try:
        InlinePass(lambda function: function.identifier() in alike.difference(spared))(copy)
    except (ValueError, ir.passes.PassError, ir.passes.InvariantError):
        return model  # functions that call each other in a circle, or take graphs
    return copy


def plain_functions(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """The functions that, with all that they call, hold none of LINEAR."""
    return {
        name
        for name in model.functions
        if not any(node.op_type in LINEAR for node in _nodes(model, name, set()))
    }


def _nodes(
    model: ir.Model, name: ir.OperatorIdentifier, seen: set[ir.OperatorIdentifier]
) -> Iterator[ir.Node]:
    seen.add(name)
    for node in model.functions[name].all_nodes():
        yield node
        called = node.op_identifier()
        if called in model.functions and called not in seen:
            yield from _nodes(model, called, seen)


def _is_alike(function: ir.Function, model: ir.Model) -> bool:
    own = model.opset_imports
    if function.domain == "" or function.domain.startswith(BUILT_IN):
        return False
    return all(own.get(domain, since) == since for domain, since in function.opset_imports.items())
