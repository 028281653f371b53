"""The program of a submodule, cut out of that of the whole network, for every size.

Exact when   NO_SIZES    its code asked for no size while it ran, and its operators take none
             ONE_VALUE   it takes one tensor, once, and gives one; nothing else passes its border
Everything else is captured by itself (generating.py).
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from bnfold.formats.pytorch.functional_layers import ACTIVATIONS, CONVOLUTIONS
from bnfold.formats.pytorch.program_names import STORED

_ATEN = torch.ops.aten

_SIZELESS = {
    *(*ACTIVATIONS, *CONVOLUTIONS, _ATEN.batch_norm.default, _ATEN.linear.default),
    *(_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor),
    *(_ATEN.gelu.default, _ATEN.clamp.default, _ATEN.dropout.default, _ATEN.cat.default),
    *(_ATEN.max_pool2d.default, _ATEN.avg_pool2d.default, _ATEN.mean.dim),
}
"""Operators whose numbers are sizes only where the code that calls them asked for one."""


def cut(program: ExportedProgram, inside: set[str]) -> ExportedProgram | None:
    """The program of the nodes with the names `inside`, on one input; None if it is none."""
    nodes = [node for node in program.graph.nodes if node.name in inside]
    if not nodes or any(node.target not in _SIZELESS for node in nodes):
        return None
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    read = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in nodes)
    stored = [node for node in read if node.name in specs and specs[node.name].kind in STORED]
    given = [node for node in read if node not in stored]
    ends = [node for node in nodes if any(user not in nodes for user in node.users)]
    if len(given) != 1 or len(ends) != 1:
        return None
    graph, copied = torch.fx.Graph(), {}
    for node in (*stored, *given):
        copied[node] = graph.placeholder(node.name)
        copied[node].meta = dict(node.meta)
    for node in nodes:
        copied[node] = graph.node_copy(node, copied.__getitem__)
    for old, new in copied.items():
        new.name = old.name
    graph.output((copied[ends[0]],))
    signature = ExportGraphSignature(
        [
            *(specs[node.name] for node in stored),
            InputSpec(InputKind.USER_INPUT, TensorArgument(given[0].name), None),
        ],
        [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(ends[0].name), None)],
    )
    kept = {specs[node.name].target for node in stored}
    return ExportedProgram(
        torch.fx.GraphModule(torch.nn.Module(), graph),
        graph,
        signature,
        {name: tensor for name, tensor in program.state_dict.items() if name in kept},
        {},
        program.module_call_graph,
        None,
        {name: tensor for name, tensor in program.constants.items() if name in kept},
        verifiers=program.verifiers,
    )
