"""Turn the float64 parameters of a plan into the types they are stored in, with one rounding.

Where that would overflow, or cost more than the rounding itself because values fall below the
smallest normal number of the type, the node is refused and named, so that the plan can be made anew
without it.

Exact when   FINITE   every rounded value is finite
             NORMAL   per output channel, weight and bias each, the error of rounding stays within
                      epsilon times the norm (half an epsilon is what rounding may cost), or within
                      epsilon squared times the norm of the node's loudest channel: a dead channel
                      (gamma 1e-40) may vanish beside living ones, a whole layer may not
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import Affine, Conv, Embedding, Graph, Layer, Node, Param, params
from bnfold.algebra.plan import Plan, Role
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules.move import refused
from bnfold.algebra.sharing import copies, named_apart

Native = NDArray[Any]
Weights = Mapping[str, Mapping[str, Native]]
"""node name -> role ("weight", "bias") -> the new value, in its own type."""

MOST_PLANS = 16
"""How often a plan is made anew for one node after the other that cannot be stored."""

MOST_KEPT = 2**27
"""Bytes of new values that are kept in memory; those beyond are computed when they are needed."""

EPSILON = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}
"""The types that a parameter can be stored in, and the relative step between their numbers."""

SMALLEST_NORMAL = {
    "float64": 2.0**-1022,
    "float32": 2.0**-126,
    "float16": 2.0**-14,
    "bfloat16": 2.0**-126,
}
"""Numbers above it are rounded by at most half an epsilon, those below by more."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type called `name`; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def rounded(exact: Array, dtype: str) -> Native:
    """The nearest numbers of `dtype`, ties to even; beyond its range, infinity."""
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "bfloat16":
            return _odd_float32(exact).astype(numpy_dtype(dtype))
        return exact.astype(numpy_dtype(dtype))


def make_rounded_plan(
    graph: Graph,
    locked: Mapping[str, Refusal],
    veto: Callable[[Plan], Mapping[str, Refusal]] = lambda plan: {},
    *,
    merging: bool = True,
    free: Collection[str] = (),
) -> tuple[Plan, Weights]:
    """The plan whose every edit can be stored, and the new parameters of Conv and Linear nodes.

    `locked` nodes are left alone from the start; `veto` names those among a plan's edits that the
    native form cannot carry out, and the plan is made anew without them. `merging` and `free` are
    make_plan's; a map whose numbers cannot be stored in another place stays.
    """
    locked, free = dict(locked), {*free}
    for tries in count(1):
        plan = make_plan(graph, locked, merging=merging, free=free)
        weights: dict[str, _Rounded] = {}
        room = MOST_KEPT
        trouble = dict(veto(plan))
        stays: set[str] = set()
        for after in filter(_is_layer, plan.made_nodes()):
            new = _Rounded(dict(params(after.op)))
            if _refusal(after, new, room):
                stays.add(plan.made[after.name].of)
            weights[after.name] = new
            room -= sum(values.nbytes for values in new.kept.values())
        if stays:
            free = free - stays if tries < MOST_PLANS else set()
            continue
        for before, after in plan.changed():
            if isinstance(after.op, Affine):
                continue
            if not isinstance(after.op, Layer):
                trouble[after.name] = _unwritable(after)
                continue
            new = _Rounded({r: p for r, p in params(after.op) if p is not getattr(before.op, r)})
            if refusal := _refusal(after, new, room):
                trouble[after.name] = refusal
            weights[after.name] = new
            room -= sum(values.nbytes for values in new.kept.values())
        trouble.update(_doubled(plan, weights))
        if not trouble:
            return named_apart(replace(plan, equal=_equal(weights))), weights
        if tries > MOST_PLANS:  # what dissolved beside them stays: twice as many nodes each time
            trouble = _with_dissolved(plan, trouble, 2 ** (tries - MOST_PLANS))
        locked.update(trouble)
    raise AssertionError("a plan that edits nothing can be stored")


def _equal(weights: Mapping[str, _Rounded]) -> dict[Role, Role]:
    """Every parameter that equals another one -> the first of those."""
    groups: dict[tuple[str, bytes], list[Role]] = {}
    for node, new in weights.items():
        for role, digest in new.digests.items():
            groups.setdefault((role, digest), []).append((node, role))
    return {each: group[0] for group in groups.values() if len(group) > 1 for each in group}


def _doubled(plan: Plan, weights: Mapping[str, _Rounded]) -> dict[str, Refusal]:
    """The embeddings whose tables something else reads as they were: no affine is worth a copy."""
    twice = {each.name for each in copies(replace(plan, equal=_equal(weights)))}
    found: dict[str, Refusal] = {}
    for node in plan.after.nodes:
        if isinstance(node.op, Embedding) and node.name in weights and node.op.weight.name in twice:
            why = "its table is read elsewhere, and would be stored twice"
            found[node.name] = refused(Reason.SHARED_MODULE, node, why)
    return found


