"""The BatchNorm formula, and the arithmetic of channel affines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.affine import (
    UNIT,
    Array,
    ChannelAffine,
    from_batchnorm,
    identity,
    to_batchnorm,
)
from bnfold.algebra.refusal import Reason, Refusal
from tests.algebra.graphs import close

SEED = st.integers(0, 1 << 20)


@given(
    SEED,
    st.integers(1, 5),
    st.sampled_from([1e-5, 1e-3, 0.0, 0.5]),
    st.booleans(),
    st.integers(0, 3),
)
def test_the_formula_is_that_of_torch(
    seed: int, channels: int, eps: float, weighted: bool, spatial: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, channels, *[4] * spatial))
    mean, var = rng.normal(size=channels), rng.uniform(0.1, 3, channels)
    gamma, beta = rng.normal(size=(2, channels)) if weighted else (None, None)
    affine = from_batchnorm(1, mean, var, eps, gamma, beta)
    assert isinstance(affine, ChannelAffine)
    tensors = [None if a is None else torch.tensor(a) for a in (mean, var, gamma, beta)]
    wanted = F.batch_norm(torch.tensor(x), *tensors, eps=eps)  # type: ignore[arg-type, misc]
    assert close(affine.on(x), wanted.numpy())


@given(SEED, st.sampled_from([1e-5, 0.0, 0.5]))
def test_an_affine_is_written_into_a_batchnorm_of_any_statistics(seed: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    affine = ChannelAffine((1,), *rng.normal(size=(2, 5)))
    mean, var = rng.normal(size=5), rng.uniform(0.1, 3, 5)
    back = from_batchnorm(1, mean, var, eps, *to_batchnorm(affine, mean, var, eps))
    assert isinstance(back, ChannelAffine)
    assert close(back.scale, affine.scale)
    assert close(back.shift, affine.shift)


BAD = {
    "a mean that is NaN": ({"mean": np.nan}, Reason.NON_FINITE, "running_mean of channel 1 is nan"),
    "an infinite variance": ({"var": np.inf}, Reason.NON_FINITE, "running_var of channel 1 is inf"),
    "a gamma that is NaN": ({"gamma": np.nan}, Reason.NON_FINITE, "gamma of channel 1 is nan"),
    "an infinite beta": ({"beta": -np.inf}, Reason.NON_FINITE, "beta of channel 1 is -inf"),
    "a negative variance": (
        {"var": -1.0},
        Reason.NON_POSITIVE_VARIANCE,
        "running_var + eps of channel 1 is -0.99999, not above zero",
    ),
    "a variance that cancels eps": (
        {"var": -1e-5},
        Reason.NON_POSITIVE_VARIANCE,
        "running_var + eps of channel 1 is 0, not above zero",
    ),
}


@pytest.mark.parametrize(("change", "reason", "why"), BAD.values(), ids=BAD)
def test_refused_with_the_channel_named(change: dict[str, float], reason: Reason, why: str) -> None:
    arrays = {name: np.ones(3) for name in ("mean", "var", "gamma", "beta")}
    for name, value in change.items():
        arrays[name][1] = value
    refusal = from_batchnorm(1, eps=1e-5, **arrays)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, str(refusal)) == (reason, why)


def test_a_variance_of_zero_without_eps_is_refused_and_with_it_is_not() -> None:
    zeros = np.zeros(2)
    refusal = from_batchnorm(1, zeros, zeros, 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.NON_POSITIVE_VARIANCE
    assert isinstance(from_batchnorm(1, zeros, zeros, 1e-5), ChannelAffine)


def test_parameters_of_unequal_length_are_refused() -> None:
    refusal = from_batchnorm(1, np.ones(3), np.ones(3), 1e-5, np.ones(2))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.MISMATCHED_CHANNELS
    assert "gamma [2]" in refusal.why


SHAPE = (2, 6, 4)
"""Of the data that the affines below act on."""


@st.composite
def affines(draw: st.DrawFn) -> ChannelAffine:
    """On any axes, at any length that divides them; of few numbers, to be equal at times."""
    axes = tuple(sorted(draw(st.sets(st.integers(0, 2)))))
    lengths = [
        draw(st.sampled_from([n for n in (1, 2, 3, 4, 6) if SHAPE[i] % n == 0])) for i in axes
    ]
    rng = np.random.default_rng(draw(SEED))
    few = draw(st.integers(1, 3))
    scale, shift = rng.integers(-few, few, (2, *lengths)) / 2
    return ChannelAffine(axes, scale, shift)


def whole(a: ChannelAffine) -> tuple[Array, Array]:
    """Scale and shift of every element: what the affine means."""
    one, two = a.on(np.zeros(SHAPE)), a.on(np.ones(SHAPE))
    return two - one, one


def same(a: ChannelAffine, b: ChannelAffine) -> bool:
    return all(map(np.array_equal, whole(a), whole(b)))


@given(affines())
def test_the_numbers_repeat_along_their_axes(a: ChannelAffine) -> None:
    scale, shift = whole(a)
    for index in np.ndindex(SHAPE):
        own = tuple(index[axis] % a.length(axis) for axis in a.axes)
        assert (scale[index], shift[index]) == (a.scale[own], a.shift[own])


@given(affines(), affines(), SEED)
def test_composition_and_sum_are_those_of_numpy(
    a: ChannelAffine, b: ChannelAffine, seed: int
) -> None:
    x = np.random.default_rng(seed).integers(-8, 8, SHAPE) / 4
    assert np.array_equal(b.after(a).on(x), b.on(a.on(x)))
    assert np.array_equal(a.plus(b).on(x), a.on(x) + b.on(x))
    assert np.array_equal(a.times(-0.5).on(x), -0.5 * a.on(x))
    assert np.array_equal(a.without_shift().on(x), a.on(x) - a.on(np.zeros(SHAPE)))


@given(affines())
def test_what_is_reduced_is_the_same_in_the_fewest_numbers(a: ChannelAffine) -> None:
    least = a.reduced()
    assert same(least, a)
    for axis in least.axes:
        numbers = np.moveaxis(np.stack((least.scale, least.shift)), least.axes.index(axis) + 1, 0)
        shorter = [n for n in range(1, len(numbers)) if len(numbers) % n == 0]
        assert len(numbers) > 1
        assert not any(np.array_equal(np.roll(numbers, n, 0), numbers) for n in shorter)


@given(affines(), st.sets(st.integers(0, 2)))
def test_an_affine_is_freed_of_axes_exactly_if_it_does_not_vary_along_them(
    a: ChannelAffine, axes: set[int]
) -> None:
    numbers = np.stack(whole(a))
    constant = all(np.array_equal(numbers, np.roll(numbers, 1, axis + 1)) for axis in axes)
    left = a.without(*axes)
    assert (left is not None) == constant
    if left is not None:
        assert same(left, a)
        assert not axes & set(left.axes)


@given(affines(), st.integers(0, 2))
def test_an_affine_is_spread_over_one_axis_exactly_if_it_varies_along_no_other(
    a: ChannelAffine, axis: int
) -> None:
    others = [i for i in range(3) if i != axis]
    spread = a.spread(axis, SHAPE[axis])
    assert (spread is None) == (a.without(*others) is None)
    if spread is not None:
        assert spread.axes == (axis,)
        assert spread.scale.shape == (SHAPE[axis],)
        assert same(spread, a)


def test_numbers_that_do_not_fit_an_axis_are_not_spread() -> None:
    three = ChannelAffine.on_axis(1, np.arange(3.0), np.zeros(3))
    assert three.spread(1, 3) is three
    assert three.spread(1, 4) is None
    assert three.spread(2, 3) is None
    assert three.placed(1, range(4), 8) is None


@given(affines(), st.permutations([0, 1, 2]))
def test_an_affine_moves_with_the_axes_of_its_data(a: ChannelAffine, perm: list[int]) -> None:
    x = np.random.default_rng(0).integers(-8, 8, SHAPE) / 4
    moved = a.moved([perm.index(axis) for axis in a.axes])
    assert list(moved.axes) == sorted(moved.axes)
    assert np.array_equal(moved.on(x.transpose(perm)), a.on(x).transpose(perm))
    assert np.array_equal(a.moved_by(1).on(x[None]), a.on(x)[None])


@given(affines(), st.integers(0, 2), st.data())
def test_indices_taken_out_of_an_axis_and_put_into_one(
    a: ChannelAffine, axis: int, data: st.DataObject
) -> None:
    x = np.random.default_rng(0).integers(-8, 8, SHAPE) / 4
    some = data.draw(st.lists(st.integers(0, SHAPE[axis] - 1), min_size=1, max_size=5))
    assert np.array_equal(a.take(axis, some).on(x.take(some, axis)), a.on(x).take(some, axis))

    wide = list(data.draw(st.permutations(range(SHAPE[axis] + 3))))[: SHAPE[axis]]
    placed = a.placed(axis, wide, SHAPE[axis] + 3)
    assert placed is not None
    big = np.zeros([n + 3 * (i == axis) for i, n in enumerate(SHAPE)]) + 1.5
    there = (slice(None),) * axis + (wide,)
    want = big.copy()
    want[there] = a.on(big[there])
    assert np.array_equal(placed.on(big), want)


def test_what_is_identity_shift_and_uniform() -> None:
    one = identity(1, 3)
    assert one.is_identity
    assert one.is_uniform
    assert not one.shifts
    assert UNIT.is_identity
    assert not ChannelAffine.on_axis(1, np.ones(2), np.array([0.0, 1.0])).is_uniform
    assert not ChannelAffine.on_axis(1, np.array([1.0, 2.0]), np.zeros(2)).is_uniform
    shifted = ChannelAffine.on_axis(1, np.ones(2), np.ones(2))
    assert shifted.shifts
    assert shifted.without_shift().is_identity
    assert (shifted.axis, UNIT.axis) == (1, None)


def test_an_affine_without_channels_is_none_of_one_number() -> None:
    nothing = ChannelAffine.on_axis(1, np.zeros(0), np.zeros(0))
    assert nothing.reduced().size == 0
    assert nothing.without(1) is None
    assert nothing.spread(1, 4) is None
    assert nothing.spread(1, 0) is nothing
