"""Affines and linear layers: the features are the last axis, whatever the rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.graph import Affine, Linear
from bnfold.algebra.planner import make_plan
from bnfold.algebra.refusal import Reason
from tests.algebra.graphs import Build, apart, assert_folded, assert_kept, without_shapes

SIZES = st.lists(st.integers(1, 5), min_size=0, max_size=3)


def _input(build: Build, sizes: list[int], features: int) -> str:
    return build.input(*[None, *sizes[1:]][: len(sizes)], features)


@given(st.integers(0, 1 << 20), SIZES, st.integers(1, 6), st.integers(1, 6), *[st.booleans()] * 2)
def test_an_affine_on_the_features_folds_into_the_layer_before_it(
    seed: int, sizes: list[int], cin: int, cout: int, bias: bool, uniform: bool
) -> None:
    build = Build(seed)
    x = _input(build, sizes, cin)
    y = build.linear(x, cout, bias=bias)
    assert_folded(build, build.affine(y, None if uniform else len(sizes)))


@given(st.integers(0, 1 << 20), SIZES, st.integers(1, 6), st.integers(1, 6), *[st.booleans()] * 2)
def test_an_affine_on_the_features_folds_into_the_layer_after_it(
    seed: int, sizes: list[int], cin: int, cout: int, bias: bool, uniform: bool
) -> None:
    build = Build(seed)
    x = _input(build, sizes, cin)
    a = build.affine(x, None if uniform else len(sizes))
    assert_folded(build, build.linear(a, cout, bias=bias))


@given(st.integers(0, 1 << 20), st.integers(2, 6), st.integers(1, 6), *[st.booleans()] * 2)
def test_an_affine_on_another_axis_stays(
    seed: int, length: int, features: int, after: bool, shift: bool
) -> None:
    build = Build(seed)
    x = build.input(None, length, features)
    out = (
        build.affine(build.linear(x, features), 1, shift=shift)
        if after
        else build.linear(build.affine(x, 1, shift=shift), features)
    )
    left = assert_kept(build, Reason.WRONG_AXIS, out)
    assert "on axis 1" in (left.why or "")
    assert "features are on axis 2" in (left.why or "")


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_batchnorm_over_the_length_is_not_folded_even_where_the_length_equals_the_features(
    after: bool,
) -> None:
    build = Build()
    x = build.input(None, 4, 4)
    if after:
        out = build.affine(build.linear(x, 4, bias=False, name="fc"), 1, shift=False, name="bn")
    else:
        a = build.affine(x, 1, shift=False, name="bn")
        out = build.linear(a, 4, bias=False, name="fc")
    assert_kept(build, Reason.WRONG_AXIS, out)
    ops = {n.name: n.op for n in build.nodes}
    fc, bn = ops["fc"], ops["bn"]
    assert isinstance(fc, Linear)
    assert isinstance(bn, Affine)
    scale = bn.affine.scale[:, None] if after else bn.affine.scale
    wrong = replace(fc, weight=fc.weight.mapped(lambda w: w * scale))
    assert apart(build, out, {"fc": wrong}) > 1e-2


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_where_the_rank_is_unknown_the_features_cannot_be_found(after: bool) -> None:
    def reasons(axis: int | None) -> list[Reason | None]:
        build = Build()
        x = build.input(None, 3)
        out = (
            build.affine(build.linear(x, 3), axis)
            if after
            else build.linear(build.affine(x, axis), 3)
        )
        return [s.reason for s in make_plan(without_shapes(build.graph(out))).sites]

    assert reasons(1) == [Reason.UNKNOWN_SHAPE]
    assert reasons(None) == [None]


def test_affines_on_both_sides_fold_together() -> None:
    build = Build()
    a = build.affine(build.affine(build.input(None, 7), 1), 1)
    assert_folded(build, build.affine(build.linear(a, 5, bias=False), 1))
