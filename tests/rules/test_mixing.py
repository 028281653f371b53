"""Affines and means with computed weights, as in attention."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.refusal import Reason
from tests.graphs import Build, assert_folded, assert_kept

SEED = st.integers(0, 1 << 20)


@given(SEED, st.booleans(), st.booleans())
def test_the_features_of_the_values_pass(seed: int, after: bool, uniform: bool) -> None:
    build = Build(seed)
    x = build.input(None, 2, 5, 3)
    axis = None if uniform else 3
    if after:
        out = build.affine(build.mix(build.linear(x, 4)), axis)
    else:
        out = build.linear(build.mix(build.affine(x, axis)), 4)
    assert_folded(build, build.relu(out))


def test_heads_pass() -> None:
    build = Build()
    x = build.conv(build.input(None, 3, 5, 4), 2, (1, 1))
    assert_folded(build, build.relu(build.affine(build.mix(x), 1)))


@pytest.mark.parametrize("after", [True, False], ids=["after it", "before it"])
def test_the_axis_that_is_averaged_refuses(after: bool) -> None:
    build = Build()
    x = build.input(None, 4, 3)
    if after:
        out = build.affine(build.mix(build.linear(x, 3)), 1)
    else:
        out = build.linear(build.mix(build.affine(x, 1)), 2)
    assert_kept(build, Reason.WRONG_AXIS, build.relu(out))


def test_an_affine_of_the_weights_refuses() -> None:
    build = Build()
    weights = build.affine(build.input(None, 4, 3), 2)
    values = build.input(None, 3, 2)
    from bnfold.graph import WeightedMean

    out = build.node(WeightedMean(), weights, values)
    assert_kept(build, Reason.NOT_LINEAR, build.relu(out))


def test_a_layer_that_could_take_the_averaged_axis_must_not() -> None:
    build = Build()
    values = build.conv(build.input(None, 3, 5), 4, (1,))
    assert_kept(build, Reason.WRONG_AXIS, build.relu(build.affine(build.mix(values), 1)))
