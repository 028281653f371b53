"""The ops of the parity test: each between a convolution and a BatchNorm, and what is to become.

An op works on y [2, 8, 7, 5] and gives a result of `channels` on axis 1. Whether the BatchNorm
behind it folds is the same in every form; EXCEPTIONS has the forms in which it is not, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Run = Callable[[Tensor], Tensor]

EIGHT = torch.linspace(-1.0, 2.0, 8)
FIVE = torch.linspace(0.5, 1.5, 5)
MATRIX = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
TABLES = [torch.randn(3, 8, generator=torch.Generator().manual_seed(2 + i)) for i in range(2)]
GATES = [
    torch.randn(*size, generator=torch.Generator().manual_seed(len(size))) * 0.4
    for size in ((32, 8), (32, 8), (32,), (32,))
]
IMAGE = torch.randn(8, 7, 5, generator=torch.Generator().manual_seed(1))
ORDER = torch.tensor([3, 1, 0, 2, 4, 5, 6, 7])


def lstm(y: Tensor) -> Tensor:
    """An LSTM over the pixels, with constant weights."""
    states = torch.zeros(1, 2, 8)
    pixels = last(y).flatten(1, 2)
    made = torch._VF.lstm(pixels, [states, states], GATES, True, 1, 0.0, False, False, True)
    return back(made[0].unflatten(1, (7, 5)))


class Op(NamedTuple):
    """`shifts` is whether the BatchNorm does: one that only scales passes more."""

    run: Run
    channels: int = 8
    folds: bool = True
    shifts: bool = True


def kept(run: Run, channels: int = 8, shifts: bool = True) -> Op:
    return Op(run, channels, folds=False, shifts=shifts)


def channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def last(y: Tensor) -> Tensor:
    return y.permute(0, 2, 3, 1)


def back(y: Tensor) -> Tensor:
    return y.permute(0, 3, 1, 2)


OPS: dict[str, Op] = {
    # identity and types
    "identity": Op(lambda y: y),
    "clone": Op(lambda y: y.clone()),
    "contiguous": Op(lambda y: y.contiguous()),
    "detach": Op(lambda y: y.detach()),
    "dropout": Op(lambda y: F.dropout(y, 0.5, training=False)),
    "dropout2d": Op(lambda y: F.dropout2d(y, 0.5, training=False)),
    "same type": Op(lambda y: y.float()),
    "to half and back": kept(lambda y: y.half().float()),
    "to double and back": kept(lambda y: y.double().float()),
    # arithmetic
    "add number": Op(lambda y: y + 1.5),
    "add to number": Op(lambda y: 1.5 + y),
    "add channels": Op(lambda y: y + channel(EIGHT)),
    "add columns": kept(lambda y: y + FIVE),
    "add image": kept(lambda y: y + IMAGE),
    "add with alpha": Op(lambda y: torch.add(y, channel(EIGHT), alpha=2)),
    "sub number": Op(lambda y: y - 1.5),
    "sub from number": Op(lambda y: 1.5 - y),
    "sub channels": Op(lambda y: y - channel(EIGHT)),
    "sub from channels": Op(lambda y: channel(EIGHT) - y),
    "rsub": Op(lambda y: torch.rsub(y, 1.5)),
    "mul number": Op(lambda y: y * 1.5),
    "mul channels": Op(lambda y: y * channel(EIGHT)),
    "channels mul": Op(lambda y: channel(EIGHT) * y),
    "mul columns": kept(lambda y: y * FIVE),
    "mul image": kept(lambda y: y * IMAGE),
    "mul batch of one": Op(lambda y: y * EIGHT.view(1, 8, 1, 1)),
    "div number": Op(lambda y: y / 1.5),
    "div channels": Op(lambda y: y / channel(EIGHT + 3)),
    "div by zero": kept(lambda y: y / channel(EIGHT * torch.arange(8))),
    "number div": kept(lambda y: 1.5 / (y + 9)),
    "neg": Op(lambda y: -y),
    "add twice": Op(lambda y: (y + 1) + channel(EIGHT)),
    "mul and add": Op(lambda y: y * channel(EIGHT) + 1),
    "add and mul": Op(lambda y: (y + channel(EIGHT)) * 3),
    "addcmul of constants": Op(lambda y: torch.addcmul(y, channel(EIGHT), torch.ones(1), value=2)),
    "square": kept(lambda y: y.square()),
    "sqrt": kept(lambda y: (y * y + 1).sqrt()),
    "exp": kept(lambda y: y.exp()),
    "cumsum": kept(lambda y: y.cumsum(2)),
    "scale of cumsum": kept(lambda y: y.cumsum(2), shifts=False),
    "scale of padding": Op(lambda y: F.pad(y, (1, 1, 1, 1)), shifts=False),
    "scale of padded windows": Op(lambda y: F.avg_pool2d(y, 3, 1, 1), shifts=False),
    "maximum": kept(lambda y: torch.maximum(y, y * 0.5)),
    "where": kept(lambda y: torch.where(y > 0, y, y * 0.1)),
    "clamp at 6": kept(lambda y: y.clamp(0, 6)),
    "sum of two": Op(lambda y: y + y.detach() * 0 + 1),
    # activations: gammas of both signs do not pass
    "relu": kept(lambda y: y.relu()),
    "relu6": kept(lambda y: F.relu6(y)),
    "leaky relu": kept(lambda y: F.leaky_relu(y, 0.2)),
    "abs": kept(lambda y: y.abs()),
    "threshold": kept(lambda y: F.threshold(y, 0.0, 0.0)),
    "sigmoid": kept(lambda y: y.sigmoid()),
    "tanh": kept(lambda y: y.tanh()),
    "gelu": kept(lambda y: F.gelu(y)),
    "silu": kept(lambda y: F.silu(y)),
    "hardswish": kept(lambda y: F.hardswish(y)),
    "elu": kept(lambda y: F.elu(y)),
    "softplus": kept(lambda y: F.softplus(y)),
    "softmax": kept(lambda y: y.softmax(1)),
    "log softmax": kept(lambda y: y.log_softmax(1)),
    # pooling and reductions
    "max pool": kept(lambda y: F.max_pool2d(y, 2)),
    "avg pool": Op(lambda y: F.avg_pool2d(y, 2)),
    "avg pool with stride": Op(lambda y: F.avg_pool2d(y, 3, 2)),
    "avg pool not counting": Op(lambda y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False)),
    "avg pool padded": kept(lambda y: F.avg_pool2d(y, 3, 1, 1)),
    "avg pool with ceil": Op(lambda y: F.avg_pool2d(y, 2, ceil_mode=True)),
    "adaptive avg pool": Op(lambda y: F.adaptive_avg_pool2d(y, 1)),
    "adaptive max pool": kept(lambda y: F.adaptive_max_pool2d(y, 1)),
    "lp pool": kept(lambda y: F.lp_pool2d(y, 2, 2)),
    "mean": Op(lambda y: y.mean((2, 3), keepdim=True)),
    "mean without axes": Op(lambda y: y.mean((2, 3))),
    "mean of rows": Op(lambda y: y.mean(2)),
    "mean of the batch": Op(lambda y: y.mean(0, keepdim=True)),
    "mean of channels": kept(lambda y: y.mean(1, keepdim=True).expand(-1, 8, -1, -1)),
    "sum": Op(lambda y: y.sum((2, 3), keepdim=True)),
    "sum without axes": Op(lambda y: y.sum((2, 3))),
    "sum of columns": Op(lambda y: y.sum(-1)),
    "sum of channels": kept(lambda y: y.sum(1, keepdim=True).expand(-1, 8, -1, -1)),
    "amax": kept(lambda y: y.amax((2, 3), keepdim=True)),
    "amax of rows": kept(lambda y: y.amax(2)),
    "max of an axis": kept(lambda y: y.max(3, keepdim=True)[0]),
    "amin": kept(lambda y: y.amin((2, 3), keepdim=True)),
    "logsumexp": kept(lambda y: y.logsumexp(2)),
    "norm": kept(lambda y: y.norm(dim=2)),
    "prod": kept(lambda y: y.prod(2)),
    "var": kept(lambda y: y.var(2)),
    # shape
    "flatten": kept(lambda y: y.flatten(1), 280),
    "flatten pixels": Op(lambda y: y.flatten(2)),
    "reshape pixels": Op(lambda y: y.reshape(2, 8, 35)),
    "view pixels": Op(lambda y: y.contiguous().view(2, 8, -1)),
    "reshape and back": Op(lambda y: y.reshape(2, 8, 35).reshape(2, 8, 7, 5)),
    "reshape into groups": Op(lambda y: y.reshape(2, 2, 4, 7, 5).flatten(1, 2)),
    "unflatten": Op(lambda y: y.unflatten(1, (2, 4)).flatten(1, 2)),
    "unflatten columns": Op(lambda y: y.unflatten(3, (5, 1))),
    "squeeze": Op(lambda y: y.mean(2, keepdim=True).squeeze(2)),
    "squeeze all": Op(lambda y: y.mean((2, 3), keepdim=True).squeeze()),
    "unsqueeze": Op(lambda y: y.unsqueeze(2).squeeze(2)),
    "unsqueeze last": Op(lambda y: y.unsqueeze(-1)),
    "permute and back": Op(lambda y: y.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    "transpose pixels": Op(lambda y: y.transpose(2, 3)),
    "transpose channels": kept(lambda y: y.transpose(1, 2), 7),
    "swapaxes": Op(lambda y: y.swapaxes(2, 3)),
    "swapdims": Op(lambda y: y.swapdims(-1, -2)),
    "movedim": Op(lambda y: y.movedim(1, -1).movedim(-1, 1)),
    "moveaxis": Op(lambda y: torch.moveaxis(y, (2, 3), (3, 2))),
    "mT": Op(lambda y: y.mT),
    "ravel": Op(lambda y: y.mean((2, 3)).ravel().view(2, 8)),
    "view as": Op(lambda y: y.reshape(2, 8, 35).view_as(y)),
    "reshape as": Op(lambda y: y.flatten(2).reshape_as(y)),
    "pixel shuffle": Op(lambda y: F.pixel_shuffle(y, 2), 2),
    "pixel unshuffle": kept(lambda y: F.pixel_unshuffle(y[..., :6, :4], 2), 32),
    "channel shuffle": Op(lambda y: F.channel_shuffle(y, 2)),
    "channel shuffle by hand": Op(
        lambda y: y.view(2, 2, 4, 7, 5).transpose(1, 2).reshape(2, 8, 7, 5)
    ),
    # selection
    "slice channels": Op(lambda y: y[:, 2:6], 4),
    "slice every other": Op(lambda y: y[:, ::2], 4),
    "slice rows": Op(lambda y: y[:, :, 1:-1]),
    "slice columns": Op(lambda y: y[..., 1:]),
    "slice pixels": Op(lambda y: y[:, :, 1:6:2, :-2]),
    "slice channels and rows": Op(lambda y: y[:, 1:5, 2:], 4),
    "slice beyond": Op(lambda y: y[:, :, :99]),
    "slice the batch": Op(lambda y: y[:1]),
    "narrow": Op(lambda y: y.narrow(1, 0, 4), 4),
    "narrow rows": Op(lambda y: y.narrow(2, 1, 3)),
    "select row": Op(lambda y: y[:, :, 3]),
    "select last column": Op(lambda y: y.select(-1, -1)),
    "select pixel": Op(lambda y: y[:, :, 2, 1]),
    "index list": Op(lambda y: y[:, [3, 1, 0, 2, 4, 5, 6, 7]]),
    "index tensor": Op(lambda y: y[:, ORDER]),
    "index rows": Op(lambda y: y[:, :, [0, 2, 4]]),
    "index repeated rows": Op(lambda y: y[:, :, [0, 0, 4]]),
    "index select": Op(lambda y: y.index_select(1, ORDER)),
    "index select columns": Op(lambda y: y.index_select(3, torch.tensor([4, 0]))),
    "repeated channels": kept(lambda y: y[:, [0, 0, 1, 1]], 4),
    "flip columns": Op(lambda y: y.flip(3)),
    "flip pixels": Op(lambda y: y.flip((2, 3))),
    "flip channels": Op(lambda y: y.flip(1)),
    "roll rows": Op(lambda y: y.roll(1, 2)),
    "roll pixels": Op(lambda y: y.roll((1, -2), (2, 3))),
    "roll channels": Op(lambda y: y.roll(3, 1)),
    "rot90": Op(lambda y: torch.rot90(y, 1, (2, 3))),
    "chunk": Op(lambda y: y.chunk(2, 1)[0], 4),
    "chunk and cat": Op(lambda y: torch.cat(y.chunk(2, 1)[::-1], 1)),
    "split": Op(lambda y: torch.cat(y.split(3, 1)[::-1], 1)),
    "split with sizes": Op(lambda y: torch.cat(y.split([3, 5], 1)[::-1], 1)),
    "tensor split": Op(lambda y: torch.cat(y.tensor_split(3, 1)[::-1], 1)),
    "unbind": kept(lambda y: torch.stack(y.unbind(2)[::-1], 2)),
    "unbind one": Op(lambda y: y.unbind(2)[1]),
    "unfold": kept(lambda y: F.unfold(y, 2)[:, :8]),
    "gather": kept(lambda y: y.gather(2, torch.zeros(2, 8, 1, 5, dtype=torch.int64))),
    "masked fill": kept(lambda y: y.masked_fill(y > 0, 0.0)),
    "tril": kept(lambda y: y.tril()),
    # repetition
    "repeat rows": Op(lambda y: y.repeat(1, 1, 2, 1)),
    "repeat pixels": Op(lambda y: y.repeat(1, 1, 2, 3)),
    "repeat channels": kept(lambda y: y.repeat(1, 2, 1, 1), 16),
    "tile": Op(lambda y: torch.tile(y, (1, 1, 2, 2))),
    "tile the last": Op(lambda y: torch.tile(y, (2,))),
    "repeat interleave": Op(lambda y: y.repeat_interleave(2, 2)),
    "expand": Op(lambda y: y.mean((2, 3), keepdim=True).expand(2, 8, 4, 6)),
    "expand rows": Op(lambda y: y.mean(2, keepdim=True).expand(-1, -1, 3, -1)),
    "expand as": Op(lambda y: y.mean((2, 3), keepdim=True).expand_as(y)),
    "broadcast to": Op(lambda y: torch.broadcast_to(y.mean(3, keepdim=True), (2, 8, 7, 5))),
    # padding and resizing
    "pad zeros": kept(lambda y: F.pad(y, (1, 1, 1, 1))),
    "pad a number": kept(lambda y: F.pad(y, (1, 2), value=1.5)),
    "pad reflect": Op(lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect")),
    "pad replicate": Op(lambda y: F.pad(y, (1, 0, 2, 1), mode="replicate")),
    "pad circular": Op(lambda y: F.pad(y, (1, 1, 1, 1), mode="circular")),
    "pad less than nothing": Op(lambda y: F.pad(y, (-1, -1))),
    "nearest": Op(lambda y: F.interpolate(y, scale_factor=2)),
    "nearest to a size": Op(lambda y: F.interpolate(y, size=(9, 11))),
    "bilinear": Op(lambda y: F.interpolate(y, scale_factor=2, mode="bilinear")),
    "bilinear aligned": Op(
        lambda y: F.interpolate(y, size=(9, 11), mode="bilinear", align_corners=True)
    ),
    "bicubic": Op(lambda y: F.interpolate(y, scale_factor=2, mode="bicubic")),
    "linear": Op(lambda y: F.interpolate(y.flatten(2), scale_factor=2, mode="linear")),
    "grid sample": kept(lambda y: F.grid_sample(y, torch.zeros(2, 4, 4, 2), align_corners=False)),
    # products
    "linear layer": Op(lambda y: back(F.linear(last(y), MATRIX.T)), 6),
    "linear layer with bias": Op(lambda y: back(F.linear(last(y), MATRIX.T, EIGHT[:6])), 6),
    "matmul": Op(lambda y: back(last(y) @ MATRIX), 6),
    "matrix on the left": kept(lambda y: torch.matmul(torch.ones(3, 7), y)),
    "mm": Op(lambda y: torch.mm(y.mean((2, 3)), MATRIX), 6),
    "addmm": Op(lambda y: torch.addmm(EIGHT[:6], y.mean((2, 3)), MATRIX), 6),
    "addmm with factors": Op(
        lambda y: torch.addmm(EIGHT[:6], y.mean((2, 3)), MATRIX, beta=2, alpha=0.5), 6
    ),
    "einsum": Op(lambda y: torch.einsum("nchw,co->nohw", y, MATRIX), 6),
    "einsum last": Op(lambda y: back(torch.einsum("nhwc,co->nhwo", last(y), MATRIX)), 6),
    "einsum of a vector": kept(lambda y: torch.einsum("nchw,c->nchw", y, EIGHT)),
    "einsum of two": kept(lambda y: torch.einsum("nchw,ncHw->nchH", y, y.sigmoid())),
    "conv": Op(lambda y: F.conv2d(y, MATRIX.T[:, :, None, None]), 6),
    "conv of parts": Op(
        lambda y: torch.cat([F.conv2d(p, MATRIX.T[:, :, None, None]) for p in y.split(1)]), 6
    ),
    "conv of groups": Op(lambda y: F.conv2d(y, torch.ones(8, 1, 3, 3), padding=1, groups=8)),
    "conv transpose": Op(lambda y: F.conv_transpose2d(y, MATRIX[:, :, None, None], stride=2), 6),
    "own weights": kept(lambda y: y + 0 * y.flatten(2).softmax(-1).mean()),
    # normalisations by the data, and tables
    "layer norm": Op(lambda y: back(F.layer_norm(last(y), (8,), EIGHT + 3, EIGHT))),
    "layer norm without a bias": Op(lambda y: back(F.layer_norm(last(y), (8,), EIGHT + 3))),
    "layer norm without weights": kept(lambda y: back(F.layer_norm(last(y), (8,)))),
    "layer norm of pixels": kept(lambda y: F.layer_norm(y, (7, 5), IMAGE[0], IMAGE[1])),
    "group norm": Op(lambda y: F.group_norm(y, 2, EIGHT + 3, EIGHT)),
    "scale of rms norm": Op(
        lambda y: back(F.rms_norm(last(y), (8,), EIGHT + 3, 1e-5)), shifts=False
    ),
    "shift of rms norm": kept(lambda y: back(F.rms_norm(last(y), (8,), EIGHT + 3, 1e-5))),
    "embedding": Op(lambda y: back(F.embedding((y[:, 0].abs() > 1).long(), TABLES[0]))),
    "embedding times number": Op(lambda y: back(F.embedding((y[:, 0] > 0).long(), TABLES[1]) * 3)),
    "lstm": kept(lstm),
    # joining
    "cat": kept(lambda y: torch.cat((y, y * 2), 1), 16),
    "cat with a constant": kept(lambda y: torch.cat((y, IMAGE.expand(2, -1, -1, -1)), 1), 16),
    "cat of rows": kept(lambda y: torch.cat((y, y.flip(2)), 2)),
    "stack and sum": kept(lambda y: torch.stack((y, y * 2), 0).sum(0)),
    "residual": kept(lambda y: y + y.relu()),
    "difference": kept(lambda y: y[..., 1:] - y[..., :-1]),
    "focus": kept(lambda y: torch.cat((y[..., ::2, :4:2], y[..., ::2, 1::2]), 1), 16),
    "lerp": kept(lambda y: torch.lerp(y, y.flip(3), 0.3)),
    "gate": kept(lambda y: y * y.mean((2, 3), keepdim=True).sigmoid()),
}

FORMS = ("pt2", "torchscript", "onnx", "onnx of the older exporter")

NOT_EXPORTED = (
    *("movedim", "mT", "ravel", "channel shuffle", "rot90"),
    *("scale of rms norm", "shift of rms norm"),
)
"""The older exporter knows no such operator, or writes a model that no runtime takes."""

_WINDOWS = "runtimes disagree on what a window that overhangs is divided by"
_PIECES = "the exporter writes slices and joins them: what they are cut from has several readers"
_ROLLED = ("rows", "pixels", "channels")
_DEAD = "the exporter leaves in what nobody reads, and each part would have an affine of its own"
_ONES = "the exporter gives it weights of 1 and 0, which can take the affine"
_SIZES = "the exporter computes the bounds or sizes from a shape; onnx does not infer the result's"

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("onnx", "avg pool with ceil"): _WINDOWS,
    ("onnx of the older exporter", "avg pool with ceil"): _WINDOWS,
    **{(form, f"roll {axes}"): _PIECES for form in FORMS[2:] for axes in _ROLLED},
    ("onnx", "tensor split"): _PIECES,
    ("onnx", "linear"): _PIECES,
    ("onnx", "layer norm without weights"): _ONES,
    ("onnx of the older exporter", "layer norm without weights"): _ONES,
    ("onnx", "group norm"): _SIZES,
    ("onnx of the older exporter", "pad circular"): _PIECES,
    ("onnx of the older exporter", "tensor split"): _SIZES,
    ("onnx of the older exporter", "chunk and cat"): _SIZES,
    ("onnx of the older exporter", "unbind one"): _DEAD,
    ("onnx of the older exporter", "tile"): _SIZES,
    ("onnx of the older exporter", "tile the last"): _SIZES,
}
"""Where the fate of an op is the other one, and why."""

_FOLD = (
    *("identity", "add channels", "sub from channels", "mul channels", "div channels", "neg"),
    *("flip pixels", "slice rows", "slice channels", "index list", "repeat pixels", "expand"),
    *("pad reflect", "transpose pixels", "avg pool", "mean", "sum", "nearest", "roll rows"),
    *("roll channels", "addcmul of constants", "conv", "channel shuffle", "lstm"),
)
_STAY = ("relu", "pad zeros", "pixel shuffle", "max pool", "amax", "abs", "add image", "threshold")
BEFORE = dict.fromkeys(_FOLD, True) | dict.fromkeys(_STAY, False)
"""Whether a BatchNorm before the op folds into a convolution behind it."""

BEFORE_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("onnx", "roll rows"): _PIECES,
    ("onnx of the older exporter", "roll rows"): _PIECES,
}
