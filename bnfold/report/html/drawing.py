"""The graph of a model as the page draws it: nodes, edges, and blocks that fold away.

A block is a run of neighbours in graph order that lie in one module, so that blocks never form a
cycle. A node without a module in its name lies where its neighbours do. Where nothing has a module,
or a block is too long to be seen at once, a run of `MOST_AT_ONCE` nodes is a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from bnfold.algebra.graph import Affine, Graph, Identity, Node, Opaque, params, shape_text
from bnfold.algebra.plan import Outcome, Plan, Site
from bnfold.algebra.refusal import listed

MOST_AT_ONCE = 40
"""Nodes and blocks beside each other in one block."""

_PARTS = re.compile(r"[./:]+")
Path = tuple[str, ...]
Tree = list[Any]
"""Numbers of nodes, and blocks: {"name": ..., "inside": Tree}."""


def drawing(plan: Plan) -> dict[str, Any]:
    """The graph before and after, ready for JSON."""
    sites = {site.name: site for site in plan.sites}
    return {
        "before": _side(plan.before, _states_before(plan)),
        "after": _side(plan.after, _states_after(plan)),
        "sites": {name: _told(site) for name, site in sites.items()},
    }


def _states_before(plan: Plan) -> dict[str, str]:
    """The outcome of each site; "merged" for what went into another node; "took"."""
    after = {node.name: node for node in plan.after.nodes}
    states = {node.name: "merged" for node in plan.before.nodes if node.name not in after}
    states |= {was.name: "took" for was, _ in plan.changed()}
    return states | {site.name: str(site.outcome) for site in plan.sites}


def _states_after(plan: Plan) -> dict[str, str]:
    states = {node.name: "took" for _, node in plan.changed()}
    states |= {node.name: "took" for node in plan.made_nodes()}
    return states | {s.name: "kept" for s in plan.sites if s.outcome is Outcome.KEPT}


def _side(graph: Graph, states: Mapping[str, str]) -> dict[str, Any]:
    """Edges go from the maker of a value, or from an input, to the reader."""
    ends = [*graph.inputs]
    makers: dict[str, int] = {value: -1 - i for i, value in enumerate(graph.inputs)}
    for number, node in enumerate(graph.nodes):
        makers |= dict.fromkeys(node.outputs, number)
    edges = [
        (makers[value], number)
        for number, node in enumerate(graph.nodes)
        for value in dict.fromkeys(node.inputs)
        if value in makers
    ]
    outputs = [(makers[value], value) for value in graph.outputs if value in makers]
    return {
        "nodes": [_node(node, graph, states.get(node.name, "")) for node in graph.nodes],
        "edges": edges,
        "inputs": [f"{value} {shape_text(graph.shapes.get(value))}" for value in ends],
        "outputs": outputs,
        "tree": _tree(list(enumerate(_paths(graph.nodes))), 0),
    }


def _node(node: Node, graph: Graph, state: str) -> dict[str, Any]:
    made = node.outputs[0] if node.outputs else ""
    return {
        "name": node.name,
        "kind": node.kind,
        "op": "BatchNorm" if node.is_batchnorm else _op(node),
        "state": state,
        "shape": shape_text(graph.shapes.get(made)),
        "params": [f"{role} {list(p.shape)} {p.dtype}: {p.name}" for role, p in params(node.op)],
    }


def _op(node: Node) -> str:
    if isinstance(node.op, Opaque | Identity | Affine):
        return node.kind
    return type(node.op).__name__


def _told(site: Site) -> dict[str, Any]:
    """What the page says of a site."""
    return {
        "outcome": str(site.outcome),
        "into": listed(site.into),
        "amplification": None if site.amplification is None else f"{site.amplification:.3g}",
        "reason": None if site.reason is None else str(site.reason),
        "why": [str(obstacle) for obstacle in site.obstacles],
        "remedy": site.remedy,
    }


def _paths(nodes: Sequence[Node]) -> list[Path]:
    """The module of each node; of one that names none, the module that its neighbours share."""
    own = [tuple(part for part in _PARTS.split(node.name) if part)[:-1] for node in nodes]
    before: list[Path] = []
    for path in own:
        before.append(path or (before[-1] if before else ()))
    after: list[Path] = []
    for path in reversed(own):
        after.append(path or (after[-1] if after else ()))
    after.reverse()
    pairs = zip(own, before, after, strict=True)
    return [path or tuple(_shared(one, other)) for path, one, other in pairs]


def _shared(one: Path, other: Path) -> Iterator[str]:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return
        yield a


def _tree(numbered: Sequence[tuple[int, Path]], depth: int) -> Tree:
    """Runs of one module become blocks; one that would hold all there is, or one node, does not."""
    if not any(len(path) > depth for _, path in numbered):
        return _chunks([number for number, _ in numbered])
    found: Tree = []
    for part, run in groupby(numbered, lambda each: each[1][depth : depth + 1]):
        inside = list(run)
        if not part or len(inside) == 1:
            found += [number for number, _ in inside]
        elif len(inside) == len(numbered):
            return _tree(numbered, depth + 1)
        else:
            name = ".".join(inside[0][1][: depth + 1])
            found.append({"name": name, "inside": _tree(inside, depth + 1)})
    return _chunks(found)


def _chunks(tree: Tree) -> Tree:
    """As it is if it can be seen at once; else in runs, in as many levels as that takes."""
    while len(tree) > MOST_AT_ONCE:
        size = max(2, min(MOST_AT_ONCE, -(-len(tree) // MOST_AT_ONCE)))
        runs = [tree[i : i + size] for i in range(0, len(tree), size)]
        tree = [{"name": "", "inside": run} for run in runs]
    return tree
