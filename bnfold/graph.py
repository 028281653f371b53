"""The neutral dataflow graph: what the algebra needs to know of a model, and nothing else.

    graph   ::=  inputs node* outputs          single assignment, topological order
    node    ::=  name: outputs = op(inputs)    a value is named by a string
    op      ::=  Conv | Linear | Affine                      hold parameters, absorb affines
              |  Add | Concat | Identity                     pass affines on
              |  Pool | AdaptivePool | Mean | Activation     pass affines on under conditions
              |  Reshape | Transpose                         move the channel axis
              |  Opaque                                      everything else: never passed through
    param   ::=  name, shape, dtype, float64 on demand

A reader makes explicit what its format hides. The body of a branch or loop lies in the same graph,
before its Opaque control-flow node, which reads what the body returns. Axes count
from the left; a size is a number, the name of a symbol, or None where it is not known, and a shape
is None where not even the rank is known. Every object is immutable: an edit makes a new node, a
plan makes a new graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Literal

from bnfold.affine import Array, ChannelAffine
from bnfold.refusal import Refusal

Size = int | str | None
Shape = tuple[Size, ...]
Pads = tuple[tuple[int, int], ...]  # (begin, end) of every spatial dimension


@dataclass(frozen=True, eq=False, slots=True)
class Param:
    """A constant tensor of the model, in the layout that its op documents.

    `load()` gives float64 of `shape`; `dtype` is the type it is stored in ("float32", "bfloat16",
    ...); `name` is its native name. An edited parameter is a new object with the same name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array]

    def mapped(self, function: Callable[[Array], Array]) -> Param:
        """The parameter whose float64 value is `function` of this one's, of the same shape."""
        first = self.load if isinstance(self.load, _Mapped) else _Mapped(self.load, ())
        load = _Mapped(first.source, (*first.functions, function))
        return Param(self.name, self.shape, self.dtype, load)


@dataclass(frozen=True, eq=False, slots=True)
class _Mapped:
    """A load followed by functions, in a row rather than nested: there may be thousands."""

    source: Callable[[], Array]
    functions: tuple[Callable[[Array], Array], ...]

    def __call__(self) -> Array:
        return reduce(lambda values, function: function(values), self.functions, self.source())


@dataclass(frozen=True, eq=False, slots=True)
class Conv:
    """Convolution or, if `transposed`, its transpose (torch.nn.Conv1d..3d, ConvTranspose1d..3d).

    weight [Cout, Cin/groups, *K]; transposed [Cin, Cout/groups, *K].  bias [Cout] or None.
    Channels are on the axis before the len(K) spatial ones. `pads` are what the op cuts or adds on
    either side; `pad_mode` is "zeros", "reflect", "replicate" or "circular".
    """

    weight: Param
    bias: Param | None = None
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    pads: Pads = ()
    groups: int = 1
    pad_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight.shape[2:]

    @property
    def in_channels(self) -> int:
        return self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]


@dataclass(frozen=True, eq=False, slots=True)
class Linear:
    """y[..., o] = sum_i x[..., i] weight[o, i] + bias[o]:  weight [Cout, Cin]."""

    weight: Param
    bias: Param | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """y = scale * x + shift on one axis: every BatchNorm in inference, and Mul/Add by constants.

    `holds` says what the native node can express: a BatchNorm both, a Mul a scale, an Add a shift.
    """

    affine: ChannelAffine
    batchnorm: bool = True
    holds: Literal["both", "scale", "shift"] = "both"


@dataclass(frozen=True, eq=False, slots=True)
class Add:
    """The sum of its inputs, broadcast from the right; `signs` (+1, -1) if not all are added."""

    signs: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Concat:
    axis: int


@dataclass(frozen=True, eq=False, slots=True)
class Identity:
    """Returns its input: identity, dropout in eval, a clone, a cast to the same type."""


