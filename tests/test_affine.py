"""The BatchNorm formula, and the arithmetic of channel affines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bnfold.affine import ChannelAffine, from_batchnorm, identity, join
from bnfold.refusal import Reason, Refusal
from tests.graphs import close

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


def _random(rng: np.random.Generator, axis: int | None, size: int) -> ChannelAffine:
    size = 1 if axis is None else size
    return ChannelAffine(axis, rng.normal(size=size), rng.normal(size=size))


@given(SEED, st.sampled_from([None, 1]), st.sampled_from([None, 1]), st.integers(1, 4))
def test_composition_is_application_in_turn(
    seed: int, first: int | None, second: int | None, channels: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = _random(rng, first, channels), _random(rng, second, channels)
    x = rng.normal(size=(2, channels, 3))
    both = b.after(a)
    assert both is not None
    assert close(both.on(x), b.on(a.on(x)))


def test_affines_on_two_axes_do_not_compose() -> None:
    rng = np.random.default_rng(0)
    assert _random(rng, 1, 3).after(_random(rng, 2, 3)) is None


def test_a_uniform_affine_lies_on_every_axis_and_another_only_on_its_own() -> None:
    rng = np.random.default_rng(0)
    uniform, own = _random(rng, None, 1), _random(rng, 1, 3)
    x = rng.normal(size=(2, 3, 4))
    spread = uniform.spread(2, 4)
    assert spread is not None
    assert close(spread.on(x), uniform.on(x))
    assert own.spread(1, 3) is own
    assert own.spread(2, 3) is None
    assert own.spread(1, 4) is None
    assert uniform.at(2) is uniform
    assert uniform.take(slice(0, 1)) is uniform


def test_segments_join_again() -> None:
    rng = np.random.default_rng(0)
    a = _random(rng, 1, 5)
    again = join(1, [a.take(slice(0, 2)), a.take(slice(2, 5))])
    assert (again.scale == a.scale).all()
    assert (again.shift == a.shift).all()


def test_what_is_identity_shift_and_uniform() -> None:
    one = identity(1, 3)
    assert one.is_identity
    assert one.is_uniform
    assert not one.shifts
    assert not ChannelAffine(1, np.ones(2), np.array([0.0, 1.0])).is_uniform
    assert not ChannelAffine(1, np.array([1.0, 2.0]), np.zeros(2)).is_uniform
    shifted = ChannelAffine(1, np.ones(2), np.ones(2))
    assert shifted.shifts
    assert shifted.without_shift().is_identity
    assert shifted.as_uniform().axis is None
