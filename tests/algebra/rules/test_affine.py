"""Affines meeting affines: BatchNorm chains, and multiplications and additions by constants."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine, Node, Shape
from bnfold.algebra.plan import Outcome
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rules import RULES
from tests.algebra.graphs import Build, planned, site

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


@pytest.mark.parametrize(("first", "second"), [("scale", "shift"), ("shift", "scale")])
@pytest.mark.parametrize("after", [True, False], ids=["layer after", "layer before"])
def test_what_a_node_has_no_room_for_is_passed_on(first: Holds, second: Holds, after: bool) -> None:
    """Behind the pads of a convolution a shift stays, in one node: the scale folds."""
    build = Build()
    x = build.input(None, 3, 4)
    x = x if after else build.relu(build.conv(x, 3, (1,)))
    y = build.affine(build.affine(x, holds=first, name="first"), holds=second, name="second")
    if after:
        y = build.conv(y, 2, (3,), pads=((1, 1),))
    plan = planned(build, y)
    left = [node for node in plan.after.nodes if isinstance(node.op, Affine)]
    assert len(left) == (1 if after else 2)
    if after:
        assert isinstance(left[0].op, Affine)
        assert left[0].op.holds == "shift"


def test_a_shift_is_not_divided_by_a_scale_of_zero() -> None:
    build = Build()
    dead = ChannelAffine.on_axis(1, np.array([1.0, 0.0, 2.0]), np.zeros(3))
    a = build.node(Affine(dead, False, "scale"), build.relu(build.input(None, 3, 4)), name="dead")
    plan = planned(build, build.relu(build.affine(a, holds="shift", name="shift")))
    (why,) = {s.reason for s in plan.sites if s.name == "shift"}
    assert why is Reason.FORM


def test_a_multiplication_that_becomes_one_is_still_a_multiplication() -> None:
    build = Build()
    x = build.input(None, 3, 4)
    for number in range(5):
        x = build.affine(x, holds="scale", name=f"mul{number}")
    plan = planned(build, x)
    assert plan.affines.kept == 1
    assert {s.into for s in plan.sites} == {("mul0",), ()}


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_node_of_one_number_takes_channels_where_their_number_is_known(direction: str) -> None:
    one = Affine(ChannelAffine.on_axis(None, np.full(1, 2.0), np.ones(1)))
    node = Node("one", "Affine", one, ("x",), ("y",))
    three = ChannelAffine.on_axis(1, np.arange(3.0), np.ones(3))
    both = ChannelAffine((1, 2), np.arange(6.0).reshape(3, 2), np.ones((3, 2)))

    def answer(affine: ChannelAffine, shape: Shape | None) -> object:
        found = getattr(RULES[Affine], direction)(one, node, affine, 0, {"x": shape})
        return found.reason if isinstance(found, Refusal) else found[0].node.op.affine.scale.shape

    assert answer(three, (None, 3, 2)) == (3,)
    assert answer(three, (None, 6, 2)) == (6,)
    assert answer(three, (None, None, 2)) is Reason.UNKNOWN_SHAPE
    assert answer(three, None) is Reason.UNKNOWN_SHAPE
    assert answer(both, (None, 3, 2)) is Reason.FORM


@given(st.integers(0, 1 << 20), st.integers(1, 2), st.booleans())
def test_channels_that_are_split_take_up_an_affine_of_either_part(
    seed: int, axis: int, first: bool
) -> None:
    build = Build(seed)
    x = build.input(None, 6, 4) if first else build.input(None, 2, 3, 4)
    a = build.affine(x, 1 if first else axis, name="first")
    parts = build.reshape(a, None, 2, 3, 4) if first else build.reshape(a, None, 6, 4)
    plan = planned(build, build.relu(build.affine(parts, axis if first else 1, name="second")))
    into, kept = ("first", "second") if first else ("second", "first")
    assert site(plan, kept).into == (into,)


def test_an_affine_meets_one_on_the_other_side_of_a_split_on_its_own_axis() -> None:
    build = Build()
    a = build.affine(build.input(None, 6, 4), name="six")
    back = build.reshape(build.reshape(a, None, 2, 3, 4), None, 6, 4)
    plan = planned(build, build.relu(build.affine(back, name="again")))
    assert site(plan, "again").into == ("six",)


@pytest.mark.parametrize("own", [None, 1])
@pytest.mark.parametrize(("others", "left"), [([1], 1), ([1, 1], 1), ([1, 2], 3), ([2, 2], 1)])
def test_affines_that_meet_in_a_sum_become_one_only_if_one_node_can_hold_it(
    own: int | None, others: list[int], left: int
) -> None:
    build = Build()
    x = build.input(None, 3, 4)
    terms = [build.affine(x, axis) for axis in (own, *others)]
    plan = planned(build, build.relu(build.add(*terms)))
    assert plan.affines.kept == (3 if own == 1 and 2 in others else left)


SPELLINGS = {
    "(x / 255 - mean) / std": "scale shift scale",
    "(x - mean) / std": "shift scale",
    "x * a + b": "scale shift",
    "x / 255 / std - mean / std": "scale scale shift",
    "(x - 0.5) / 0.5 + b": "shift scale shift",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("axis", [None, 1])
def test_preprocessing_before_a_padded_convolution_leaves_one_addition(
    spelling: str, axis: int | None
) -> None:
    """The scale goes into the convolution past additions; the shift cannot, where zeros are."""
    build = Build()
    x = build.input(None, 3, 6, 5)
    for number, holds in enumerate(spelling.split()):
        assert holds in ("scale", "shift")
        x = build.affine(x, axis, holds=holds, name=f"step{number}")
    plan = planned(build, build.relu(build.conv(x, 4, (3, 3), pads=((1, 1), (1, 1)))))
    (left,) = (node.op for node in plan.after.nodes if isinstance(node.op, Affine))
    assert left.holds == "shift"


def test_learnable_affines_behind_a_hard_swish_leave_one_addition() -> None:
    """Cui et al. 2021, arXiv:2109.15099 (PP-LCNet): a number times, and a number more."""
    build = Build()
    x = build.conv(build.input(None, 4, 6, 5), 4, (3, 3), name="first")
    x = build.affine(build.affine(x, None, holds="scale"), None, holds="shift")
    x = build.multiply(x, build.relu(x))
    x = build.affine(build.affine(x, None, holds="scale"), None, holds="shift", name="after")
    plan = planned(build, build.relu(build.conv(x, 4, (3, 3), pads=((1, 1), (1, 1)))))
    assert [s.name for s in plan.sites if s.outcome is Outcome.KEPT] == ["after"]


def test_the_scale_of_a_layer_goes_into_the_layer() -> None:
    """Touvron et al. 2021, arXiv:2103.17239, 2 (LayerScale): x + gamma * f(x)."""
    build = Build()
    x = build.relu(build.input(None, 5, 4))
    y = build.linear(build.relu(build.linear(x, 7)), 4, name="last")
    y = build.affine(y, 2, holds="scale", name="gamma")
    plan = planned(build, build.relu(build.add(x, y)))
    assert site(plan, "gamma").into == ("last",)