def _with_dissolved(plan: Plan, trouble: Mapping[str, Refusal], more: int) -> dict[str, Refusal]:
    """The nodes that cannot be stored, and `more` that the plan dissolves, the closest first."""
    left = {node.name for node in plan.after.nodes}
    beside: dict[str, list[Node]] = {}
    for node in plan.before.nodes:
        for value in (*node.inputs, *node.outputs):
            beside.setdefault(value, []).append(node)
    named = {node.name: node for node in plan.before.nodes}
    found = dict(trouble)
    waiting = deque(named[name] for name in trouble if name in named)
    while waiting and len(found) < len(trouble) + more:
        node = waiting.popleft()
        for value in (*node.inputs, *node.outputs):
            for other in beside[value]:
                if other.name not in left and other.name not in found:
                    found[other.name] = found[node.name]
                    waiting.append(other)
    return found


def _is_layer(node: Node) -> bool:
    return isinstance(node.op, Layer)


def _unwritable(node: Node) -> Refusal:
    """No native form changes anything but parameters: the number that a Pad adds stays."""
    why = f"{node.name} ({node.kind}): it would have to pad with another number"
    return Refusal(Reason.ZERO_PADDING, why, node.name)


@dataclass(frozen=True, slots=True)
class _Rounded(Mapping[str, Native]):
    """Parameters of a node in the types they are stored in, computed unless they are `kept`.

    `digests` are those of type, shape and numbers, once they were looked at.
    """

    exact: Mapping[str, Param]
    kept: dict[str, Native] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)

    def __getitem__(self, role: str) -> Native:
        if role in self.kept:
            return self.kept[role]
        return rounded(self.exact[role].load(), self.exact[role].dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.exact)

    def __len__(self) -> int:
        return len(self.exact)


def _refusal(node: Node, new: _Rounded, room: int) -> Refusal | None:
    """What FINITE and NORMAL say of new parameters; they are kept while there is `room`."""
    for role, param in new.exact.items():
        exact = param.load()
        native = rounded(exact, param.dtype)
        new.digests[role] = _digest(native)
        if native.nbytes <= room:
            new.kept[role] = native
            room -= native.nbytes
        if _is_surely_fine(exact, native, param.dtype):
            continue
        for channel, fault in _faults(node, exact, native, param.dtype):
            why = f"the {role} of output channel {channel} {fault} {param.dtype}"
            return Refusal(Reason.PRECISION, f"{node.name} ({node.kind}): {why}", node.name)
    return None


def _digest(values: Native) -> bytes:
    head = f"{values.dtype.name} {values.shape}".encode()
    flat = np.ascontiguousarray(values).reshape(-1)
    return blake2b(flat.view(np.uint8).data, key=blake2b(head).digest()).digest()


def _is_surely_fine(exact: Array, native: Native, dtype: str) -> bool:
    """Whether every number is finite, and zero or normal: then FINITE and NORMAL hold."""
    sizes = np.abs(exact)
    if not (np.isfinite(sizes.sum()) and np.all(np.isfinite(native))):
        return False
    return not np.any((sizes < SMALLEST_NORMAL[dtype]) & (sizes > 0))


def _faults(node: Node, exact: Array, native: Native, dtype: str) -> Iterator[tuple[int, str]]:
    """Channels that break FINITE, then those that break NORMAL."""
    back = native.astype(np.float64)
    for channel in np.flatnonzero(~np.isfinite(_by_channel(node, back)).all(1)):
        whole = np.all(np.isfinite(_by_channel(node, exact)[channel]))
        yield int(channel), "overflows" if whole else "is not finite in"
    epsilon = EPSILON[dtype]
    error = _norms(_by_channel(node, back - exact))
    loudest = (_norms(_by_channel(node, p.load())).max(initial=0) for _, p in params(node.op))
    norms = np.maximum(_norms(_by_channel(node, exact)), epsilon * max(loudest))
    for channel in np.flatnonzero(error > epsilon * norms):
        yield int(channel), "is too small for"


def _odd_float32(exact: Array) -> NDArray[np.float32]:
    """float32 by rounding to odd, after which rounding to a shorter type is exact."""
    near = exact.astype(np.float32)
    bits = near.view(np.uint32)
    wrong = np.isfinite(near) & (near.astype(np.float64) != exact) & (bits % 2 == 0)
    other = np.nextafter(near, np.where(exact > near, np.inf, -np.inf).astype(np.float32))
    return np.where(wrong, other, near)


def _by_channel(node: Node, values: Array) -> Array:
    """View [Cout, n]: a transposed weight [Cin, Cout/g, *K] has its output channels in groups, the
    table of an embedding on its last axis."""
    if isinstance(node.op, Conv) and node.op.transposed and values.ndim > 1:
        groups, (cin, per) = node.op.groups, values.shape[:2]
        grouped = values.reshape(groups, cin // groups, per, -1)
        values = grouped.transpose(0, 2, 1, 3).reshape(groups * per, -1)
    elif isinstance(node.op, Embedding):
        values = values.T
    return values.reshape(values.shape[0], -1)


def _norms(rows: Array) -> Array:
    """Euclidean norms of rows, without squaring numbers out of range."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    safe = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    norms: Array = safe * np.sqrt(((rows / safe[:, None]) ** 2).sum(1))
    return norms