@dataclass(frozen=True, eq=False, slots=True)
class Pool:
    """Maximum or average over windows of the last len(kernel) axes.

    `divisor` replaces the number of elements of a window in an average, if given.
    """

    kind: Literal["max", "avg"]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pads: Pads
    dilation: tuple[int, ...] = ()
    ceil_mode: bool = False
    count_include_pad: bool = False
    divisor: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class AdaptivePool:
    """Maximum or average over whole windows, never padded, of the last len(output_size) axes."""

    kind: Literal["max", "avg"]
    output_size: tuple[Size, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Mean:
    axes: tuple[int, ...]
    keepdims: bool


@dataclass(frozen=True, eq=False, slots=True)
class Activation:
    """A positively homogeneous activation, f(s*x) = s*f(x) for s >= 0: ReLU, LeakyReLU, PReLU.

    f(x) = x where x > 0, slope * x elsewhere; `slope` is float64 of a shape that broadcasts to x.
    """

    slope: Array


@dataclass(frozen=True, eq=False, slots=True)
class Reshape:
    """A change to shape `target`: runs of input axes become runs of output axes, in order."""

    groups: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    target: Shape


@dataclass(frozen=True, eq=False, slots=True)
class Transpose:
    perm: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Opaque:
    """Anything else. `refusal` marks a BatchNorm (or an affine) that is not foldable, and why."""

    refusal: Refusal | None = None
    batchnorm: bool = False


Op = (
    Conv
    | Linear
    | Affine
    | Add
    | Concat
    | Identity
    | Pool
    | AdaptivePool
    | Mean
    | Activation
    | Reshape
    | Transpose
    | Opaque
)


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """`name` is unique and is what reports show; `kind` is the native operator's name."""

    name: str
    kind: str
    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def with_op(self, op: Op) -> Node:
        return Node(self.name, self.kind, op, self.inputs, self.outputs)

    @property
    def is_site(self) -> bool:
        """Whether reports list the node: an affine, or a BatchNorm that is not one."""
        return isinstance(self.op, Affine) or (
            isinstance(self.op, Opaque) and self.op.refusal is not None
        )

    @property
    def is_batchnorm(self) -> bool:
        return isinstance(self.op, Affine | Opaque) and self.op.batchnorm


@dataclass(frozen=True, eq=False, slots=True)
class Graph:
    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, Shape | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


class MalformedGraphError(AssertionError):
    """A graph breaks the grammar: a fault of the reader or rule that made it."""


def check(graph: Graph) -> Graph:
    """The graph itself, after proving single assignment, order, ranks and channel counts."""
    known = set(graph.inputs)
    names: set[str] = set()
    for node in graph.nodes:
        _require(node.name not in names, f"two nodes are called {node.name!r}")
        names.add(node.name)
        for value in node.inputs:
            _require(value in known, f"{node.name} reads {value!r} before it is made")
        for value in node.outputs:
            _require(value not in known, f"{node.name} makes {value!r} a second time")
            known.add(value)
        _check_sizes(graph, node)
    for value in graph.outputs:
        _require(value in known, f"the output {value!r} is never made")
    return graph


def channel_axis(op: Conv, shape: Shape | None) -> int | None:
    """The axis of a convolution's channels in a value of `shape`; None if the rank is unknown."""
    return None if shape is None else len(shape) - len(op.kernel) - 1


def reshape(source: Shape, target: Shape) -> Reshape | None:
    """The runs of axes that a reshape from `source` to `target` merges and splits; None if unclear.

    The shapes are cut wherever the products of the sizes from the left agree, and what then holds
    unknown sizes also where those from the right do. A size without even a name equals another only
    where each shape has just that one unknown, and only if every other size then fits.
    """
    lone = sum(not isinstance(size, int) for size in (*source, *target)) <= 2
    runs = _runs(source, target, lone)
    *certain, rest = runs or [(len(source), len(target))]
    i, j = len(source) - rest[0], len(target) - rest[1]
    if runs is None or None in (product(source[i:]), product(target[j:])):
        backwards = _runs(source[i:][::-1], target[j:][::-1], lone=False)
        if runs is None and backwards is None:
            return None
        runs = [*certain, *(backwards[::-1] if backwards else [rest])]
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    for m, n in runs:
        groups.append((tuple(range(i, i + m)), tuple(range(j, j + n))))
        i, j = i + m, j + n
    return Reshape(tuple(groups), target)


def _runs(source: Shape, target: Shape, lone: bool) -> list[tuple[int, int]] | None:
    """How many axes of either shape form each run, from the left; None if the shapes disagree."""
    runs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(source) and j < len(target):
        if source[i] == target[j] and (source[i] is not None or lone):
            cut: tuple[int, int] | None = (1, 1)
        else:
            cut = _shortest_equal_run(source[i:], target[j:])
        if cut is None:
            return None
        runs.append(cut)
        i, j = i + cut[0], j + cut[1]
    if i < len(source) or j < len(target):
        if not all(size == 1 for size in (*source[i:], *target[j:])):
            return None
        runs.append((len(source) - i, len(target) - j))
    return runs


def _shortest_equal_run(source: Shape, target: Shape) -> tuple[int, int] | None:
    """How many sizes from either front have the same product, as few as possible.

    An unknown size can only be matched by running to the end of both shapes.
    """
    m = n = 1
    while True:
        left, right = source[:m], target[:n]
        a, b = product(left), product(right)
        if a is None or b is None:
            return (len(source), len(target))
        if a == b:
            return m, n
        if a < b and m < len(source):
            m += 1
        elif b < a and n < len(target):
            n += 1
        else:
            return None


def product(shape: Shape) -> int | None:
    """The number of elements, or None if a size is not known."""
    known = [size for size in shape if isinstance(size, int)]
    return math.prod(known) if len(known) == len(shape) else None


def params(op: Op) -> Iterator[tuple[str, Param]]:
    """The parameters of an op with their role, `weight` or `bias`."""
    for entry in fields(op):
        value = getattr(op, entry.name)
        if isinstance(value, Param):
            yield entry.name, value


def _check_sizes(graph: Graph, node: Node) -> None:
    shapes = [graph.shapes.get(value) for value in node.inputs]
    shape = shapes[0] if shapes else None
    if not isinstance(node.op, Opaque):
        several = isinstance(node.op, Add | Concat)
        _require(len(node.outputs) == 1, f"{node.name} makes {len(node.outputs)} values, not one")
        fits = len(node.inputs) >= 1 if several else len(node.inputs) == 1
        _require(fits, f"{node.name} reads {len(node.inputs)} values")
    match node.op:
        case Conv() as op:
            _check_conv(node, op, shape)
        case Linear() as op:
            rank = len(op.weight.shape)
            _require(rank == 2, f"{node.name} has a weight of rank {rank}, not 2")
            last = None if shape is None else len(shape) - 1
            _require_channels(node, shape, last, op.weight.shape[1])
            _require_bias(node, op.bias, op.weight.shape[0])
        case Affine(affine=a):
            fits = a.scale.shape == a.shift.shape == (a.size,) and (
                a.axis is not None or a.size == 1
            )
            _require(fits, f"{node.name} has scales {a.scale.shape} and shifts {a.shift.shape}")
            _require_channels(node, shape, a.axis, a.size)
        case Concat(axis=axis):
            for each in shapes:
                _require_axes(node, (axis,), each)
        case Mean(axes=axes):
            _require_axes(node, axes, shape)
        case Pool() as op:
            _require_lengths(node, len(op.kernel), op.stride, op.pads, op.dilation or op.kernel)
        case Transpose(perm=perm):
            whole = list(range(len(perm) if shape is None else len(shape)))
            _require(sorted(perm) == whole, f"{node.name} permutes {perm} of {_shape_text(shape)}")
        case Reshape() as op:
            _check_reshape(node, op, shape)


def _check_conv(node: Node, op: Conv, shape: Shape | None) -> None:
    rank, outer = len(op.kernel), op.weight.shape[0]
    _require(rank >= 1, f"{node.name} has a weight of rank {len(op.weight.shape)}, not 3 or more")
    _require_lengths(node, rank, op.stride, op.dilation, op.pads, op.output_padding or (0,) * rank)
    _require(outer % op.groups == 0, f"{node.name} has {outer} rows for {op.groups} groups")
    modes = ("zeros",) if op.transposed else ("zeros", "reflect", "replicate", "circular")
    _require(op.pad_mode in modes, f"{node.name} has the pad mode {op.pad_mode!r}")
    if shape is not None:
        fits = len(shape) - rank in (1, 2)
        _require(fits, f"{node.name} has {rank} spatial axes on shape {_shape_text(shape)}")
    _require_channels(node, shape, channel_axis(op, shape), op.in_channels)
    _require_bias(node, op.bias, op.out_channels)


def _check_reshape(node: Node, op: Reshape, shape: Shape | None) -> None:
    before = [i for run, _ in op.groups for i in run]
    after = [j for _, run in op.groups for j in run]
    rank = len(before) if shape is None else len(shape)
    fits = before == list(range(rank)) and after == list(range(len(op.target)))
    _require(fits, f"{node.name} has runs that are not the axes of both shapes in order")
    if shape is None:
        return
    for merged, split in op.groups:
        a, b = product(tuple(shape[i] for i in merged)), product(tuple(op.target[j] for j in split))
        fits = a is None or b is None or a == b
        _require(fits, f"{node.name} turns {a} elements of {_shape_text(shape)} into {b}")


def _require_channels(node: Node, shape: Shape | None, axis: int | None, size: int) -> None:
    if axis is None:
        return
    _require_axes(node, (axis,), shape)
    fits = shape is None or not isinstance(shape[axis], int) or shape[axis] == size
    _require(fits, f"{node.name} wants {size} channels on axis {axis} of {_shape_text(shape)}")


def _require_axes(node: Node, axes: tuple[int, ...], shape: Shape | None) -> None:
    """Axes count from the left: one below zero would be taken for another axis than it is."""
    for axis in axes:
        fits = axis >= 0 and (shape is None or axis < len(shape))
        _require(fits, f"{node.name} has axis {axis} on shape {_shape_text(shape)}")


def _require_lengths(node: Node, rank: int, *lists: tuple[object, ...]) -> None:
    for what in lists:
        _require(len(what) == rank, f"{node.name} has {len(what)} entries for rank {rank}")


def _require_bias(node: Node, bias: Param | None, size: int) -> None:
    _require(bias is None or bias.shape == (size,), f"{node.name} has a bias that is not [{size}]")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MalformedGraphError(message)


def _lines(graph: Graph) -> Iterator[str]:
    yield f"inputs {', '.join(graph.inputs)}"
    for node in graph.nodes:
        details = " ".join(f"{role}{list(p.shape)}" for role, p in params(node.op))
        made = ", ".join(f"{v}{_shape_text(graph.shapes.get(v))}" for v in node.outputs)
        op = type(node.op).__name__
        yield f"  {made} = {op}({', '.join(node.inputs)}) {details}".rstrip() + f"  # {node.name}"
    yield f"outputs {', '.join(graph.outputs)}"


def _shape_text(shape: Shape | None) -> str:
    return "[?]" if shape is None else f"[{'x'.join('?' if s is None else str(s) for s in shape)}]"
