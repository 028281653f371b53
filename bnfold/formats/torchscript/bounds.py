"""What a TorchScript graph would take to run, told before it runs.

ROUNDS  a loop that nothing but its count ends has at most MOST_ROUNDS
"""

from __future__ import annotations

from typing import Any

import torch

from bnfold.errors import ModelError
from bnfold.formats.torchscript.nodes import walk

MOST_ROUNDS = 10_000_000


def require_few_rounds(module: torch.jit.ScriptModule) -> None:
    """ROUNDS. Raises ModelError."""
    graph: Any = module.inlined_graph
    for node in walk(graph):
        if node.kind() != "prim::Loop":
            continue
        most, first, *_ = node.inputs()
        (body,) = node.blocks()
        on = next(iter(body.outputs()))
        rounds = most.toIValue()
        if first.toIValue() is True and on.toIValue() is True and (rounds or 0) > MOST_ROUNDS:
            line = node.sourceRange().strip().splitlines()
            where = next((part.strip() for part in line if "HERE" not in part), "")
            raise ModelError(
                f"a loop goes round {rounds:,} times: {where}",
                "no network needs that: the file is damaged, or made to do harm",
            )
