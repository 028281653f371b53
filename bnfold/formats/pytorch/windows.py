"""The arguments of ATen's layers and pooling: kernels, strides, pads, with ranks by name."""

from __future__ import annotations

from typing import Literal

from bnfold.algebra.graph import Pads
from bnfold.algebra.rounding import EPSILON
from bnfold.formats.meaning import layers, spatial
from bnfold.formats.meaning.operands import constant, not_linear
from bnfold.formats.meaning.steps import Meaning
from bnfold.formats.pytorch.calls import Call

Kind = Literal["max", "avg"]


def conv(c: Call) -> Meaning:
    """conv2d, conv_transpose2d, convolution, _convolution, ...: the weight tells the rank."""
    weight = constant(c.operand("weight"), "weight")
    kernel = weight.shape[2:]
    rank = len(kernel)
    dilation = c.ints("dilation", rank)
    transposed = c.flag("transposed") or "transpose" in c.op
    return layers.conv(
        c.x,
        weight,
        c.optional("bias"),
        stride=c.ints("stride", rank),
        dilation=dilation,
        pads=_pads(c, kernel, dilation),
        groups=c.whole("groups"),
        transposed=transposed,
        output_padding=c.ints("output_padding", rank) if transposed else (),
    )


def _pads(c: Call, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Pads:
    rank = len(kernel)
    if c["padding"] == "valid":
        return ((0, 0),) * rank
    if c["padding"] == "same":
        return layers.same_pads((None,) * rank, kernel, (1,) * rank, dilation)
    return tuple((p, p) for p in c.ints("padding", rank))


def batch_norm(c: Call) -> Meaning:
    """In every spelling; instance_norm with running statistics is one."""
    training = c.flag("training") or c.flag("use_input_stats")
    return layers.batch_norm(
        c.x,
        c.optional("running_mean"),
        c.optional("running_var"),
        c.optional("weight"),
        c.optional("bias"),
        c.number("eps" if c.has("eps") else "epsilon"),
        training="it normalises with the statistics of the batch, also in eval mode" * training,
    )


def training_norm(c: Call) -> Meaning:
    """A BatchNorm that updates its statistics, whatever its arguments say."""
    return layers.batch_norm(c.x, None, None, None, None, 0.0, training="it is in train mode")


def layer_norm(c: Call) -> Meaning:
    """layer_norm and rms_norm, over the last axis."""
    if len(c.ints("normalized_shape")) != 1:
        raise not_linear("it normalises over several axes")
    centred = c.op == "layer_norm"
    given = c.optional("weight"), c.optional("bias") if centred else None
    eps = c.number("eps") if c.has("eps") else _smallest(c.x.dtype)
    return layers.norm(c.x, *given, eps, c.made, centred=centred)


def _smallest(dtype: str) -> float:
    """What torch takes for an eps that is not given."""
    return EPSILON.get(dtype, 0.0)


def group_norm(c: Call) -> Meaning:
    given = c.optional("weight"), c.optional("bias")
    return layers.norm(c.x, *given, c.number("eps"), c.made, groups=c.whole("num_groups"))


def max_pool(c: Call) -> Meaning:
    return _pool(c, "max")


def avg_pool(c: Call) -> Meaning:
    return _pool(c, "avg")


def _pool(c: Call, kind: Kind) -> Meaning:
    _no_indices(c)
    rank = rank_of(c)
    kernel, ones = c.ints("kernel_size", rank), (1,) * rank
    return spatial.pool(
        c.x,
        kind,
        kernel,
        c.ints("stride", rank) if c.get("stride") else kernel,
        _pads(c, kernel, ones),
        c.ints("dilation", rank) if c.has("dilation") else ones,
        ceil_mode=c.flag("ceil_mode"),
        count_include_pad=c.flag("count_include_pad"),
        divisor=c.whole("divisor_override") if c.has("divisor_override") else None,
    )


def adaptive_pool(c: Call) -> Meaning:
    """A size of None is that of the input."""
    _no_indices(c)
    given = c["output_size"]
    sizes = list(given) if isinstance(given, list | tuple) else [given]
    whole = sizes * (rank_of(c) if len(sizes) == 1 else 1)
    known = [size if isinstance(size, int) else None for size in whole]
    return spatial.adaptive_pool(c.x, "max" if "max" in c.op else "avg", known)


def _no_indices(c: Call) -> None:
    if len(c.outputs) > 1:
        raise not_linear("its indices are read")


def rank_of(c: Call) -> int:
    """The spatial axes by the name of the operator: 2 of max_pool2d."""
    return int(next(character for character in c.op if character.isdigit()))
