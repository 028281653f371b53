"""Affines meeting affines: BatchNorm chains, and multiplications and additions by constants."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.graph import Affine
from bnfold.plan import Outcome
from bnfold.refusal import Reason
from tests.graphs import Build, planned, site

AXES = st.sampled_from([None, 1, 2])


@given(st.integers(0, 1 << 20), AXES, AXES, st.integers(2, 4))
def test_two_affines_become_one_exactly_when_their_axes_agree(
    seed: int, first: int | None, second: int | None, channels: int
) -> None:
    build = Build(seed)
    x = build.input(None, channels, 3)
    a = build.affine(x, first, name="first")
    plan = planned(build, build.affine(a, second, name="second"))
    if None in (first, second) or first == second:
        assert site(plan, "second").into == ("first",)
        assert site(plan, "first").outcome is Outcome.KEPT
    else:
        assert {s.outcome for s in plan.sites} == {Outcome.KEPT}
        assert Reason.FORM in {s.reason for s in plan.sites}


@given(st.integers(0, 1 << 20), st.integers(1, 4))
def test_an_affine_after_one_that_has_to_stay_is_taken_up_by_it(seed: int, channels: int) -> None:
    build = Build(seed)
    x = build.input(None, channels, 5)
    a = build.relu(build.affine(x, sign="plus", name="first"))
    plan = planned(build, build.affine(a, shift=False, sign="plus", name="second"))
    assert site(plan, "second").into == ("first",)
    assert site(plan, "first").outcome is Outcome.KEPT


FORMS = ["both", "scale", "shift"]
Holds = Literal["both", "scale", "shift"]


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_a_node_takes_only_what_its_native_form_can_hold(first: Holds, second: Holds) -> None:
    build = Build()
    a = build.affine(build.input(None, 3, 4), holds=first, name="first")
    plan = planned(build, build.affine(a, holds=second, name="second"))
    left = [node for node in plan.after.nodes if isinstance(node.op, Affine)]
    for node in left:
        assert isinstance(node.op, Affine)
        if node.op.holds == "scale":
            assert not node.op.affine.shifts
        if node.op.holds == "shift":
            assert (node.op.affine.scale == 1).all()
    mixed = {first, second} == {"scale", "shift"}
    assert len(left) == (2 if mixed else 1)
    if mixed:
        assert {s.reason for s in plan.sites} == {Reason.FORM}
        assert "has no room for a" in str(plan)


def test_a_multiplication_that_becomes_one_is_still_a_multiplication() -> None:
    build = Build()
    x = build.input(None, 3, 4)
    for number in range(5):
        x = build.affine(x, holds="scale", name=f"mul{number}")
    plan = planned(build, x)
    assert plan.affines.kept == 1
    assert {s.into for s in plan.sites} == {("mul0",), ()}
