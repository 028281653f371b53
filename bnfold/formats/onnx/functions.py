"""Functions of a model, put in place of their calls: what they hold can then be folded.

A function that is called twice becomes two copies, so that each call can have weights of its own.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

BUILT_IN = ("ai.onnx", "com.microsoft")
"""How the domains begin whose operators are built into ONNX Runtime."""


def inlined(model: ir.Model) -> ir.Model:
    """`model` itself, or a copy without those of its functions that can be inlined.

    A function of another opset than the model's stays: its operators would change their meaning. So
    does one that is called like an operator of the runtime, which may take either.
    """
    alike = {name for name, function in model.functions.items() if _is_alike(function, model)}
    if not alike:
        return model
    copy = model.clone()
    try:
        InlinePass(lambda function: function.identifier() in alike)(copy)
    except (ValueError, ir.passes.PassError, ir.passes.InvariantError):
        return model  # functions that call each other in a circle, or take graphs
    return copy


def _is_alike(function: ir.Function, model: ir.Model) -> bool:
    own = model.opset_imports
    if function.domain == "" or function.domain.startswith(BUILT_IN):
        return False
    return all(own.get(domain, since) == since for domain, since in function.opset_imports.items())
