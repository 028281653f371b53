"""The neutral dataflow graph: what the algebra needs to know of a model, and nothing else.

    graph   ::=  inputs node* outputs          single assignment, topological order
    node    ::=  name: outputs = op(inputs)    a value is named by a string
    op      ::=  Conv | Linear | Affine | Embedding | Norm   hold parameters, absorb affines
              |  Recurrent
              |  Add | Concat | Identity                     pass affines on
              |  Pool | AdaptivePool | Mean | Activation     pass affines on under conditions
              |  Pad | Resize | WeightedMean | Multiply | MatMul
              |  Reshape | Transpose | Take | PixelShuffle   move or divide the channel axis
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
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import Any, Literal, cast

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.refusal import Refusal

Size = int | str | None
Shape = tuple[Size, ...]
Pads = tuple[tuple[int, int], ...]  # (begin, end) of every spatial dimension
Groups = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # input axes -> output axes
Part = tuple[int, ...] | None  # indices of an axis; None where it is not known which


MOST_NESTED = 32
"""How many parameters may wait for one another to be computed."""


@dataclass(frozen=True, eq=False, slots=True)
class Param:
    """A constant tensor of the model, in the layout that its op documents.

    `load()` gives float64 of `shape`; `dtype` is the type it is stored in ("float32", "bfloat16",
    ...); `name` is its native name. An edited parameter is a new object with the same name. `depth`
    says how many parameters are computed from one another until it is loaded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array]
    depth: int = 0

    def mapped(self, function: Callable[[Array], Array]) -> Param:
        """The parameter whose float64 value is `function` of this one's, of the same shape."""
        first = self.load if isinstance(self.load, _Mapped) else _Mapped(self.load, ())
        load = _Mapped(first.source, (*first.functions, function))
        return Param(self.name, self.shape, self.dtype, load, self.depth)

    @staticmethod
    def of(
        name: str, shape: tuple[int, ...], like: Param, load: Callable[[], Array], *read: Param
    ) -> Param:
        """A parameter in the type of `like`, computed from those that `load` reads.

        At once, where they would nest deeper than a stack is: there may be thousands in a row.
        """
        depth = 1 + max((each.depth for each in read), default=0)
        if depth <= MOST_NESTED:
            return Param(name, shape, like.dtype, load, depth)
        values = load()
        return Param(name, shape, like.dtype, lambda: values)


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
class Embedding:
    """y[..., c] = weight[x[...], c]:  weight [count, C], x whole numbers."""

    weight: Param


