"""Affines beside a normalisation by the data's own statistics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.graph import Identity
from bnfold.algebra.refusal import Reason
from tests.algebra.graphs import Build, apart, assert_folded, assert_kept

GROUPS = [0, 1, 2, 4]
seeds = st.integers(0, 1 << 20)


def behind(groups: int) -> int:
    """The axis of the weights of [N, 4, 3, 5]."""
    return 1 if groups else 3


@given(seeds, st.sampled_from(GROUPS), st.booleans(), st.booleans())
def test_its_weights_take_what_follows(seed: int, groups: int, bias: bool, shift: bool) -> None:
    build = Build(seed)
    y = build.norm(build.input(None, 4, 3, 5), groups=groups, bias=bias)
    assert_folded(build, build.affine(y, behind(groups), shift=shift))


@given(seeds, st.sampled_from(GROUPS))
def test_a_scale_goes_into_an_rmsnorm(seed: int, groups: int) -> None:
    build = Build(seed)
    y = build.norm(build.input(None, 4, 3, 5), groups=groups, bias=False, centred=False)
    assert_folded(build, build.affine(y, behind(groups), shift=False))


def test_an_rmsnorm_has_no_room_for_a_shift() -> None:
    build = Build()
    y = build.norm(build.input(None, 4, 3, 5), bias=False, centred=False)
    assert_kept(build, Reason.FORM, build.affine(y, 3))


@pytest.mark.parametrize("groups", GROUPS)
def test_an_affine_on_another_axis_stays(groups: int) -> None:
    """FEATURES: as many channels as columns."""
    build = Build()
    y = build.norm(build.input(None, 4, 3, 4), groups=groups)
    assert_kept(build, Reason.WRONG_AXIS, build.affine(y, 3 if groups else 1))


@given(seeds, st.sampled_from([(0, None), (0, 1), (0, 2), (1, None), (2, None), (4, 1), (4, None)]))
def test_a_shift_before_it_vanishes(seed: int, case: tuple[int, int | None]) -> None:
    groups, axis = case
    build = Build(seed)
    x = build.affine(build.input(None, 4, 3, 5), axis, holds="shift")
    assert_folded(build, build.norm(x, groups=groups))


@pytest.mark.parametrize(
    ("groups", "axis", "centred", "scales", "reason"),
    [
        (4, 1, True, True, Reason.NOT_LINEAR),
        (4, 1, False, False, Reason.NOT_LINEAR),
        (0, 3, True, False, Reason.WRONG_AXIS),
        (2, 1, True, False, Reason.WRONG_AXIS),
        (1, 1, True, False, Reason.WRONG_AXIS),
        (4, 2, True, False, Reason.WRONG_AXIS),
    ],
    ids=["NO_SCALE", "CENTRED", "ALIKE last", "ALIKE groups", "ALIKE one group", "ALIKE pixels"],
)
def test_what_does_not_vanish_stays(
    groups: int, axis: int, centred: bool, scales: bool, reason: Reason
) -> None:
    build = Build()
    holds = "both" if scales else "shift"
    x = build.affine(build.input(None, 4, 3, 5), axis, holds=holds, name="a")
    out = build.norm(x, groups=groups, centred=centred)
    assert_kept(build, reason, out)
    assert apart(build, out, {"a": Identity()}) > 1e-3
