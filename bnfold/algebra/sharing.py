"""What one parameter for several calls becomes, and what its copies cost.

A layer that is called several times is a node for each call, and all read one parameter. Where
every call takes the same affine, the new numbers are the same, and it stays one parameter. Calls
that take different ones need a copy each: the same multiply-adds, and more to store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bnfold.algebra.graph import Node, Param, params, with_params
from bnfold.algebra.plan import Plan, Role
from bnfold.naming import claim

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""What a number takes in each of the types that a parameter can be stored in."""


@dataclass(frozen=True, slots=True)
class Copies:
    """The parameter `name` of several calls has become `count` different ones, `bytes` more."""

    name: str
    count: int
    bytes: int


def copies(plan: Plan) -> Iterator[Copies]:
    """Every parameter that is more than one now, in graph order."""
    versions: dict[Role, set[Role | None]] = {}
    sizes: dict[Role, int] = {}
    ops = {node.name: node.op for node in plan.after.nodes if node.name not in plan.made}
    for node in plan.before.nodes:
        for role, param in params(node.op) if node.name in ops else ():
            own = (node.name, role)
            is_new = getattr(ops[node.name], role, None) is not param
            found = versions.setdefault((param.name, role), set())
            found.add(plan.equal.get(own, own) if is_new else None)
            sizes[param.name, role] = math.prod(param.shape) * BYTES[param.dtype]
    for each, found in versions.items():
        if len(found) > 1:
            yield Copies(each[0], len(found), (len(found) - 1) * sizes[each])


def named_apart(plan: Plan) -> Plan:
    """The plan with one name for new parameters that are equal, and another for each copy."""
    was = {param for node in plan.before.nodes for _, param in params(node.op)}
    after = [(node, list(params(node.op))) for node in plan.after.nodes]
    taken = {param.name for _, own in after for _, param in own if param in was}
    names: dict[Role, str] = {}
    nodes: list[Node] = []
    for node, own in after:
        new: dict[str, Param] = {}
        for role, param in own if node.name not in plan.made else ():
            first = plan.equal.get((node.name, role), (node.name, role))
            if param not in was and first not in names:
                names[first] = claim(param.name, taken)
            if param not in was and names[first] != param.name:
                new[role] = replace(param, name=names[first])
        nodes.append(node.with_op(with_params(node.op, new)) if new else node)
    return replace(plan, after=replace(plan.after, nodes=tuple(nodes)))
