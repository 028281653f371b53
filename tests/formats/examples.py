"""The networks that the tests of the module form and of the graph form go through.

For each: which sites fold in the module form, and in the graph form. A site is a BatchNorm or
another affine, by the name that reports show; what is not listed is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from bnfold.runtimes import Sample
from tests.formats.networks import (
    Basic,
    BatchNormAct2d,
    DoubledBatchNorm,
    FrozenBatchNorm2d,
    Function,
    InvertedResidual,
    Normalise,
    Scale,
    StandardisedConv,
    UnbiasedConv,
    noise,
    trained,
)


@dataclass(frozen=True, eq=False)
class Example:
    """`graph` is None where the graph form folds what the module form folds."""

    name: str
    build: Callable[[], nn.Module]
    module: tuple[str, ...]
    graph: tuple[str, ...] | None = None
    shape: tuple[int, ...] = (2, 3, 9, 7)
    dtype: str = "float32"

    def make(self) -> nn.Module:
        return trained(self.build())

    def sample(self, name: str) -> Sample:
        return {name: noise(*self.shape, dtype=self.dtype)}


def conv(inputs: int = 3, outputs: int = 6, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)  # type: ignore[arg-type]


def norm(channels: int = 6, **options: object) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)  # type: ignore[arg-type]


def tied() -> nn.Module:
    """Two convolutions with one Parameter."""
    net = nn.Sequential(conv(3, 3, bias=False), norm(3), nn.ReLU(), conv(3, 3, bias=False))
    net[3].weight = net[0].weight
    return net


def hooked(net: nn.Module, path: str) -> nn.Module:
    net.get_submodule(path).register_forward_hook(lambda *seen: None)
    return net


def two_names() -> nn.Module:
    """One Sequential, and one BatchNorm in it, each registered twice."""
    net = Function(lambda m, x: m.layers(x), layers=nn.Sequential(conv(), norm()))
    net.also = net.layers
    net.alias = net.layers[1]
    return net


def one_norm_twice() -> nn.Module:
    """One BatchNorm under two names, called by both."""
    shared = norm(3)
    return Function(
        lambda m, x: m.second(m.c(m.first(m.d(x)))),
        first=shared,
        second=shared,
        c=conv(3, 3),
        d=conv(3, 3),
    )


def parameter_called_mul() -> nn.Module:
    """A weight that is computed, by a node of the same name as a parameter."""
    net = Function(lambda m, x: m.b(F.conv2d(x, m.w * m.mul)), b=norm())
    net.w, net.mul = (nn.Parameter(torch.randn(6, 3, 3, 3)) for _ in range(2))
    return net


def transposed(rank: int) -> Callable[[], nn.Module]:
    layer = getattr(nn, f"ConvTranspose{rank}d")
    options = {"stride": 2, "groups": 2, "padding": 1, "output_padding": 1}
    return lambda: nn.Sequential(layer(4, 6, 3, **options), getattr(nn, f"BatchNorm{rank}d")(6))


def halved(dtype: torch.dtype) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(conv(padding=1), norm(), nn.ReLU(), conv(6, 4)).to(dtype)


def product(bias: bool, channels: int = 6) -> nn.Module:
    """A layer as a product with a matrix [Cin, Cout], and its BatchNorm."""
    net = Function(
        lambda m, x: m.b(torch.addmm(m.bias, x, m.w) if bias else x @ m.w),
        b=nn.BatchNorm1d(channels),
    )
    net.w, net.bias = nn.Parameter(torch.randn(5, channels)), nn.Parameter(torch.randn(channels))
    return net


class ProductLinear(nn.Linear):
    """Has the tensors of a Linear, and a forward of its own."""

    def __init__(self) -> None:
        super().__init__(5, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def attention(run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> nn.Module:
    """BatchNorm behind attention: `run` gets queries and values [N, C, L]."""
    return Function(
        lambda m, x: m.b(run(m.q(x).flatten(2), m.v(x).flatten(2))),
        q=conv(kernel=1),
        v=conv(kernel=1),
        b=nn.BatchNorm1d(6),
    )


def weights(q: torch.Tensor) -> torch.Tensor:
    """[N, L, L], of which the last axis sums to one."""
    return F.dropout(F.softmax(q.transpose(1, 2) @ q * 0.3, dim=-1), 0.5, training=False)


def pair(first: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(first, second)


EXAMPLES = [
    Example("basic block", Basic, ("bn1", "bn2", "down.1"), shape=(2, 4, 9, 7)),
    Example(
        "inverted residual",
        InvertedResidual,
        ("conv.0.1", "conv.1.1", "conv.3"),
        shape=(2, 4, 9, 7),
    ),
    Example("SyncBatchNorm", lambda: pair(conv(), nn.SyncBatchNorm(6)), ("1",)),
    Example(
        "BatchNorm with its activation inside",
        lambda: nn.Sequential(conv(), BatchNormAct2d(6), conv(6, 4)),
        (),
        ("1",),
    ),
    Example(
        "FrozenBatchNorm2d",
        lambda: nn.Sequential(conv(), FrozenBatchNorm2d(6), nn.ReLU(), conv(6, 4)),
        ("1", "1#2"),
    ),
    Example("LayerScale", lambda: pair(conv(), Scale(6)), ("1",)),
    Example("input normalisation", lambda: pair(Normalise(), conv()), ("0", "0#2")),
    Example(
        "input normalisation before padding",
        lambda: pair(Normalise(), conv(padding=1)),
        (),
        ("0#2",),
    ),
    Example(
        "F.batch_norm",
        lambda: Function(
            lambda m, x: F.batch_norm(
                m.c(x), m.b.running_mean, m.b.running_var, m.b.weight, m.b.bias
            ),
            c=conv(),
            b=norm(),
        ),
        (),
        ("batch_norm",),
    ),
    Example(
        "conv called twice",
        lambda: Function(lambda m, x: m.b(m.c(m.c(x))), c=conv(3, 3), b=norm(3)),
        (),
        ("b",),
    ),
    Example(
        "conv called twice, a BatchNorm each",
        lambda: Function(
            lambda m, x: m.b2(m.c(m.b1(m.c(x)))), c=conv(3, 3), b1=norm(3), b2=norm(3)
        ),
        (),
        ("b1", "b2"),
    ),
    Example("one Parameter in two convs", tied, ("1",)),
    Example(
        "conv read by two BatchNorms",
        lambda: Function(lambda m, x: m.a(y := m.c(x)) + m.b(y), c=conv(), a=norm(), b=norm()),
        (),
        ("a",),
    ),
    Example(
        "BatchNorm called twice",
        lambda: Function(
            lambda m, x: m.b(m.d(m.b(m.c(x)).relu())), c=conv(3, 3), d=conv(3, 3), b=norm(3)
        ),
        ("b", "b#2"),
    ),
    Example(
        "BatchNorm called twice, once after a ReLU",
        lambda: Function(lambda m, x: m.b(m.b(m.c(x)).relu()), c=conv(3, 3), b=norm(3)),
        (),
        ("b",),
    ),
    Example("BatchNorm under two names", one_norm_twice, ("first", "second")),
    Example("module under two names", two_names, ("layers.1",)),
    Example("hook on the conv", lambda: hooked(pair(conv(), norm()), "0"), (), ("1",)),
    Example("hook on the BatchNorm", lambda: hooked(pair(conv(), norm()), "1"), (), ("1",)),
    Example(
        "hook on a module around the conv alone",
        lambda: hooked(pair(nn.Sequential(conv()), norm()), "0"),
        (),
        ("1",),
    ),
    Example(
        "hook on a module that a fold goes through",
        lambda: hooked(nn.Sequential(conv(), nn.AvgPool2d(2), norm()), "1"),
        (),
        ("2",),
    ),
    Example(
        "hook on a module around conv and BatchNorm",
        lambda: hooked(pair(pair(conv(), norm()), nn.ReLU()), "0"),
        ("0.1",),
    ),
    Example("weight_norm", lambda: pair(parametrizations.weight_norm(conv()), norm()), ("1",)),
    Example("spectral_norm", lambda: pair(parametrizations.spectral_norm(conv()), norm()), ("1",)),
    Example("weight_norm, old", lambda: pair(weight_norm(conv()), norm()), ("1",)),
    Example("spectral_norm, old", lambda: pair(spectral_norm(conv()), norm()), ("1",)),
    Example("conv without bias", lambda: pair(conv(bias=False), norm()), ("1",)),
    Example("BatchNorm before conv", lambda: pair(norm(3), conv()), ("0",)),
    Example("BatchNorm before padded conv", lambda: pair(norm(3), conv(padding=1)), ()),
    Example(
        "BatchNorm before linear, through flatten",
        lambda: nn.Sequential(norm(3), nn.Flatten(), nn.Linear(189, 5)),
        ("0",),
    ),
    Example(
        "linear [N, C]", lambda: pair(nn.Linear(5, 6), nn.BatchNorm1d(6)), ("1",), shape=(4, 5)
    ),
    Example(
        "linear [N, L, C], L = C",
        lambda: pair(nn.Linear(5, 6), nn.BatchNorm1d(6)),
        (),
        shape=(4, 6, 5),
    ),
    Example(
        "conv1d in groups",
        lambda: pair(nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)),
        ("1",),
        shape=(2, 4, 9),
    ),
    Example(
        "conv3d in groups",
        lambda: pair(nn.Conv3d(4, 6, 3, groups=2, padding=1), nn.BatchNorm3d(6)),
        ("1",),
        shape=(2, 4, 5, 6, 3),
    ),
    Example("conv_transpose1d in groups", transposed(1), ("1",), shape=(2, 4, 9)),
    Example("conv_transpose2d in groups", transposed(2), ("1",), shape=(2, 4, 5, 7)),
    Example("conv_transpose3d in groups", transposed(3), ("1",), shape=(2, 4, 3, 5, 2)),
    Example(
        "BatchNorm before conv_transpose",
        lambda: pair(norm(4), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)),
        (),
        shape=(2, 4, 5, 7),
    ),
    Example("BatchNorm without affine", lambda: pair(conv(), norm(affine=False)), ("1",)),
    Example(
        "BatchNorm into a BatchNorm without affine",
        lambda: nn.Sequential(norm(3, affine=False), norm(3), nn.ReLU()),
        ("1",),
    ),
    Example(
        "BatchNorm with the statistics of the batch",
        lambda: pair(conv(), norm(track_running_stats=False)),
        (),
    ),
    Example("no BatchNorm", lambda: pair(conv(), nn.ReLU()), ()),
    Example("GELU between", lambda: nn.Sequential(conv(), nn.GELU(), norm()), ()),
    Example(
        "difference of two convs",
        lambda: Function(lambda m, x: m.b(m.c(x) - m.d(x.relu())), c=conv(), d=conv(), b=norm()),
        ("b",),
    ),
    Example(
        "one less a conv",
        lambda: Function(lambda m, x: m.b(1 - m.c(x)), c=conv(), b=norm()),
        (),
        ("rsub", "b"),
    ),
    Example(
        "sign changed",
        lambda: Function(lambda m, x: m.b(-m.c(x)), c=conv(), b=norm()),
        (),
        ("neg", "b"),
    ),
    Example("layer as a product", lambda: product(bias=False), (), ("b",), shape=(4, 5)),
    Example("layer as a product with bias", lambda: product(bias=True), (), ("b",), shape=(4, 5)),
    Example(
        "BatchNorm before a layer as a product",
        lambda: pair(nn.BatchNorm1d(5), ProductLinear()),
        (),
        ("0",),
        shape=(4, 5),
    ),
    Example(
        "attention, weights on the left",
        lambda: attention(lambda q, v: (weights(q) @ v.transpose(1, 2)).transpose(1, 2)),
        ("b",),
    ),
    Example(
        "attention, weights on the right",
        lambda: attention(lambda q, v: v @ weights(q).transpose(-2, -1)),
        ("b",),
    ),
    Example(
        "attention in one operator",
        lambda: attention(
            lambda q, v: F.scaled_dot_product_attention(
                q.transpose(1, 2), q.transpose(1, 2), v.transpose(1, 2)
            ).transpose(1, 2)
        ),
        ("b",),
    ),
    Example(
        "queries, keys and values made as one",
        lambda: Function(
            lambda m, x: (
                F.softmax((parts := m.c(x).reshape(-1, 3, 2, 3, 35).unbind(1))[0].mT @ parts[1], -1)
                @ (parts[2].mT * 0.5)
            ),
            c=conv(3, 18),
        ),
        (),
        ("mul",),
    ),
    Example(
        "attention whose weights are averaged over the wrong axis",
        lambda: attention(lambda q, v: v @ weights(q)),
        (),
    ),
    Example(
        "attention with a mask that is computed",
        lambda: attention(
            lambda q, v: F.scaled_dot_product_attention(
                *(a.transpose(1, 2) for a in (q, q, v)), attn_mask=q.transpose(1, 2) @ q > 0
            ).transpose(1, 2)
        ),
        (),
    ),
    Example(
        "channels shuffled and divided",
        lambda: Function(
            lambda m, x: m.d(torch.cat(F.channel_shuffle(m.b(m.c(x)), 3).chunk(2, 1)[::-1], 1)),
            c=conv(),
            b=norm(),
            d=conv(6, 4),
        ),
        ("b",),
    ),
    Example(
        "BatchNorm before channels are shuffled and divided",
        lambda: Function(
            lambda m, x: m.d(torch.cat(F.channel_shuffle(m.b(x.relu()), 3).chunk(2, 1)[::-1], 1)),
            b=norm(),
            d=conv(6, 4),
        ),
        ("b",),
        shape=(2, 6, 9, 7),
    ),
    Example(
        "numbers multiplied and added",
        lambda: Function(lambda m, x: m.b(m.c(x) * 0.5 + 1), c=conv(), b=norm()),
        (),
        ("mul", "add", "b"),
    ),
    Example("float16", halved(torch.float16), ("1",), dtype="float16"),
    Example("bfloat16", halved(torch.bfloat16), ("1",), dtype="bfloat16"),
    Example("float64", halved(torch.float64), ("1",), dtype="float64"),
    Example(
        "bfloat16 conv, float32 BatchNorm",
        lambda: pair(conv().bfloat16(), norm()),
        ("1",),
        dtype="bfloat16",
    ),
    Example(
        "bfloat16 conv, cast, float32 BatchNorm",
        lambda: Function(lambda m, x: m.b(m.c(x).float()), c=conv().bfloat16(), b=norm()),
        (),
        dtype="bfloat16",
    ),
    Example(
        "weight also read in another shape",
        lambda: Function(
            lambda m, x: m.b(m.c(x)) + F.conv2d(x, m.c.weight.flip(2)), c=conv(bias=False), b=norm()
        ),
        (),
        ("b",),
    ),
    Example(
        "weight also read by the model itself",
        lambda: Function(
            lambda m, x: m.b(m.c(x)) + F.conv2d(x, m.c.weight), c=conv(bias=False), b=norm()
        ),
        (),
        ("b",),
    ),
    Example(
        "gamma also read by the model itself",
        lambda: Function(lambda m, x: m.b(m.c(x)) * m.b.weight.abs().max(), c=conv(), b=norm()),
        (),
        ("b", "mul"),
    ),
    Example(
        "computed weight named like a parameter",
        parameter_called_mul,
        (),
        ("b",),
    ),
    Example(
        "value also read as a Python number",
        lambda: Function(
            lambda m, x: m.b(y := m.c(x).mean((2, 3), keepdim=True)) + y.sum().item() * 0.5,
            c=conv(bias=False),
            b=norm(),
        ),
        (),
    ),
    Example(
        "conv whose forward passes no bias",
        lambda: pair(UnbiasedConv(3, 6, 3, bias=False), norm()),
        (),
        ("1",),
    ),
    Example(
        "conv that standardises its weight", lambda: pair(StandardisedConv(), norm()), (), ("1",)
    ),
    Example(
        "BatchNorm with twice its weight, asked to take another",
        lambda: nn.Sequential(DoubledBatchNorm(3), norm(3), nn.ReLU()),
        (),
        ("1",),
    ),
    Example("InstanceNorm", lambda: pair(conv(), nn.InstanceNorm2d(6, affine=True)), ()),
    Example(
        "InstanceNorm with running statistics",
        lambda: pair(conv(), nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
        ("1",),
    ),
    Example(
        "complex numbers after it",
        lambda: Function(lambda m, x: torch.fft.rfft2(m.b(m.c(x))).abs(), c=conv(), b=norm()),
        ("b",),
    ),
    Example(
        "nested containers",
        lambda: nn.Sequential(nn.Sequential(conv(), nn.Sequential(norm())), nn.Sequential()),
        ("0.1.0",),
    ),
]
