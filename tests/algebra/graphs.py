"""Small graphs for the tests of the algebra: a builder, random parameters, a random graph.

The builder evaluates every node at two batch sizes while it builds. So `shapes` is what a reader
would give (None where the two differ), and a graph that cannot be evaluated is not built at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from hypothesis import HealthCheck, settings

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.checking import MalformedGraphError, check
from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Add,
    Affine,
    Concat,
    Conv,
    Embedding,
    Graph,
    Identity,
    Linear,
    MatMul,
    Mean,
    Multiply,
    Node,
    Norm,
    Op,
    Opaque,
    Pad,
    Pads,
    Param,
    PixelShuffle,
    Pool,
    Reshape,
    Resize,
    Shape,
    Size,
    Take,
    Transpose,
    WeightedMean,
)
from bnfold.algebra.plan import Plan, Site
from bnfold.algebra.planner import make_plan
from bnfold.algebra.reference import evaluate
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.reshaping import reshape

settings.register_profile(
    "algebra",
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("algebra")

BATCHES = (2, 3)


def param(name: str, values: Array, dtype: str = "float64") -> Param:
    return Param(name, values.shape, dtype, lambda: values)


class Build:
    """Makes a graph node by node; every method returns the name of the value it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.inputs: dict[str, tuple[Array, ...]] = {}
        self.values: dict[str, tuple[Array, ...]] = {}

    def input(self, *sizes: int | None) -> str:
        """A value of these sizes, None for the batch."""
        name = f"x{len(self.inputs)}"
        whole = tuple(
            self.rng.normal(size=tuple(batch if s is None else s for s in sizes))
            for batch in BATCHES
        )
        self.inputs[name] = self.values[name] = whole
        return name

    def shape(self, value: str) -> Shape:
        a, b = (x.shape for x in self.values[value])
        return tuple(m if m == n else None for m, n in zip(a, b, strict=True))

    def size(self, value: str, axis: int) -> int:
        return int(self.values[value][0].shape[axis])

    def rank(self, value: str) -> int:
        return self.values[value][0].ndim

    def take(
        self, value: str, axis: int, *parts: Sequence[int], name: str | None = None
    ) -> list[str]:
        """The outputs that hold these indices of an axis."""
        start = len(self.nodes)
        op = Take(axis, tuple(tuple(part) for part in parts))
        outs = tuple(f"v{start}_{i}" for i in range(len(parts)))
        self.nodes.append(Node(f"take{start}", "Take", op, (value,), outs))
        for out, part in zip(outs, op.parts, strict=True):
            self.values[out] = tuple(x.take(part, axis) for x in self.values[value])
        return list(outs)

    def node(self, op: Op, *inputs: str, name: str | None = None) -> str:
        name = name or f"{type(op).__name__.lower()}{len(self.nodes)}"
        node = Node(name, type(op).__name__, op, inputs, (f"v{len(self.nodes)}",))
        for which in range(len(BATCHES)):
            sizes = {v: self.values[v][which].shape for v in inputs}
            check(Graph(inputs, (node,), node.outputs, sizes))
        if isinstance(op, Opaque):
            made = tuple(np.tanh(x) for x in self.values[inputs[0]])
        else:
            made = tuple(
                evaluate(
                    Graph(inputs, (node,), node.outputs),
                    {v: self.values[v][which] for v in inputs},
                )[node.outputs[0]]
                for which in range(len(BATCHES))
            )
        if any(0 in x.shape or not np.all(np.isfinite(x)) for x in made):
            raise ValueError("the node has no values")
        self.nodes.append(node)
        self.values[node.outputs[0]] = made
        return node.outputs[0]

    def numbers(self, *shape: int) -> Array:
        return self.rng.normal(size=shape)

    def affine_on(
        self, axis: int | None, size: int, sign: str = "both", shift: bool = True
    ) -> ChannelAffine:
        """Scales of magnitude 0.4 to 2, of both signs (at least one negative) or positive."""
        scale = self.rng.uniform(0.4, 2.0, size)
        if sign == "both":
            scale *= self.rng.choice([-1.0, 1.0], size)
            scale[self.rng.integers(size)] *= -1 if np.all(scale > 0) else 1
        shifts = self.rng.uniform(0.3, 1.0, size) if shift else np.zeros(size)
        return ChannelAffine.on_axis(axis, scale, shifts)

    def affine(
        self,
        value: str,
        axis: int | None = 1,
        *,
        sign: str = "both",
        shift: bool = True,
        holds: Literal["both", "scale", "shift"] = "both",
        name: str | None = None,
    ) -> str:
        size = 1 if axis is None else self.size(value, axis)
        a = self.affine_on(axis, size, sign, shift)
        if holds != "both":
            keep_scale = holds == "scale"
            a = ChannelAffine.on_axis(
                axis,
                a.scale if keep_scale else np.ones(size),
                np.zeros(size) if keep_scale else a.shift,
            )
        return self.node(Affine(a, batchnorm=holds == "both", holds=holds), value, name=name)

    def conv(
        self,
        value: str,
        out: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int] = (),
        dilation: Sequence[int] = (),
        pads: Pads = (),
        groups: int = 1,
        pad_mode: str = "zeros",
        transposed: bool = False,
        output_padding: Sequence[int] = (),
        bias: bool = True,
        weight: Param | None = None,
        name: str | None = None,
    ) -> str:
        rank = len(kernel)
        cin = self.size(value, self.rank(value) - rank - 1)
        shape = (cin, out // groups) if transposed else (out, cin // groups)
        number = len(self.nodes)
        op = Conv(
            weight or param(f"w{number}", self.numbers(*shape, *kernel) / cin**0.5),
            param(f"c{number}", self.numbers(out)) if bias else None,
            tuple(stride) or (1,) * rank,
            tuple(dilation) or (1,) * rank,
            pads or ((0, 0),) * rank,
            groups,
            pad_mode,
            transposed,
            tuple(output_padding),
        )
        return self.node(op, value, name=name)

    def linear(self, value: str, out: int, *, bias: bool = True, name: str | None = None) -> str:
        cin = self.size(value, -1)
        weight = param(f"w{len(self.nodes)}", self.numbers(out, cin) / cin**0.5)
        c = param(f"c{len(self.nodes)}", self.numbers(out)) if bias else None
        return self.node(Linear(weight, c), value, name=name)

    def embedding(self, value: str, channels: int, *, name: str | None = None) -> str:
        """Values are cut to whole numbers, which count from either end."""
        return self.node(Embedding(param("table", self.numbers(9, channels))), value, name=name)

    def norm(self, value: str, *, groups: int = 0, bias: bool = True, centred: bool = True) -> str:
        axis = 1 if groups else self.rank(value) - 1
        size = self.size(value, axis)
        added = param("c", self.numbers(size)) if bias else None
        op = Norm(param("w", self.numbers(size)), added, axis, 1e-3, groups, centred)
        return self.node(op, value)

    def relu(self, value: str, slope: float | Array = 0.0) -> str:
        return self.node(Activation(np.asarray(slope, np.float64)), value)

    def multiply(self, one: str, two: str) -> str:
        return self.node(Multiply(), one, two)

    def matmul(self, left: str, right: str) -> str:
        return self.node(MatMul(), left, right)

    def pixels(
        self, value: str, factor: int, *, inverse: bool = False, strided: bool = False
    ) -> str:
        return self.node(PixelShuffle(factor, inverse, strided), value)

    def shuffle(self, value: str, groups: int) -> str:
        """The channels in another order, as ShuffleNet has it (Zhang et al., arXiv:1707.01083)."""
        channels, *sizes = (self.size(value, axis) for axis in range(1, self.rank(value)))
        split = self.reshape(value, None, groups, channels // groups, *sizes)
        turned = self.transpose(split, 0, 2, 1, *range(3, 3 + len(sizes)))
        return self.reshape(turned, None, channels, *sizes)

    def add(self, *values: str) -> str:
        return self.node(Add(), *values)

    def concat(self, *values: str, axis: int = 1) -> str:
        return self.node(Concat(axis), *values)

    def pool(
        self,
        value: str,
        kind: Literal["max", "avg"],
        kernel: Sequence[int] = (2, 2),
        *,
        stride: Sequence[int] = (),
        pads: Pads = (),
        dilation: Sequence[int] = (),
        ceil_mode: bool = False,
        count_include_pad: bool = False,
        divisor: int | None = None,
    ) -> str:
        rank = len(kernel)
        op = Pool(
            kind,
            tuple(kernel),
            tuple(stride) or (1,) * rank,
            pads or ((0, 0),) * rank,
            tuple(dilation),
            ceil_mode,
            count_include_pad,
            divisor,
        )
        return self.node(op, value)

    def adaptive(self, value: str, kind: Literal["max", "avg"], *size: int) -> str:
        return self.node(AdaptivePool(kind, size), value)

    def mean(self, value: str, *axes: int, keepdims: bool = False) -> str:
        return self.node(Mean(axes, keepdims), value)

    def transpose(self, value: str, *perm: int) -> str:
        return self.node(Transpose(perm), value)

    def reshape(self, value: str, *target: int | None) -> str:
        op = reshape(self.shape(value), target)
        if op is None:
            raise ValueError("an unclear reshape")
        assert isinstance(op, Reshape)
        return self.node(op, value)

    def pad(self, value: str, pads: Pads, mode: str = "constant", number: float = 0.0) -> str:
        return self.node(Pad(pads, mode, number), value)

    def resize(self, value: str, *factors: int) -> str:
        return self.node(Resize(len(factors), factors), value)

    def mix(self, value: str, axis: Literal[-2, -1] = -2, rows: int = 4) -> str:
        """softmax(input) @ value, of so many rows; on axis -1, value @ softmax(input)."""
        weights: list[Array] = []
        for x in self.values[value]:
            drawn = softmax(self.rng.normal(size=(*x.shape[:-2], rows, x.shape[axis])))
            weights.append(drawn if axis == -2 else drawn.swapaxes(-1, -2))
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.values[name] = (weights[0], weights[1])
        return self.node(WeightedMean(axis=axis), name, value)

    def identity(self, value: str) -> str:
        return self.node(Identity(), value)

    def opaque(self, value: str, refusal: Refusal | None = None) -> str:
        return self.node(Opaque(refusal, refusal is not None), value)

    def graph(self, *outputs: str) -> Graph:
        shapes = {value: self.shape(value) for value in self.values}
        return check(Graph(tuple(self.inputs), tuple(self.nodes), outputs, shapes))


def softmax(x: Array) -> Array:
    raised = np.exp(x)
    whole: Array = raised / raised.sum(-1, keepdims=True)
    return whole


def without_shapes(graph: Graph) -> Graph:
    return replace(graph, shapes={})


def with_names(build: Build, graph: Graph, *sizes: int) -> Graph:
    """The graph as it looks where these sizes, and those that grow with the batch, have names."""

    def named(pair: tuple[int, int]) -> Size:
        return pair[0] if pair[0] == pair[1] not in sizes else f"{pair[0]} or {pair[1]}"

    shapes: dict[str, Shape] = {
        value: tuple(named(pair) for pair in zip(a.shape, b.shape, strict=True))
        for value, (a, b) in build.values.items()
    }
    nodes: list[Node] = []
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Reshape):
            found = reshape(shapes[node.inputs[0]], shapes[node.outputs[0]])
            assert found is not None
            op = found
        nodes.append(node.with_op(op))
    return replace(graph, nodes=tuple(nodes), shapes=shapes)


def outputs(graph: Graph, build: Build, which: int = 0) -> dict[str, Array]:
    return evaluate(graph, {name: values[which] for name, values in build.inputs.items()})


def difference(build: Build, plan: Plan) -> float:
    """The largest error of `after`, relative to the largest value of the output."""
    worst = 0.0
    for which in range(len(BATCHES)):
        before, after = (outputs(g, build, which) for g in (plan.before, plan.after))
        assert before.keys() == after.keys()
        for name, a in before.items():
            assert a.shape == after[name].shape
            scale = max(float(np.abs(a).max()), 1e-3)
            worst = max(worst, float(np.abs(a - after[name]).max()) / scale)
    return worst


def planned(
    build: Build, *outs: str, locked: Mapping[str, Refusal] | None = None, same: bool = True
) -> Plan:
    """The plan for what was built, after proving that it changes nothing."""
    plan = make_plan(build.graph(*outs), locked)
    if same:
        assert difference(build, plan) < 1e-9, str(plan)
    return plan


def site(plan: Plan, name: str) -> Site:
    (found,) = (s for s in plan.sites if s.name == name)
    return found


def assert_folded(build: Build, *outs: str) -> Plan:
    """The plan, in which every site must have gone."""
    plan = planned(build, *outs)
    assert plan.affines.kept == 0, str(plan)
    assert not any(isinstance(node.op, Affine) for node in plan.after.nodes)
    return plan


def assert_kept(build: Build, reason: Reason, *outs: str) -> Site:
    """The one site that is left, which must be left for `reason`."""
    plan = planned(build, *outs)
    (left,) = (s for s in plan.sites if s.reason is not None)
    assert left.reason is reason, str(plan)
    assert left.why
    return left


def close(a: Array, b: Array) -> bool:
    return bool(np.abs(a - b).max() <= 1e-9 * np.abs(b).max())


KINDS = [
    *["conv"] * 3,
    *["affine"] * 4,
    *["linear", "add", "concat", "relu", "pool", "adaptive", "mean", "transpose", "reshape"],
    *["identity", "opaque", "shared", "twice", "take", "pad", "resize", "mix", "point"],
    *["multiply", "gate", "matmul", "pixels", "shuffle", "heads", "norm"],
]


def random_build(choose: random.Random, steps: int = 12) -> tuple[Build, list[str]]:
    """A graph over all kinds of op that can be evaluated, and some of its values as outputs."""
    build = Build(choose.randrange(1 << 30))
    values = [build.input(None, choose.choice([2, 3, 4]), 5, 5)]
    for _ in range(steps):
        value = values[-1] if choose.random() < 0.8 else choose.choice(values)
        try:
            values.append(_random_node(build, choose, value, values))
        except (ValueError, IndexError, MalformedGraphError):
            continue
    ends = [values[-1]]
    if choose.random() < 0.3:
        ends.append(choose.choice(values))
    return build, list(dict.fromkeys(ends))


def _random_node(build: Build, choose: random.Random, value: str, values: list[str]) -> str:
    rank = build.rank(value)
    last = rank - 1
    match choose.choice(KINDS):
        case "conv":
            return _random_conv(build, choose, value)
        case "linear":
            return build.linear(value, choose.randint(1, 4), bias=choose.random() < 0.5)
        case "affine":
            axis = choose.choice([1, 1, 1, last, None])
            return build.affine(
                value,
                axis,
                sign=choose.choice(["both", "plus"]),
                shift=choose.random() < 0.6,
                holds=choose.choice(["both", "both", "scale", "shift"]),
            )
        case "add" | "concat" | "multiply" as kind:
            shape = build.shape(value)
            fits = [v for v in values if build.shape(v) == shape and v != value]
            other = choose.choice(fits) if fits else build.conv(value, build.size(value, 1), (1, 1))
            join = {"add": build.add, "concat": build.concat, "multiply": build.multiply}[kind]
            return join(*choose.sample([value, other], 2))
        case "gate":
            gate = build.mean(value, last, keepdims=True)
            other = build.input(None, *[int(s or 1) for s in build.shape(value)[1:]])
            return build.multiply(*choose.sample([gate, other], 2))
        case "matmul":
            turned = build.transpose(value, *range(rank - 2), last, rank - 2)
            return build.matmul(*choose.sample([value, turned], 2))
        case "pixels":
            inverse = choose.random() < 0.5
            return build.pixels(value, 2, inverse=inverse, strided=choose.random() < 0.5)
        case "shuffle":
            return build.shuffle(value, 2)
        case "heads":
            return _random_heads(build, choose, value)
        case "relu":
            return build.relu(value, choose.choice([0.0, 0.1, -0.5]))
        case "pool":
            return build.pool(
                value,
                choose.choice(["max", "avg"]),
                (2, 2),
                stride=(choose.randint(1, 2),) * 2,
                pads=((choose.randint(0, 1), 0), (0, 1)) if choose.random() < 0.4 else (),
                ceil_mode=choose.random() < 0.3,
                count_include_pad=choose.random() < 0.5,
            )
        case "adaptive":
            return build.adaptive(value, choose.choice(["max", "avg"]), 2, choose.randint(1, 2))
        case "mean":
            axes = choose.choice([(last,), (rank - 2, last), (1,)])
            return build.mean(value, *axes, keepdims=choose.random() < 0.5)
        case "transpose":
            rest = choose.sample(range(1, rank), rank - 1)
            return build.transpose(value, 0, *rest)
        case "reshape":
            shape = build.shape(value)
            return build.reshape(value, *_random_target(choose, [int(s or 0) for s in shape[1:]]))
        case "identity":
            return build.identity(value)
        case "opaque":
            # a second input takes over, for what follows an Opaque cannot be evaluated
            return build.input(None, *[int(s or 1) for s in build.shape(value)[1:]])
        case "norm":
            groups = choose.choice([0, 1, build.size(value, 1)])
            bias = choose.random() < 0.5
            return build.norm(value, groups=groups, bias=bias, centred=choose.random() < 0.8)
        case "shared":
            convs = [n for n in build.nodes if isinstance(n.op, Conv)]
            return build.node(choose.choice(convs).op, value)
        case "take":
            return _random_part(build, choose, value)
        case "pad":
            mode = choose.choice(["constant", "constant", "reflect", "replicate", "circular"])
            sides = ((0, 0),) * (rank - 1) + ((choose.randint(0, 1), choose.randint(-1, 1)),)
            return build.pad(value, sides, mode, choose.choice([0.0, 0.0, 0.7]))
        case "resize":
            return build.resize(value, choose.randint(1, 2))
        case "mix":
            return build.mix(value, choose.choice([-2, -1]))
        case "point":
            return build.conv(value, build.size(value, 1), (1,) * (rank - 2))
        case "twice":
            return choose.choice([build.add, build.concat, build.multiply])(value, value)
    raise AssertionError


def _random_target(choose: random.Random, sizes: list[int]) -> Iterable[int | None]:
    """The batch, then the sizes with two neighbours merged, or the first split, or all merged."""
    way = choose.choice(["flat", "merge", "split", "squeeze"])
    if way == "flat":
        return [None, int(np.prod(sizes))]
    if way == "merge":
        return [None, *sizes[:-2], sizes[-2] * sizes[-1]]
    if way == "split":
        return [None, 2, sizes[0] // 2, *sizes[1:]]
    return [None, *sizes, 1]


def _random_heads(build: Build, choose: random.Random, value: str) -> str:
    """Attention over the last axis but one in two heads, which lie on an axis or in the batch."""
    *sizes, channels = (int(s or 0) for s in build.shape(value)[1:])
    length = int(np.prod(sizes))
    parts = build.reshape(value, None, length, 2, channels // 2)
    heads = build.transpose(parts, 0, 2, 1, 3)
    if choose.random() < 0.5:
        mixed = build.mix(build.reshape(heads, None, length, channels // 2))
        mixed = build.reshape(mixed, None, 2, 4, channels // 2)
    else:
        mixed = build.mix(heads)
    return build.reshape(build.transpose(mixed, 0, 2, 1, 3), None, 4, channels)


def _random_part(build: Build, choose: random.Random, value: str) -> str:
    """One part of a split, of which the others may be read as well."""
    axis = choose.choice([1, 1, build.rank(value) - 1])
    indices = list(range(build.size(value, axis)))
    cut = choose.randint(1, max(1, len(indices) - 1))
    parts = [indices[:cut], indices[cut:]] if choose.random() < 0.6 else [indices[:cut]]
    found = build.take(value, axis, *[part for part in parts if part])
    return build.concat(*found, axis=axis) if choose.random() < 0.5 else found[0]


def _random_conv(build: Build, choose: random.Random, value: str) -> str:
    rank = build.rank(value) - 2
    transposed = choose.random() < 0.25
    cin = build.size(value, 1)
    groups = choose.choice([g for g in (1, 1, 2, cin) if cin % g == 0])
    mode = choose.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
    padded = choose.random() < 0.5
    return build.conv(
        value,
        groups * choose.randint(1, 2),
        tuple(choose.randint(1, 3) for _ in range(rank)),
        stride=tuple(choose.choice([1, 1, 2]) for _ in range(rank)),
        dilation=tuple(choose.choice([1, 1, 2]) for _ in range(rank)),
        pads=tuple((choose.randint(0, 1), choose.randint(0, 1)) for _ in range(rank))
        if padded
        else (),
        groups=groups,
        pad_mode="zeros" if transposed else mode,
        transposed=transposed,
        bias=choose.random() < 0.5,
    )


def apart(build: Build, out: str, ops: Mapping[str, Op]) -> float:
    """How wrong the graph becomes where the named nodes get other ops and every affine goes."""
    before = build.graph(out)
    left = {n.name: Identity() for n in before.nodes if isinstance(n.op, Affine)}
    nodes = tuple(n.with_op({**left, **ops}.get(n.name, n.op)) for n in before.nodes)
    return difference(build, Plan(before, replace(before, nodes=nodes), ()))
