"""Scales and activations: ReLU, LeakyReLU and PReLU pass a scale of zero or above, nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.affine import ChannelAffine
from bnfold.algebra.graph import Affine
from bnfold.algebra.refusal import Reason
from tests.algebra.graphs import Build, assert_folded, assert_kept, close

SEED = st.integers(0, 1 << 20)


def _around(build: Build, kind: str, after: bool, sign: str, shift: bool, uniform: bool) -> str:
    x = build.input(None, 3, 5)
    axis = None if uniform else 1
    y = build.conv(x, 3, (2,)) if after else build.affine(x, axis, sign=sign, shift=shift)
    slope: dict[str, object] = {"relu": 0.0, "leaky": 0.1, "turned": -0.5}
    y = build.relu(y, slope.get(kind, build.numbers(3, 1)))  # type: ignore[arg-type]
    return build.affine(y, axis, sign=sign, shift=shift) if after else build.conv(y, 2, (2,))


@given(
    SEED,
    st.sampled_from(["relu", "leaky", "turned", "prelu"]),
    st.booleans(),
    st.sampled_from(["plus", "both"]),
    st.booleans(),
    st.booleans(),
)
def test_only_a_scale_that_is_nowhere_negative_passes_an_activation(
    seed: int, kind: str, after: bool, sign: str, shift: bool, uniform: bool
) -> None:
    build = Build(seed)
    out = _around(build, kind, after, sign, shift, uniform)
    if shift:
        left = assert_kept(build, Reason.SHIFT, out)
        assert "a shift cannot pass an activation" in (left.why or "")
    elif sign == "both":
        assert_kept(build, Reason.NEGATIVE_SCALE, out)
    else:
        assert_folded(build, out)


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
def test_a_scale_of_zero_passes(after: bool) -> None:
    build = Build()
    a = Affine(ChannelAffine.on_axis(1, np.array([0.0, 2.0, 0.5]), np.zeros(3)))
    x = build.input(None, 3, 5)
    if after:
        assert_folded(build, build.node(a, build.relu(build.conv(x, 3, (1,)), 0.2)))
    else:
        assert_folded(build, build.conv(build.relu(build.node(a, x), 0.2), 2, (1,)))


@pytest.mark.parametrize("slope", [0.0, 0.1, 2.0])
@pytest.mark.parametrize(
    ("scale", "shift"), [(-1.5, 0.0), (1.5, 0.3)], ids=["a negative scale", "a shift"]
)
def test_moving_it_anyway_is_really_wrong(slope: float, scale: float, shift: float) -> None:
    build = Build()
    x = build.values[build.input(7, 3)][0]

    def activated(values: np.ndarray) -> np.ndarray:
        return np.where(values > 0, values, slope * values)

    assert not close(scale * activated(x) + shift, activated(scale * x + shift))


SENTENCES = {
    "one of several": ([1.0, -2.0, 1.0], "1 of 3 scales is negative (channel 1)"),
    "several": ([1.0, -2.0, -1.0], "2 of 3 scales are negative (channel 1 first)"),
}


@pytest.mark.parametrize(("scale", "words"), SENTENCES.values(), ids=SENTENCES)
def test_the_refusal_counts_the_negative_scales(scale: list[float], words: str) -> None:
    build = Build()
    a = Affine(ChannelAffine.on_axis(1, np.array(scale), np.zeros(3)))
    out = build.node(a, build.relu(build.conv(build.input(None, 3, 5), 3, (1,))))
    assert words in (assert_kept(build, Reason.NEGATIVE_SCALE, out).why or "")


def test_the_refusal_of_a_uniform_scale_names_it() -> None:
    build = Build()
    a = Affine(ChannelAffine.on_axis(None, np.array([-2.0]), np.zeros(1)))
    out = build.node(a, build.relu(build.conv(build.input(None, 3, 5), 3, (1,))))
    assert "the scale -2 is negative" in (assert_kept(build, Reason.NEGATIVE_SCALE, out).why or "")