@dataclass(frozen=True, eq=False, slots=True)
class Recurrent:
    """What its gates add of the sequence x that it reads first: x[..., i] weight[r, i] + bias[r].

    weight [rows, Cin] and bias [rows] are those of the first layer, of all that reads x, or of one
    direction; `reverse_weight` and `reverse_bias` are then those of the other. It reads states and
    lengths besides, and cannot be evaluated.
    """

    weight: Param
    bias: Param | None = None
    reverse_weight: Param | None = None
    reverse_bias: Param | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Norm:
    """weight * f(x) + bias along `axis`, [C] each: LayerNorm, GroupNorm, InstanceNorm, RMSNorm.

    f(x) = (x - mean) / sqrt(var + eps), of the data: over `axis`, the last one, where there are no
    `groups`; else over the axes behind `axis`, which is 1, and each group of channels. If it is not
    `centred`, x / sqrt(mean(x^2) + eps).
    """

    weight: Param
    bias: Param | None
    axis: int
    eps: float
    groups: int = 0
    centred: bool = True


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
    """The sum of its inputs, broadcast from the right, each times its one of `factors` if given.

    A difference has the factors 1 and -1, torch.add(x, y, alpha=2) has 1 and 2; none is 0.
    """

    factors: tuple[float, ...] = ()


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
    """Maximum, minimum or average of the last len(output_size) axes, over windows without pads."""

    kind: Literal["max", "min", "avg"]
    output_size: tuple[Size, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Mean:
    """The mean over `axes`, or the sum if it is a `total`."""

    axes: tuple[int, ...]
    keepdims: bool
    total: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Activation:
    """A positively homogeneous activation, f(s*x) = s*f(x) for s >= 0: ReLU, LeakyReLU, PReLU.

    f(x) = x where x > 0, slope * x elsewhere; `slope` is float64 of a shape that broadcasts to x.
    """

    slope: Array


@dataclass(frozen=True, eq=False, slots=True)
class Take:
    """Output i holds the indices `parts[i]` of one axis: split, chunk, slice, gather.

    It takes them from its first input; another one is a computed index. What is taken can be left
    open, and then not be evaluated: a slice of an axis whose size is not known. `alone` says that
    it is all that its native operator does.
    """

    axis: int
    parts: tuple[Part, ...]
    alone: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class Pad:
    """Adds `pads` (begin, end) to every axis; `mode` is "constant", or one that repeats the data.

    The other modes are "reflect", "replicate" and "circular". A negative pad crops.
    """

    pads: Pads
    mode: str = "constant"
    value: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Resize:
    """Nearest, linear or cubic interpolation of the last `spatial` axes: weights that sum to one.

    `factors` are given for whole-number nearest enlargement, which is all that can be evaluated.
    """

    spatial: int
    factors: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class WeightedMean:
    """A mean of the values with computed weights that sum to one: softmax(q k^T) @ v.

    Reads (weights, values), weights @ values over the axis before the last; `port` says which input
    is the values. With `axis` -1, values @ weights: over the last axis, the weights of each column
    summing to one. An attention that is one operator reads (q, k, v, ...); it cannot be evaluated.
    """

    port: int = 1
    axis: Literal[-2, -1] = -2


@dataclass(frozen=True, eq=False, slots=True)
class Multiply:
    """The elementwise product of its two inputs, both computed, broadcast from the right."""


@dataclass(frozen=True, eq=False, slots=True)
class MatMul:
    """The matrix product of its two inputs, both computed: [..., M, K] @ [..., K, N].

    Leading axes are broadcast from the right; both inputs have at least two axes.
    """


@dataclass(frozen=True, eq=False, slots=True)
class PixelShuffle:
    """Moves channels into space (torch.nn.PixelShuffle), or back if `inverse` (PixelUnshuffle).

    The channels lie on the axis before the last two, of which each grows `factor` times. Of the
    C * factor^2 channels, a pixel's own are next to each other (torch; ONNX DepthToSpace "CRD"),
    or C apart if `strided` ("DCR", and ONNX SpaceToDepth for the inverse).
    """

    factor: int
    inverse: bool = False
    strided: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Reshape:
    """A change to shape `target`: runs of input axes become runs of output axes, in order."""

    groups: Groups
    target: Shape


@dataclass(frozen=True, eq=False, slots=True)
class Transpose:
    """Axis i of the result is axis perm[i]; `alone` says the same as that of Take."""

    perm: tuple[int, ...]
    alone: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class Opaque:
    """Anything else. `refusal` marks a BatchNorm (or an affine) that is not foldable, and why.

    `barrier` is what affines that come to it are told, where more is known than that nothing is.
    """

    refusal: Refusal | None = None
    batchnorm: bool = False
    barrier: Refusal | None = None


Op = (
    Conv
    | Linear
    | Embedding
    | Norm
    | Recurrent
    | Affine
    | Add
    | Concat
    | Identity
    | Pool
    | AdaptivePool
    | Mean
    | Activation
    | Take
    | Pad
    | Resize
    | WeightedMean
    | Multiply
    | MatMul
    | PixelShuffle
    | Reshape
    | Transpose
    | Opaque
)


Layer = Conv | Linear | Embedding | Norm | Recurrent
"""What holds parameters that are written as weight and bias."""


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


def channel_axis(op: Conv, shape: Shape | None) -> int | None:
    """The axis of a convolution's channels in a value of `shape`; None if the rank is unknown."""
    return None if shape is None else len(shape) - len(op.kernel) - 1


def factors_of(node: Node) -> tuple[float, ...]:
    """What each operand of a sum is multiplied by."""
    assert isinstance(node.op, Add)
    return node.op.factors or (1.0,) * len(node.inputs)


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


def with_params(op: Op, new: Mapping[str, Param]) -> Op:
    """The op with other parameters, by role."""
    changed: Any = op
    return cast("Op", replace(changed, **new))


def _lines(graph: Graph) -> Iterator[str]:
    yield f"inputs {', '.join(graph.inputs)}"
    for node in graph.nodes:
        details = " ".join(f"{role}{list(p.shape)}" for role, p in params(node.op))
        made = ", ".join(f"{v}{shape_text(graph.shapes.get(v))}" for v in node.outputs)
        op = type(node.op).__name__
        yield f"  {made} = {op}({', '.join(node.inputs)}) {details}".rstrip() + f"  # {node.name}"
    yield f"outputs {', '.join(graph.outputs)}"


def shape_text(shape: Shape | None) -> str:
    return "[?]" if shape is None else f"[{'x'.join('?' if s is None else str(s) for s in shape)}]"
