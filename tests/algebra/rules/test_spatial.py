"""Affines and padding, and resizing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine, Node, Pad
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rules.spatial import pad_down, pad_up
from tests.algebra.graphs import Build, assert_folded, assert_kept

SEED = st.integers(0, 1 << 20)
SIDES = ((0, 0), (0, 0), (1, 2), (0, 1))


@given(SEED, st.sampled_from(["reflect", "replicate", "circular"]), st.booleans())
def test_a_pad_that_repeats_the_data_passes(seed: int, mode: str, after: bool) -> None:
    build = Build(seed)
    x = build.input(None, 3, 5, 5)
    if after:
        out = build.affine(build.pad(build.conv(x, 4, (1, 1)), SIDES, mode))
    else:
        out = build.conv(build.pad(build.affine(x), SIDES, mode), 2, (3, 3))
    assert_folded(build, build.relu(out))


@given(SEED, st.booleans())
def test_padded_zeros_take_a_scale(seed: int, after: bool) -> None:
    build = Build(seed)
    x = build.input(None, 3, 5, 5)
    if after:
        out = build.affine(build.pad(build.conv(x, 4, (1, 1)), SIDES), shift=False)
    else:
        a = build.affine(x, shift=False)
        out = build.conv(build.pad(a, SIDES), 2, (3, 3))
    assert_folded(build, build.relu(out))


@given(SEED, st.floats(-2, 2), st.booleans())
def test_one_affine_for_all_channels_changes_the_number_padded(
    seed: int, number: float, after: bool
) -> None:
    build = Build(seed)
    x = build.input(None, 3, 5, 5)
    if after:
        out = build.affine(build.pad(build.conv(x, 4, (1, 1)), SIDES, number=number), None)
    else:
        a = build.affine(x, None)
        out = build.conv(build.pad(a, SIDES, number=number), 2, (3, 3))
    plan = assert_folded(build, build.relu(out))
    (pad,) = (node.op for node in plan.after.nodes if isinstance(node.op, Pad))
    assert pad.value != number


def test_padding_with_minus_infinity_stays_so() -> None:
    """As before a maximum, under scales above zero."""
    op = Pad(SIDES, "constant", -np.inf)
    node = Node("pad", "Pad", op, ("x",), ("y",))
    affine = ChannelAffine.on_axis(1, np.array([2.0, 0.5]), np.array([1.0, -1.0]))
    for rule in (pad_up, pad_down):
        answer = rule(op, node, affine, 0, {})
        assert isinstance(answer, tuple)
        assert answer[0].node is node


@pytest.mark.parametrize("after", [True, False], ids=["after it", "before it"])
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("the shift of each channel would need a number of its own", Reason.ZERO_PADDING),
        ("the channels themselves are padded", Reason.WRONG_AXIS),
    ],
)
def test_a_pad_refuses_when(case: str, reason: Reason, after: bool) -> None:
    build = Build()
    x = build.input(None, 3, 5, 5)
    sides = SIDES if reason is Reason.ZERO_PADDING else ((0, 0), (1, 0), (0, 0), (0, 0))
    if after:
        out = build.relu(build.affine(build.pad(build.conv(x, 4, (1, 1)), sides)))
    else:
        out = build.relu(build.conv(build.pad(build.affine(x), sides), 2, (1, 1)))
    assert_kept(build, reason, out)


def test_a_scale_of_zero_cannot_be_taken_out_of_a_pad() -> None:
    build = Build()
    zero = Affine(ChannelAffine.on_axis(None, np.zeros(1), np.ones(1)))
    a = build.node(zero, build.input(None, 3, 5, 5))
    assert_kept(build, Reason.ZERO_PADDING, build.relu(build.conv(build.pad(a, SIDES), 2, (3, 3))))


@given(SEED, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_resizing_passes(seed: int, high: int, wide: int, after: bool) -> None:
    build = Build(seed)
    x = build.input(None, 3, 4, 5)
    if after:
        out = build.affine(build.resize(build.conv(x, 4, (1, 1)), high, wide))
    else:
        out = build.conv(build.resize(build.affine(x), high, wide), 2, (3, 3))
    assert_folded(build, build.relu(out))


def test_resizing_over_the_channels_refuses() -> None:
    build = Build()
    y = build.conv(build.input(None, 3, 4), 4, (1,))
    assert_kept(build, Reason.WRONG_AXIS, build.relu(build.affine(build.resize(y, 2), 2)))
