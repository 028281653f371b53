"""Affines and the division of an axis: split, chunk, slice, selection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.refusal import Reason
from tests.graphs import Build, assert_folded, assert_kept, planned, site

SEED = st.integers(0, 1 << 20)


@given(SEED, st.permutations(range(6)), st.integers(1, 5), st.booleans())
def test_a_part_hands_its_affine_to_its_own_channels(
    seed: int, order: list[int], cut: int, uniform: bool
) -> None:
    build = Build(seed)
    y = build.conv(build.input(None, 2, 4, 4), 6, (1, 1), name="conv")
    first, second = build.take(y, 1, order[:cut], order[cut:])
    out = build.relu(build.affine(first, None if uniform else 1, name="bn"))
    plan = assert_folded(build, out, build.relu(second))
    assert site(plan, "bn").into == ("conv",)


@given(SEED, st.integers(1, 5))
def test_both_parts_hand_theirs(seed: int, cut: int) -> None:
    build = Build(seed)
    y = build.conv(build.input(None, 2, 4, 4), 6, (1, 1))
    parts = build.take(y, 1, range(cut), range(cut, 6))
    assert_folded(build, *[build.relu(build.affine(part)) for part in parts])


@given(SEED, st.lists(st.integers(0, 5), min_size=1, max_size=8), st.booleans())
def test_every_part_takes_what_it_holds_of_an_affine_before(
    seed: int, picked: list[int], other_axis: bool
) -> None:
    build = Build(seed)
    a = build.affine(build.input(None, 6, 6, 4))
    parts = build.take(a, 2 if other_axis else 1, picked, [0, 3])
    assert_folded(build, *[build.relu(build.conv(part, 2, (1, 1))) for part in parts])


def test_a_crop_lets_the_channels_pass() -> None:
    build = Build()
    y = build.conv(build.input(None, 2, 6, 4), 3, (1, 1))
    (crop,) = build.take(y, 2, [1, 2, 3])
    assert_folded(build, build.relu(build.affine(crop)))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("the parts overlap", Reason.OTHER_READERS),
        ("a channel is taken twice", Reason.OTHER_READERS),
        ("the rest of the axis is cut off elsewhere", Reason.OTHER_READERS),
        ("the undivided value is read as well", Reason.OTHER_READERS),
    ],
)
def test_a_part_refuses_when(case: str, reason: Reason) -> None:
    build = Build()
    y = build.conv(build.input(None, 2, 6, 4), 4, (1, 1))
    ends: list[str] = []
    match case:
        case "the parts overlap":
            part, other = build.take(y, 1, [0, 1, 2], [2, 3])
            ends.append(build.relu(other))
        case "a channel is taken twice":
            (part,) = build.take(y, 1, [0, 1, 1])
        case "the rest of the axis is cut off elsewhere":
            part, other = build.take(y, 2, [0, 1, 2], [3, 4, 5])
            ends.append(build.relu(other))
        case _:
            (part,) = build.take(y, 1, [0, 1])
            ends.append(build.relu(y))
    out = build.affine(part)
    assert_kept(build, reason, build.relu(out), *ends)


def test_parts_of_another_axis_would_be_wrong_to_change() -> None:
    """Why ALONE is asked for: the other part would be scaled too."""
    build = Build()
    y = build.conv(build.input(None, 2, 6, 4), 4, (1, 1))
    part, other = build.take(y, 2, [0, 1, 2], [3, 4, 5])
    plan = planned(build, build.relu(build.affine(part, name="bn")), build.relu(other))
    assert site(plan, "bn").into == ()
