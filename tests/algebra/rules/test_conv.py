"""Affines and convolutions: every rank, group, stride, dilation, padding and transposition."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.checking import MalformedGraphError
from bnfold.algebra.graph import Affine, Conv, Param
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rules import RULES, conv
from tests.algebra.graphs import (
    Build,
    apart,
    assert_folded,
    assert_kept,
    param,
    planned,
    site,
    without_shapes,
)


@dataclass(frozen=True)
class Case:
    seed: int
    size: tuple[int, ...]
    batched: bool
    channels: int
    out: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    pad_mode: str
    transposed: bool
    output_padding: tuple[int, ...]
    bias: bool

    def input(self) -> tuple[Build, str]:
        build = Build(self.seed)
        return build, build.input(*[None] * self.batched, self.channels, *self.size)

    @property
    def axis(self) -> int:
        return int(self.batched)

    def on(self, build: Build, value: str) -> str:
        try:
            return build.conv(
                value,
                self.out,
                self.kernel,
                stride=self.stride,
                dilation=self.dilation,
                pads=self.pads,
                groups=self.groups,
                pad_mode=self.pad_mode,
                transposed=self.transposed,
                output_padding=self.output_padding if self.transposed else (),
                bias=self.bias,
                name="conv",
            )
        except (ValueError, IndexError):
            assume(False)
            raise

    def takes_shift(self) -> bool:
        """PADDING and ALL_TAPS, said a second time."""
        if not self.transposed:
            return self.pad_mode != "zeros" or not np.any(self.pads)
        return set(self.stride) == {1} and all(
            min(lo, hi - extra) >= d * (k - 1)
            for (lo, hi), extra, d, k in zip(
                self.pads, self.output_padding, self.dilation, self.kernel, strict=True
            )
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    groups = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    kernel, dilation = each(1, 3), each(1, 2)
    stride = draw(st.one_of(st.just((1,) * rank), st.tuples(*[st.integers(1, 3)] * rank)))
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    pads = draw(
        st.sampled_from(
            [
                ((0, 0),) * rank,
                tuple((r, r) for r in reach),
                tuple(zip(each(0, 2), each(0, 2), strict=True)),
            ]
        )
    )
    spare = tuple(draw(st.integers(0, 1)) * (s - 1) for s in stride)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    return Case(
        seed=draw(st.integers(0, 1 << 20)),
        size=each(4, 7) if rank < 3 else each(4, 5),
        batched=draw(st.booleans()),
        channels=groups * draw(st.integers(1, 2)),
        out=groups * draw(st.integers(1, 3)),
        groups=groups,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        pads=pads,
        pad_mode="zeros" if transposed else mode,
        transposed=transposed,
        output_padding=spare,
        bias=draw(st.booleans()),
    )


@given(cases(), st.booleans())
def test_an_affine_after_any_convolution_folds_into_it(case: Case, uniform: bool) -> None:
    build, x = case.input()
    y = case.on(build, x)
    out = build.affine(y, None if uniform else case.axis, name="bn")
    plan = assert_folded(build, out)
    assert site(plan, "bn").into == ("conv",)


@given(cases(), st.booleans())
def test_a_scale_before_any_convolution_folds_into_it(case: Case, uniform: bool) -> None:
    build, x = case.input()
    a = build.affine(x, None if uniform else case.axis, shift=False, name="bn")
    plan = assert_folded(build, case.on(build, a))
    assert site(plan, "bn").into == ("conv",)


@given(cases(), st.booleans())
def test_a_shift_before_a_convolution_folds_exactly_when_every_tap_sees_it(
    case: Case, uniform: bool
) -> None:
    build, x = case.input()
    a = build.affine(x, None if uniform else case.axis, name="bn")
    y = case.on(build, a)
    event(f"transposed={case.transposed} takes_shift={case.takes_shift()}")
    if case.takes_shift():
        assert_folded(build, y)
    else:
        reason = Reason.PARTIAL_TAPS if case.transposed else Reason.ZERO_PADDING
        assert "conv" in (assert_kept(build, reason, y).why or "")


@given(cases())
def test_affines_on_both_sides_of_one_convolution_fold_into_it(case: Case) -> None:
    build, x = case.input()
    a = build.affine(x, case.axis, shift=case.takes_shift())
    assert_folded(build, build.affine(case.on(build, a), case.axis))


def _before(build: Build, **how: object) -> str:
    """x -> affine -> conv over [N, 4, 5, 5]."""
    a = build.affine(build.input(None, 4, 5, 5), name="bn")
    return build.conv(a, 4, (3, 3), name="conv", **how)  # type: ignore[arg-type]


def _naive(build: Build) -> Conv:
    """The convolution with the affine before it folded as if nothing were padded or cut."""
    bn, node = build.nodes
    assert isinstance(bn.op, Affine)
    assert isinstance(node.op, Conv)
    free = replace(node.op, pads=((0, 0), (0, 0)), stride=(1, 1), output_padding=())
    if free.transposed:
        free = replace(free, pads=((2, 2), (2, 2)))
    shapes = {value: build.shape(value) for value in build.values}
    answer = conv.down(free, node, bn.op.affine, 0, shapes)
    assert isinstance(answer, tuple)
    assert answer[0].node is not None
    op = answer[0].node.op
    assert isinstance(op, Conv)
    kept_as = node.op
    return replace(
        op, pads=kept_as.pads, stride=kept_as.stride, output_padding=kept_as.output_padding
    )


REFUSED = {
    "zeros padded on all sides": ({"pads": ((1, 1), (1, 1))}, Reason.ZERO_PADDING),
    "zeros padded on one side only": ({"pads": ((0, 0), (0, 1))}, Reason.ZERO_PADDING),
    "zeros padded under groups": (
        {"pads": ((1, 1), (1, 1)), "groups": 2},
        Reason.ZERO_PADDING,
    ),
    "a transposed convolution that is not cropped": ({"transposed": True}, Reason.PARTIAL_TAPS),
    "a transposed convolution cropped too little": (
        {"transposed": True, "pads": ((2, 2), (2, 1))},
        Reason.PARTIAL_TAPS,
    ),
    "a transposed convolution with a stride": (
        {"transposed": True, "pads": ((2, 2), (2, 2)), "stride": (2, 1)},
        Reason.PARTIAL_TAPS,
    ),
    "a transposed convolution with output padding": (
        {"transposed": True, "pads": ((2, 2), (2, 2)), "output_padding": (0, 1)},
        Reason.PARTIAL_TAPS,
    ),
}


@pytest.mark.parametrize(("how", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_shift_is_refused_where_folding_it_anyway_is_wrong(
    how: dict[str, object], reason: Reason
) -> None:
    build = Build()
    y = _before(build, **how)
    assert_kept(build, reason, y)
    assert apart(build, y, {"conv": _naive(build)}) > 1e-2


def test_the_naive_fold_is_right_where_nothing_is_padded() -> None:
    build = Build()
    y = _before(build)
    assert apart(build, y, {"conv": _naive(build)}) < 1e-9


def test_output_channels_of_a_grouped_transposed_weight_are_not_laid_out_group_minor() -> None:
    build = Build()
    y = build.conv(build.input(None, 4, 5, 5), 6, (2, 2), groups=2, transposed=True, name="conv")
    out = build.affine(y, name="bn")
    assert_folded(build, out)
    op, bn = build.nodes[0].op, build.nodes[1].op
    assert isinstance(op, Conv)
    assert isinstance(bn, Affine)
    assert op.bias is not None
    bias = op.bias.mapped(lambda c: bn.affine.scale * c + bn.affine.shift)
    minor = bn.affine.scale.reshape(3, 2).T.reshape(2, 1, 3, 1, 1)

    def by_minor(w: np.ndarray) -> np.ndarray:
        return (w.reshape(2, 2, 3, 2, 2) * minor).reshape(w.shape)

    wrong = replace(op, weight=op.weight.mapped(by_minor), bias=bias)
    assert apart(build, out, {"conv": wrong}) > 1e-2


def test_an_affine_on_a_spatial_axis_as_long_as_the_channels_is_refused() -> None:
    build = Build()
    y = build.conv(build.input(None, 3, 6, 6), 4, (3, 3), bias=False, name="conv")
    out = build.affine(y, axis=3, shift=False, name="bn")
    assert build.shape(out) == (None, 4, 4, 4)
    assert_kept(build, Reason.WRONG_AXIS, out)
    op, bn = build.nodes[0].op, build.nodes[1].op
    assert isinstance(op, Conv)
    assert isinstance(bn, Affine)
    wrong = replace(op, weight=op.weight.mapped(lambda w: w * bn.affine.scale.reshape(-1, 1, 1, 1)))
    assert apart(build, out, {"conv": wrong}) > 1e-2


@pytest.mark.parametrize("direction", ["up", "down"])
def test_where_the_rank_is_unknown_the_channels_cannot_be_found(direction: str) -> None:
    build = Build()
    x = build.input(None, 3, 5, 5)
    out = (
        build.affine(build.conv(x, 2, (3, 3)))
        if direction == "up"
        else build.conv(build.affine(x), 2, (3, 3))
    )
    plan = make_plan(without_shapes(build.graph(out)))
    reason = Reason.UNKNOWN_SHAPE
    assert [s.reason for s in plan.sites] == [reason]
    uniform = Build()
    x = uniform.input(None, 3, 5, 5)
    out = (
        uniform.affine(uniform.conv(x, 2, (3, 3)), None)
        if direction == "up"
        else uniform.conv(uniform.affine(x, None), 2, (3, 3))
    )
    assert make_plan(without_shapes(uniform.graph(out))).affines.kept == 0


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_a_scale_of_zero_folds_like_any_other(after: bool) -> None:
    build = Build()
    x = build.input(None, 3, 5, 5)
    a = Affine(ChannelAffine.on_axis(1, np.array([0.0, 2.0, 0.0]), np.array([1.0, 0.0, 0.0])))
    if after:
        assert_folded(build, build.node(a, build.conv(x, 3, (3, 3))))
    else:
        assert_folded(build, build.conv(build.node(a, x), 3, (3, 3)))


def test_a_new_bias_takes_the_type_of_the_weight_and_an_edited_one_keeps_its_name() -> None:
    build = Build()
    x = build.input(None, 2, 4, 4)
    half = param("half", build.numbers(3, 2, 1, 1), "float16")
    y = build.affine(build.conv(x, 3, (1, 1), weight=half, bias=False, name="a"))
    z = build.affine(build.conv(x, 3, (1, 1), name="b"))
    after = {node.name: node.op for node in planned(build, y, z).after.nodes}
    a, b = after["a"], after["b"]
    assert isinstance(a, Conv)
    assert isinstance(b, Conv)
    assert (a.bias.name, a.bias.dtype) == ("a.bias", "float16")  # type: ignore[union-attr]
    assert isinstance(b.bias, Param)
    assert b.bias.name == "c2"


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_a_thousand_affines_fold_into_one_convolution(after: bool) -> None:
    build = Build()
    a = Affine(ChannelAffine.on_axis(1, np.array([1.001, -1.0]), np.array([0.001, 0.002])))
    value = build.input(None, 2, 3, 3)
    if after:
        value = build.conv(value, 2, (2, 2))
    for _ in range(1000):
        value = build.node(a, value)
    if not after:
        value = build.conv(value, 2, (2, 2))
    assert_folded(build, value)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_affine_of_an_unbatched_value_lies_on_axis_zero(axis: int) -> None:
    build = Build()
    y = build.conv(build.input(3, 5, 5), 3, (3, 3))
    out = build.affine(y, axis)
    if axis == 0:
        assert_folded(build, out)
    else:
        assert_kept(build, Reason.WRONG_AXIS, out)


def test_a_value_without_room_for_channels_is_malformed() -> None:
    build = Build()
    with pytest.raises(MalformedGraphError, match="2 spatial axes on shape"):
        build.conv(build.input(None, 3, 5, 5, 5), 3, (3, 3))


def test_the_table_knows_every_direction() -> None:
    assert RULES[Conv] == (conv.up, conv.down)
