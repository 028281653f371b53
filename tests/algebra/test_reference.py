"""The float64 oracle, held against torch in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, event, given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from bnfold.algebra.affine import Array
from bnfold.algebra.graph import (
    Activation,
    AdaptivePool,
    Add,
    Concat,
    Conv,
    Graph,
    Linear,
    MatMul,
    Mean,
    Multiply,
    Node,
    Op,
    Opaque,
    PixelShuffle,
    Pool,
    Transpose,
)
from bnfold.algebra.reference import NotEvaluableError, evaluate
from bnfold.algebra.reshaping import reshape as reshape_op
from tests.algebra.graphs import close, param

SEED = st.integers(0, 1 << 20)
MODES = ["zeros", "reflect", "replicate", "circular"]


def _run(op: Op, *x: Array) -> Array:
    names = tuple(f"x{i}" for i in range(len(x)))
    graph = Graph(names, (Node("n", "N", op, names, ("y",)),), ("y",))
    return evaluate(graph, dict(zip(names, x, strict=True)))["y"]


def _assert_same(ours: Array, theirs: torch.Tensor) -> None:
    assert ours.dtype == np.float64
    assert ours.shape == tuple(theirs.shape)
    assert ours.size == 0 or close(ours, theirs.numpy())


def _each(draw: st.DrawFn, rank: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(rank))


@st.composite
def convs(draw: st.DrawFn, transposed: bool) -> tuple[Conv, Array]:
    rank = draw(st.integers(1, 3))
    groups, inner, outer = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(SEED))
    kernel = _each(draw, rank, 1, 3)
    shape = (groups * inner, outer) if transposed else (groups * outer, inner)
    stride, dilation = _each(draw, rank, 1, 3), _each(draw, rank, 1, 2)
    pads = tuple(zip(_each(draw, rank, 0, 2), _each(draw, rank, 0, 2), strict=True))
    spare = tuple(
        draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    )
    if transposed:
        pads = tuple((lo, lo) for lo, _ in pads)
    op = Conv(
        param("w", rng.normal(size=(*shape, *kernel))),
        param("c", rng.normal(size=groups * outer)) if draw(st.booleans()) else None,
        stride,
        dilation,
        pads,
        groups,
        "zeros" if transposed else draw(st.sampled_from(MODES)),
        transposed,
        spare if transposed else (),
    )
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    return op, rng.normal(size=(*batch, groups * inner, *_each(draw, rank, 3, 6)))


def _tensors(op: Conv, x: Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    bias = None if op.bias is None else torch.tensor(op.bias.load())
    return torch.tensor(x), torch.tensor(op.weight.load()), bias


@given(convs(transposed=False))
def test_convolution_with_any_pads_and_pad_mode(case: tuple[Conv, Array]) -> None:
    op, x = case
    data, weight, bias = _tensors(op, x)
    rank = len(op.kernel)
    reach = [d * (k - 1) for d, k in zip(op.dilation, op.kernel, strict=True)]
    sizes = [s + sum(p) for s, p in zip(x.shape[-rank:], op.pads, strict=True)]
    assume(all(s > r for s, r in zip(sizes, reach, strict=True)))
    event(f"rank {rank} {op.pad_mode}")
    flat = [n for pair in reversed(op.pads) for n in pair]
    mode = "constant" if op.pad_mode == "zeros" else op.pad_mode
    if data.ndim == rank + 1:
        data = F.pad(data[None], flat, mode=mode)[0]
    else:
        data = F.pad(data, flat, mode=mode)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    wanted = convolve(data, weight, bias, op.stride, 0, op.dilation, op.groups)
    _assert_same(_run(op, x), wanted)


@given(convs(transposed=True))
def test_transposed_convolution_with_groups_and_output_padding(case: tuple[Conv, Array]) -> None:
    op, x = case
    data, weight, bias = _tensors(op, x)
    rank = len(op.kernel)
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    pads = tuple(lo for lo, _ in op.pads)
    try:
        wanted = convolve(
            data, weight, bias, op.stride, pads, op.output_padding, op.groups, op.dilation
        )
    except RuntimeError:
        assume(False)
        return
    _assert_same(_run(op, x), wanted)


def test_transposed_convolution_with_unequal_crops_is_the_uncropped_one_sliced() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 5, 6))
    w = rng.normal(size=(4, 3, 3, 2))
    op = Conv(param("w", w), None, (2, 1), (1, 2), ((1, 0), (0, 2)), 2, transposed=True)
    whole = F.conv_transpose2d(
        torch.tensor(x), torch.tensor(w), stride=(2, 1), groups=2, dilation=(1, 2)
    )
    _assert_same(_run(op, x), whole[:, :, 1:, :-2])


@st.composite
def pools(draw: st.DrawFn, rank: int) -> Pool:
    kernel = _each(draw, rank, 1, 4)
    pads = tuple((p, p) for p in (draw(st.integers(0, k // 2)) for k in kernel))
    return Pool(
        "max",
        kernel,
        _each(draw, rank, 1, 3),
        pads,
        draw(st.sampled_from([(), _each(draw, rank, 1, 2)])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([None, 1, 3, 7])) if rank > 1 else None,
    )


@given(st.data(), st.integers(1, 3), st.booleans(), SEED)
def test_maximum_pool(data: st.DataObject, rank: int, batched: bool, seed: int) -> None:
    op = data.draw(pools(rank))
    sizes = [data.draw(st.integers(2, 8)) for _ in range(rank)]
    x = np.random.default_rng(seed).normal(size=(*[2] * batched, 3, *sizes))
    pooled = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    try:
        wanted = pooled(
            torch.tensor(x),
            op.kernel,
            op.stride,
            tuple(lo for lo, _ in op.pads),
            op.dilation or 1,
            op.ceil_mode,
        )
    except RuntimeError:
        assume(False)
        return
    # torch can leave a window all in its padding, which holds nothing to compare
    assume(bool(torch.isfinite(wanted).all()))
    _assert_same(_run(op, x), wanted)


@given(st.data(), st.integers(1, 3), st.booleans(), SEED)
def test_average_pool(data: st.DataObject, rank: int, batched: bool, seed: int) -> None:
    op = replace(data.draw(pools(rank)), kind="avg", dilation=())
    sizes = [data.draw(st.integers(2, 8)) for _ in range(rank)]
    x = np.random.default_rng(seed).normal(size=(*[2] * batched, 3, *sizes))
    pads = tuple(lo for lo, _ in op.pads)
    pooled = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    extra = (op.divisor,) if rank > 1 else ()
    try:
        wanted = pooled(
            torch.tensor(x), op.kernel, op.stride, pads, op.ceil_mode, op.count_include_pad, *extra
        )
    except RuntimeError:
        assume(False)
        return
    event(f"divisor={op.divisor} ceil={op.ceil_mode} include={op.count_include_pad}")
    _assert_same(_run(op, x), wanted)


@given(st.integers(1, 3), st.sampled_from(["max", "avg"]), st.booleans(), st.data(), SEED)
def test_adaptive_pool(rank: int, kind: str, batched: bool, data: st.DataObject, seed: int) -> None:
    sizes = [data.draw(st.integers(1, 9)) for _ in range(rank)]
    out = tuple(data.draw(st.integers(1, 5)) for _ in range(rank))
    x = np.random.default_rng(seed).normal(size=(*[2] * batched, 3, *sizes))
    pooled = getattr(F, f"adaptive_{kind}_pool{rank}d")
    _assert_same(_run(AdaptivePool(kind, out), x), pooled(torch.tensor(x), out))  # type: ignore[arg-type]


def test_an_adaptive_pool_keeps_a_size_that_is_none() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    _assert_same(
        _run(AdaptivePool("avg", (None, 3)), x), F.adaptive_avg_pool2d(torch.tensor(x), (None, 3))
    )


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.booleans(), SEED)
def test_linear_of_any_rank(rank: int, cin: int, cout: int, bias: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, c = rng.normal(size=(cout, cin)), rng.normal(size=cout)
    x = rng.normal(size=(*(2, 3, 2)[: rank - 1], cin))
    wanted = F.linear(torch.tensor(x), torch.tensor(w), torch.tensor(c) if bias else None)
    _assert_same(_run(Linear(param("w", w), param("c", c) if bias else None), x), wanted)


@pytest.mark.parametrize("slope", [0.0, 0.1, -0.5, 1.5])
def test_leaky_relu(slope: float) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    _assert_same(_run(Activation(np.array(slope)), x), F.leaky_relu(torch.tensor(x), slope))


def test_prelu_with_one_slope_a_channel() -> None:
    rng = np.random.default_rng(0)
    x, slope = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=3)
    ours = _run(Activation(slope.reshape(3, 1, 1)), x)
    _assert_same(ours, F.prelu(torch.tensor(x), torch.tensor(slope)))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data(), st.booleans(), SEED)
def test_mean(shape: list[int], data: st.DataObject, keepdims: bool, seed: int) -> None:
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    x = np.random.default_rng(seed).normal(size=shape)
    ours = _run(Mean(tuple(axes), keepdims), x)
    _assert_same(ours, torch.tensor(x).mean(tuple(axes), keepdim=keepdims))


@given(st.permutations([2, 3, 2, 1]), st.permutations(range(4)), SEED)
def test_transpose_and_reshape(shape: list[int], perm: list[int], seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=shape)
    _assert_same(_run(Transpose(tuple(perm)), x), torch.tensor(x).permute(*perm))
    for target in ((12,), (2, 6), (3, 2, 2), (1, 12, 1), (4, 3)):
        op = reshape_op(tuple(shape), target)
        if op is not None:
            _assert_same(_run(op, x), torch.tensor(x).reshape(target))
    open_ended = reshape_op((None, *shape[1:]), (None, 12 // shape[0]))
    assert open_ended is not None
    _assert_same(_run(open_ended, x), torch.tensor(x).reshape(shape[0], -1))


def test_add_broadcasts_and_concat_joins() -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 1)), rng.normal(size=(1, 1, 4))
    ta, tb, tc = (torch.tensor(x) for x in (a, b, c))
    _assert_same(_run(Add(), a, b, c), ta + tb + tc)
    _assert_same(_run(Concat(1), a, a, a[:, :1]), torch.cat([ta, ta, ta[:, :1]], 1))


def test_an_operator_without_a_meaning_is_named() -> None:
    with pytest.raises(NotEvaluableError, match=r"n \(N\) has no float64 meaning"):
        _run(Opaque(), np.ones(2))


@given(SEED, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_pixel_shuffle(seed: int, channels: int, factor: int, batched: bool) -> None:
    shape = ((2,) if batched else ()) + (channels * factor**2, 3, 2)
    x = np.random.default_rng(seed).normal(size=shape)
    want = F.pixel_shuffle(torch.tensor(x), factor)
    _assert_same(_run(PixelShuffle(factor), x), want)
    back = F.pixel_unshuffle(want, factor)
    _assert_same(_run(PixelShuffle(factor, inverse=True), want.numpy()), back)


@given(SEED, st.integers(1, 3), st.integers(1, 3))
def test_strided_pixel_shuffle_is_depth_to_space(seed: int, channels: int, factor: int) -> None:
    x = np.random.default_rng(seed).normal(size=(2, channels * factor**2, 3, 2))

    def onnx_op(kind: str, data: Array) -> Array:
        node = onnx.helper.make_node(kind, ["x"], ["y"], blocksize=factor)
        (made,) = ReferenceEvaluator(node).run(None, {"x": data})
        return np.asarray(made, np.float64)

    want = onnx_op("DepthToSpace", x)
    assert np.array_equal(_run(PixelShuffle(factor, strided=True), x), want)
    back = PixelShuffle(factor, inverse=True, strided=True)
    assert np.array_equal(_run(back, want), onnx_op("SpaceToDepth", want))


def test_products_broadcast_as_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3, 5)), rng.normal(size=(2, 1, 5, 6))
    assert np.array_equal(_run(Multiply(), x, y[..., :1, :5]), x * y[..., :1, :5])
    assert close(_run(MatMul(), x, y), torch.matmul(torch.tensor(x), torch.tensor(y)).numpy())
