"""Functions of a model, put in place of their calls: what they hold can then be folded.

A function that is called twice becomes two copies, so that each call can have weights of its own.
One that neither computes with weights nor has a BatchNorm may stay, if folding loses nothing by it.

Exact when  SAME_MEANING  every operator in it is the same in the function's opset and the model's
            OWN_NAME      no runtime could take an operator of its own for the function
            ENDS          it does not call itself, by whatever way

One that does not meet all of these stays, and what it calls stays beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from bnfold.formats.onnx.values import values_of
from bnfold.naming import claim

BUILT_IN = ("ai.onnx", "com.microsoft")
"""How the domains begin whose operators are built into ONNX Runtime."""

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")

Functions = set[ir.OperatorIdentifier]


def inlined(model: ir.Model, spared: Collection[ir.OperatorIdentifier] = ()) -> ir.Model:
    """`model` itself, or a copy without the functions that can be inlined and are not `spared`."""
    stay = {*why_they_stay(model), *spared}
    if stay.issuperset(model.functions):
        return model
    copy = model.clone()
    needed = stay.union(*(_called(copy, name) for name in stay))
    aside = {name: copy.functions[name].clone() for name in needed}
    known = {value for graph in copy.graphs() for value in values_of(graph)}
    for name in stay:
        del copy.functions[name]
    own = copy.opset_imports
    for function in copy.functions.values():
        opsets = function.opset_imports
        opsets.update({domain: own[domain] for domain in opsets if domain in own})
    try:
        InlinePass()(copy)
    except (ValueError, ir.passes.PassError, ir.passes.InvariantError):
        return model  # a call that does not fit its function
    copy.functions.update(aside)
    _tell_apart(copy, known)
    return copy


def _tell_apart(model: ir.Model, known: Collection[ir.Value]) -> None:
    """Rename what came out of functions and is called as a value of a body, which it would hide."""
    taken = {value.name or "" for graph in model.graphs() for value in values_of(graph)}
    inner = {value.name for value in known if value.graph is not model.graph}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in inner and value not in known and not value.is_graph_output():
                value.name = claim(value.name or "", taken)


def why_they_stay(model: ir.Model) -> dict[ir.OperatorIdentifier, str]:
    """The functions that cannot be put in place of their calls, and what bars each."""
    found = {name: _why_it_stays(model, name) for name in model.functions}
    return {name: why for name, why in found.items() if why is not None}


def _why_it_stays(model: ir.Model, name: ir.OperatorIdentifier) -> str | None:
    function = model.functions[name]
    if name[0] == "" or name[0].startswith(BUILT_IN):
        return "a runtime may take an operator of its own for it"
    if name in _called(model, name):
        return "it calls itself"
    for node in function.all_nodes():
        if node.op_identifier() not in model.functions and not _is_alike(node, function, model):
            there = f"opset {function.opset_imports.get(node.domain)}"
            here = model.opset_imports.get(node.domain)
            return f"its {node.op_type} is of {there}, and may be another than that of {here}"
    return None


def plain_functions(model: ir.Model) -> Functions:
    """The functions that, with all that they call, hold none of LINEAR."""
    return {name for name in model.functions if not any(_inside(model, name, LINEAR.__contains__))}


def batchnorms_in(model: ir.Model, name: ir.OperatorIdentifier) -> int:
    """How many BatchNorms a function holds, in what it calls, too."""
    return len(list(_inside(model, name, is_batchnorm)))


def is_batchnorm(op_type: str) -> bool:
    """By its name, whoever defined it."""
    return "batchnorm" in op_type.lower().replace("_", "")


def _inside(
    model: ir.Model, name: ir.OperatorIdentifier, wanted: Callable[[str], bool]
) -> Iterator[ir.Node]:
    for each in {name, *_called(model, name)}:
        for node in model.functions[each].all_nodes():
            if wanted(node.op_type) and node.op_identifier() not in model.functions:
                yield node


def _called(model: ir.Model, name: ir.OperatorIdentifier) -> Functions:
    """The functions that a function calls, itself or by others; if it calls itself, it too."""
    found: Functions = set()
    waiting = [name]
    while waiting:
        for node in model.functions[waiting.pop()].all_nodes():
            called = node.op_identifier()
            if called in model.functions and called not in found:
                found.add(called)
                waiting.append(called)
    return found


def _is_alike(node: ir.Node, function: ir.Function, model: ir.Model) -> bool:
    """Whether the operator is the same one in the function and where the model calls it."""
    there = function.opset_imports.get(node.domain)
    here = model.opset_imports.get(node.domain, there)
    if there is None or there == here:
        return there is not None
    since = {_since(node, version) for version in (there, here)}
    return len(since) == 1 and None not in since


def _since(node: ir.Node, version: int | None) -> int | None:
    """The opset from which on an operator is what it is in `version`; None if that is not known."""
    known = onnx.defs.onnx_opset_version() if node.domain == "" else 0
    if version is None or version > known:
        return None
    try:
        return int(onnx.defs.get_schema(node.op_type, version, node.domain).since_version)
    except onnx.defs.SchemaError:
        return None
