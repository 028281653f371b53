"""Affines and pooling: maximum, average, adaptive, and means over axes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from bnfold.algebra.checking import MalformedGraphError, check
from bnfold.algebra.graph import Affine, Mean, Node, Pool
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason
from tests.algebra.graphs import (
    Build,
    assert_folded,
    assert_kept,
    close,
    outputs,
    planned,
    without_shapes,
)

SEED = st.integers(0, 1 << 20)
Kind = Literal["max", "avg"]


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    rank = draw(st.integers(1, 3))
    kind: Kind = draw(st.sampled_from(["max", "avg"]))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(rank)) if kind == "max" else ()
    padded = draw(st.booleans())
    return Pool(
        kind,
        kernel,
        tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        tuple(
            (draw(st.integers(0, k // 2)), draw(st.integers(0, k // 2))) if padded else (0, 0)
            for k in kernel
        ),
        dilation,
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([None, None, 2, 4])) if kind == "avg" else None,
    )


def _shift_passes(op: Pool) -> bool:
    """NO_ZEROS, said a second time."""
    padded = any(lo or hi for lo, hi in op.pads)
    if op.divisor is None:
        return not (padded and op.count_include_pad)
    window = 1
    for k in op.kernel:
        window *= k
    return not padded and not op.ceil_mode and window == op.divisor


def _around(build: Build, op: Pool, after: bool, affine: dict[str, object]) -> str:
    """conv -> pool -> affine -> relu, or opaque -> affine -> pool -> conv."""
    rank = len(op.kernel)
    x = build.input(None, 3, *[7, 5, 6][:rank])
    try:
        if after:
            y = build.node(op, build.conv(x, 3, (1,) * rank), name="pool")
            return build.affine(y, **affine)  # type: ignore[arg-type]
        y = build.node(op, build.affine(x, **affine), name="pool")  # type: ignore[arg-type]
        return build.conv(y, 2, (1,) * rank)
    except ValueError:
        assume(False)
        raise


@given(pools(), st.booleans(), SEED, st.sampled_from(["plus", "both"]), *[st.booleans()] * 2)
def test_an_affine_passes_a_pool_exactly_when_sign_and_padding_allow(
    op: Pool, after: bool, seed: int, sign: str, shift: bool, uniform: bool
) -> None:
    build = Build(seed)
    axis = None if uniform else 1
    out = _around(build, op, after, {"axis": axis, "sign": sign, "shift": shift})
    event(f"{op.kind} {sign} shift={shift}")
    if op.kind == "max" and sign == "both":
        assert_kept(build, Reason.NEGATIVE_SCALE, out)
    elif op.kind == "avg" and shift and not _shift_passes(op):
        padded = any(lo or hi for lo, hi in op.pads)
        assert_kept(build, Reason.ZERO_PADDING if padded else Reason.SHIFT, out)
    else:
        assert_folded(build, out)


def _pool(kind: Kind, **how: object) -> Pool:
    plain = Pool(kind, (2, 2), (2, 2), ((0, 0), (0, 0)))
    return replace(plain, **how)  # type: ignore[arg-type]


WRONG = {
    "a negative scale through a maximum": (_pool("max"), "both", False),
    "a shift through an average that counts its padding": (
        _pool("avg", pads=((1, 1), (1, 1)), count_include_pad=True),
        "plus",
        True,
    ),
    "a shift through an average with a divisor of its own": (
        _pool("avg", divisor=3),
        "plus",
        True,
    ),
    "a shift through a padded average with the window's size as divisor": (
        _pool("avg", pads=((0, 1), (0, 1)), divisor=4),
        "plus",
        True,
    ),
    "a shift through a ceiled average with the window's size as divisor": (
        _pool("avg", ceil_mode=True, divisor=4),
        "plus",
        True,
    ),
}


@pytest.mark.parametrize(("op", "sign", "shift"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_the_refused_move_is_really_wrong(op: Pool, sign: str, shift: bool, after: bool) -> None:
    build = Build()
    out = _around(build, op, after, {"sign": sign, "shift": shift})
    assert planned(build, out).affines.kept == 1
    affine = next(n.op for n in build.nodes if isinstance(n.op, Affine)).affine
    x = build.values["x0"][0]

    def pooled(values: object) -> object:
        graph = replace(build.graph(), inputs=("x0",), outputs=("y",))
        nodes = (Node("pool", "Pool", op, ("x0",), ("y",)),)
        probe = Build()
        probe.inputs = {"x0": (values,)}  # type: ignore[dict-item]
        return outputs(replace(graph, nodes=nodes), probe)["y"]

    moved, right = affine.on(pooled(x)), pooled(affine.on(x))  # type: ignore[arg-type]
    assert not close(moved, right)  # type: ignore[arg-type]


@given(
    st.sampled_from(["max", "avg"]),
    st.integers(1, 3),
    st.data(),
    SEED,
    st.booleans(),
    st.sampled_from(["plus", "both"]),
)
def test_an_adaptive_pool_passes_every_affine_but_a_negative_one_through_a_maximum(
    kind: Kind, rank: int, data: st.DataObject, seed: int, after: bool, sign: str
) -> None:
    build = Build(seed)
    x = build.input(None, 3, *[5, 4, 3][:rank])
    size = [data.draw(st.integers(1, 4)) for _ in range(rank)]
    if after:
        out = build.affine(build.adaptive(build.conv(x, 3, (1,) * rank), kind, *size), sign=sign)
    else:
        out = build.conv(build.adaptive(build.affine(x, sign=sign), kind, *size), 2, (1,) * rank)
    if kind == "max" and sign == "both":
        left = assert_kept(build, Reason.NEGATIVE_SCALE, out)
        assert "would turn its maximum over" in (left.why or "")
    else:
        assert_folded(build, out)


@given(SEED, st.booleans(), st.booleans(), st.sampled_from([1, 2, 3]), st.data())
def test_a_mean_passes_the_affine_of_every_axis_that_it_keeps(
    seed: int, after: bool, keepdims: bool, axis: int, data: st.DataObject
) -> None:
    build = Build(seed)
    others = [i for i in (0, 1, 2, 3) if i != axis]
    axes = data.draw(st.sets(st.sampled_from(others), min_size=1, max_size=3))
    x = build.input(4, 3, 5, 2)
    # the linear layer has its features on the axis in question: brought last, and back
    ahead = [i for i in range(4) if i != axis] + [axis]
    back = [ahead.index(i) for i in range(4)]
    if after:
        y = build.transpose(build.linear(build.transpose(x, *ahead), 3), *back)
        y = build.mean(y, *axes, keepdims=keepdims)
        where = axis if keepdims else axis - sum(a < axis for a in axes)
        assert_folded(build, build.affine(y, where))
    else:
        y = build.mean(build.affine(x, axis), *axes, keepdims=keepdims)
        where = axis if keepdims else axis - sum(a < axis for a in axes)
        rank = build.rank(y)
        out = build.transpose(y, *[i for i in range(rank) if i != where], where)
        assert_folded(build, build.linear(out, 2))


POOLED_AWAY = {
    "a pool over the affine's own axis": "pool",
    "an adaptive pool over the affine's own axis": "adaptive",
    "a mean over the affine's own axis": "mean",
}


@pytest.mark.parametrize("how", POOLED_AWAY.values(), ids=POOLED_AWAY)
@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_an_affine_does_not_pass(how: str, after: bool) -> None:
    build = Build()
    x = build.input(None, 3, 4, 4)
    y = build.linear(x, 4) if after else build.affine(x, 3)
    if how == "pool":
        y = build.pool(y, "avg", (2, 1))
    elif how == "adaptive":
        y = build.adaptive(y, "avg", 2, 2)
    else:
        y = build.mean(y, 3, keepdims=True)
    out = build.affine(y, 3) if after else build.linear(y, 2)
    if how == "mean" and after:
        # the one index that is left of the axis cannot differ from another
        assert_folded(build, out)
    else:
        # a pool spans both last axes even where its window is one wide
        assert_kept(build, Reason.WRONG_AXIS, out)


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("axis", [None, 1], ids=["uniform", "by channel"])
@pytest.mark.parametrize("how", ["pool", "mean"])
def test_a_value_of_unknown_rank_is_pooled_only_with_a_uniform_affine(
    after: bool, axis: int | None, how: str
) -> None:
    build = Build()
    x = build.input(None, 3, 6)
    y = build.conv(x, 3, (1,)) if after else build.affine(x, axis)
    y = build.pool(y, "avg", (2,)) if how == "pool" else build.mean(y, 2, keepdims=True)
    out = build.affine(y, axis) if after else build.conv(y, 2, (1,))
    plan = make_plan(without_shapes(build.graph(out)))
    want = None if axis is None else Reason.UNKNOWN_SHAPE
    assert [s.reason for s in plan.sites] == [want]


def test_a_mean_over_an_axis_counted_from_the_right_is_malformed() -> None:
    build = Build()
    build.mean(build.input(None, 3), 1)
    graph = build.graph("v0")
    turned = graph.nodes[0].with_op(Mean((-1,), False))
    with pytest.raises(MalformedGraphError, match="axis -1"):
        check(replace(graph, nodes=(turned,)))
