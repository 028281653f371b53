"""Lists of tensors that are only taken apart again: a SplitToSequence and its SequenceAts."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from bnfold.algebra.graph import Take
from bnfold.formats.onnx.call import Call
from bnfold.formats.onnx.constants import Native


def split_sequence(call: Call) -> tuple[Take, tuple[ir.Value, ...]] | None:
    """SplitToSequence whose entries are only taken out, each at most once, and what makes each."""
    shape, found = call.x.shape, call.array(1)
    (sequence,) = call.node.outputs
    axis = 0 if shape is None else call.attr("axis", 0) % len(shape)
    size = None if shape is None else shape[axis]
    if not isinstance(size, int) or found is None or sequence.is_graph_output():
        return None
    given = [int(n) for n in found.reshape(-1).tolist()]
    if min(given, default=0) <= 0:
        return None
    lengths = given if found.ndim else [min(given[0], size - a) for a in range(0, size, given[0])]
    if sum(lengths) != size:
        return None
    taken: dict[int, ir.Value] = {}
    for user, _ in sequence.uses():
        where = _constant_behind(call, user)
        if user.op_type != "SequenceAt" or user.domain != "" or where is None:
            return None
        index = int(where.reshape(-1)[0]) % len(lengths)
        if taken.setdefault(index, user.outputs[0]) is not user.outputs[0]:
            return None
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    parts = [tuple(range(a, a + n)) for a, n in zip(starts, lengths, strict=True)]
    own = sorted(taken)
    return Take(axis, tuple(parts[i] for i in own)), tuple(taken[i] for i in own)


def _constant_behind(call: Call, user: ir.Node) -> Native | None:
    """The second input of a node that follows; exporters make it right before that node."""
    later = replace(call, node=user)
    value = later.value(1)
    maker = None if value is None else value.producer()
    if maker is not None and maker.op_type == "Constant":
        call.values.visit(maker)
    return later.array(1)
