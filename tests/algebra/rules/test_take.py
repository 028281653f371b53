"""Affines and the division of an axis: split, chunk, slice, selection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.refusal import Reason
from tests.algebra.graphs import Build, assert_folded, assert_kept, site

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
        case _:
            (part,) = build.take(y, 1, [0, 1])
            ends.append(build.relu(y))
    out = build.affine(part)
    assert_kept(build, reason, build.relu(out), *ends)


@given(SEED, st.booleans())
def test_a_part_of_another_axis_leaves_the_other_part_alone(seed: int, first: bool) -> None:
    """The affine then varies along both axes, which a convolution cannot take."""
    build = Build(seed)
    y = build.conv(build.input(None, 2, 6, 4), 4, (1, 1))
    parts = build.take(y, 2, [0, 1, 2], [3, 4, 5])
    out = build.relu(build.affine(parts[not first]))
    assert_kept(build, Reason.NOT_UNIFORM, out, build.relu(parts[first]))


@given(SEED, st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_one_of_queries_keys_and_values_takes_an_affine_on_heads_and_features(
    seed: int, which: int, heads: int, width: int, after: bool
) -> None:
    """A layer makes all three at once: [N, L, 3 * h * d] -> [N, L, 3, h, d]."""
    build = Build(seed)
    x = build.input(None, 5, 4)
    qkv = build.linear(x, 3 * heads * width, name="qkv")
    parts = build.take(build.reshape(qkv, None, 5, 3, heads, width), 2, [0], [1], [2])
    flat = [build.reshape(part, None, 5, heads * width) for part in parts]
    if after:
        flat[which] = build.affine(flat[which], 2, name="bn")
    plan = assert_folded(build, *[build.relu(part) for part in flat])
    assert not after or site(plan, "bn").into == ("qkv",)
