"""From float64 to the type a parameter is stored in: once, and never with a loss."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnfold.algebra.affine import Array, ChannelAffine
from bnfold.algebra.graph import Affine, Conv, Param
from bnfold.algebra.plan import Outcome, Plan
from bnfold.algebra.refusal import Reason, Refusal
from bnfold.algebra.rounding import make_rounded_plan, numpy_dtype, rounded
from tests.algebra.graphs import Build, param, site

TYPES = ["float64", "float32", "float16", "bfloat16"]
SMALL = {"float16": 1e-8, "float32": 1e-45, "bfloat16": 1e-41}


def _case(
    dtype: str, scale: list[float], weight: Array | None = None, *, bias: bool = False
) -> tuple[Build, str]:
    """x -> conv [n, 2, 1, 1] -> bn with these n scales, stored as `dtype`."""
    build = Build()
    x = build.input(None, 2, 3, 3)
    n = len(scale)
    values = build.numbers(n, 2, 1, 1) if weight is None else weight
    stored = param("w", rounded(values, dtype).astype(np.float64), dtype)
    op = Conv(stored, None, (1, 1), (1, 1), ((0, 0), (0, 0)))
    y = build.node(op, x, name="conv")
    shift = np.full(n, 0.5 if bias else 0.0)
    return build, build.node(Affine(ChannelAffine.on_axis(1, np.array(scale), shift)), y, name="bn")


def _plan(build: Build, *outs: str) -> tuple[Plan, dict[str, dict[str, np.ndarray]]]:
    plan, weights = make_rounded_plan(build.graph(*outs), {})
    return plan, {name: dict(roles) for name, roles in weights.items()}


@pytest.mark.parametrize("dtype", TYPES)
def test_every_new_parameter_comes_in_the_type_of_the_old_one(dtype: str) -> None:
    build, out = _case(dtype, [0.7, -1.3, 2.0], bias=True)
    plan, weights = _plan(build, out)
    assert plan.affines.kept == 0
    (new,) = (after for _, after in plan.changed())
    assert isinstance(new.op, Conv)
    assert isinstance(new.op.bias, Param)
    conv = weights["conv"]
    assert set(conv) == {"weight", "bias"}
    assert conv["weight"].dtype == conv["bias"].dtype == numpy_dtype(dtype)
    expected = rounded(new.op.weight.load(), dtype)
    assert (conv["weight"].astype(np.float64) == expected.astype(np.float64)).all()


def test_a_parameter_that_does_not_change_is_not_listed() -> None:
    build = Build()
    a = build.affine(build.input(None, 2, 3, 3), shift=False)
    _, weights = _plan(build, build.conv(a, 2, (1, 1), name="conv"))
    assert set(weights["conv"]) == {"weight"}


TIES = {
    "float16": (2.0**-11, 2.0**-10),
    "bfloat16": (2.0**-8, 2.0**-7),
    "float32": (2.0**-24, 2.0**-23),
}


@pytest.mark.parametrize(("dtype", "tie", "step"), [(d, *v) for d, v in TIES.items()], ids=TIES)
def test_there_is_one_rounding_not_two(dtype: str, tie: float, step: float) -> None:
    just_above, just_below = 1 + tie + 2.0**-45, 1 + tie - 2.0**-45
    got = rounded(np.array([just_above, just_below, 1 + tie, -just_above]), dtype)
    assert got.astype(np.float64).tolist() == [1 + step, 1.0, 1.0, -1 - step]


def test_a_cast_by_way_of_float32_would_round_bfloat16_twice() -> None:
    x = np.array([1 + 2.0**-8 + 2.0**-45])
    assert x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(float)[0] == 1.0
    assert rounded(x, "bfloat16").astype(float)[0] == 1 + 2.0**-7


@given(st.lists(st.floats(-3e38, 3e38) | st.floats(-10, 10) | st.floats(-1e-38, 1e-38), min_size=1))
def test_bfloat16_is_the_nearest_number_to_the_float64_one(values: list[float]) -> None:
    exact = np.array(values)
    got = rounded(exact, "bfloat16")
    near = got.astype(np.float64)
    bits = got.view(np.uint16)
    for offset in (-1, 1):
        other = (bits + np.uint16(offset % (1 << 16))).view(ml_dtypes.bfloat16).astype(np.float64)
        with np.errstate(invalid="ignore"):
            further = np.abs(other - exact) >= np.abs(near - exact)
        assert np.all(further | ~np.isfinite(other))


@given(st.lists(st.floats(-60000, 60000), min_size=1), st.sampled_from(["float16", "float32"]))
def test_the_other_types_round_as_torch_does(values: list[float], dtype: str) -> None:
    theirs = torch.tensor(values, dtype=torch.float64).to(getattr(torch, dtype))
    assert (rounded(np.array(values), dtype) == theirs.numpy()).all()


OVERFLOW = {"float16": 1e6, "float32": 1e39, "bfloat16": 1e39}


@pytest.mark.parametrize(("dtype", "scale"), OVERFLOW.items(), ids=OVERFLOW)
def test_a_fold_that_overflows_is_refused_with_the_channel_named(dtype: str, scale: float) -> None:
    build, out = _case(dtype, [1.0, 1.0, scale], np.full((3, 2, 1, 1), 3.0))
    plan, weights = _plan(build, out)
    assert site(plan, "bn").reason is Reason.PRECISION
    wanted = f"conv (Conv): the weight of output channel 2 overflows {dtype}"
    assert wanted in (site(plan, "bn").why or "")
    assert weights == {}
    assert list(plan.changed()) == []


def test_a_bias_that_overflows_is_refused_too() -> None:
    build = Build()
    half = param("w", np.ones((2, 2, 1, 1)), "float16")
    y = build.conv(build.input(None, 2, 3, 3), 2, (1, 1), weight=half, bias=False, name="conv")
    shift = Affine(ChannelAffine.on_axis(1, np.ones(2), np.array([0.0, 1e5])))
    plan, _ = _plan(build, build.node(shift, y, name="bn"))
    assert "the bias of output channel 1 overflows float16" in (site(plan, "bn").why or "")


@pytest.mark.parametrize(("dtype", "scale"), SMALL.items(), ids=SMALL)
def test_a_layer_that_would_vanish_is_refused(dtype: str, scale: float) -> None:
    build, out = _case(dtype, [scale] * 3)
    plan, weights = _plan(build, out)
    assert site(plan, "bn").reason is Reason.PRECISION
    assert f"the weight of output channel 0 is too small for {dtype}" in (
        site(plan, "bn").why or ""
    )
    assert weights == {}


@pytest.mark.parametrize(("dtype", "scale"), SMALL.items(), ids=SMALL)
def test_a_dead_channel_beside_living_ones_does_not_stop_the_fold(dtype: str, scale: float) -> None:
    build, out = _case(dtype, [1.0, scale, -1.0])
    plan, _ = _plan(build, out)
    assert plan.affines.kept == 0


@pytest.mark.parametrize("loud", [False, True], ids=["alone", "beside a loud channel"])
def test_a_faint_channel_counts_for_as_much_as_the_loudest_is_loud(loud: bool) -> None:
    faint = 151.5 * 2.0**-24  # halfway between two float16 numbers: loses 0.3 %, not 0.1 %
    build, out = _case("float16", [1.0 if loud else faint, faint], np.ones((2, 2, 1, 1)))
    plan, _ = _plan(build, out)
    assert site(plan, "bn").reason is (None if loud else Reason.PRECISION)


def test_a_weight_that_was_not_finite_is_not_said_to_overflow() -> None:
    build, out = _case("float32", [1.0, 2.0])
    conv = build.nodes[0].op
    assert isinstance(conv, Conv)
    broken = replace(conv, weight=conv.weight.mapped(lambda w: np.where(w == w, np.nan, w)))
    build.nodes[0] = build.nodes[0].with_op(broken)
    plan, _ = _plan(build, out)
    assert "output channel 0 is not finite in float32" in (site(plan, "bn").why or "")


def test_a_tiny_bias_does_not_stop_a_half_precision_fold() -> None:
    build = Build()
    half = param("w", np.ones((2, 2, 1, 1)), "float16")
    y = build.conv(build.input(None, 2, 3, 3), 2, (1, 1), weight=half, bias=False)
    shift = Affine(ChannelAffine.on_axis(1, np.ones(2), np.array([1e-9, 0.0])))
    plan, _ = _plan(build, build.node(shift, y))
    assert plan.affines.kept == 0


def test_what_one_layer_cannot_store_folds_into_the_next() -> None:
    build = Build()
    x = build.input(None, 2, 3, 3)
    half = param("half", np.full((2, 2, 1, 1), 40.0), "float16")
    y = build.conv(x, 2, (1, 1), weight=half, bias=False, name="half")
    scale = Affine(ChannelAffine.on_axis(1, np.array([1.0, 1e4]), np.zeros(2)))
    out = build.conv(build.node(scale, y, name="bn"), 3, (1, 1), name="double")
    plan, weights = _plan(build, out)
    assert plan.before.nodes[0].op is plan.after.nodes[0].op, "types that differ are not merged"
    assert (site(plan, "bn").outcome, site(plan, "bn").into) == (Outcome.FOLDED, ("double",))
    assert set(weights) == {"double"}


def test_the_plan_is_made_again_without_the_layer_and_keeps_the_other_folds() -> None:
    build = Build()
    x = build.input(None, 2, 3, 3)
    half = param("half", np.full((2, 2, 1, 1), 40.0), "float16")
    y = build.conv(x, 2, (1, 1), weight=half, bias=False, name="half")
    a = build.node(Affine(ChannelAffine.on_axis(1, np.full(2, 1e4), np.zeros(2))), y, name="bad")
    z = build.relu(a, -1.0)
    out = build.affine(build.conv(build.opaque(z), 2, (1, 1), name="conv"), name="good")
    plan, weights = _plan(build, out)
    assert site(plan, "bad").reason is Reason.PRECISION
    assert site(plan, "good").into == ("conv",)
    assert set(weights) == {"conv"}


def test_the_output_channels_of_a_grouped_transposed_weight_are_counted_through_the_groups() -> (
    None
):
    build = Build()
    x = build.input(None, 4, 3, 3)
    half = param("w", np.full((4, 3, 1, 1), 2.0), "float16")
    op = Conv(half, None, (1, 1), (1, 1), ((0, 0), (0, 0)), groups=2, transposed=True)
    y = build.node(op, x, name="up")
    scale = np.array([1.0, 1.0, 1.0, 1.0, 1e6, 1.0])
    affine = Affine(ChannelAffine.on_axis(1, scale, np.zeros(6)))
    plan, _ = _plan(build, build.node(affine, y, name="bn"))
    assert "output channel 4 overflows float16" in (site(plan, "bn").why or "")


def test_locks_and_vetoes_are_kept_from_round_to_round() -> None:
    build = Build()
    x = build.input(None, 2, 3, 3)
    y = build.affine(build.conv(x, 2, (1, 1), name="a"), name="bn_a")
    z = build.affine(build.conv(x, 2, (1, 1), name="b"), name="bn_b")
    lock = Refusal(Reason.SHARED_MODULE, "locked", "a")
    no = Refusal(Reason.NOT_A_PLAIN_MODULE, "vetoed", "b")

    def veto(plan: Plan) -> dict[str, Refusal]:
        return {after.name: no for _, after in plan.changed()}

    plan, weights = make_rounded_plan(build.graph(y, z), {"a": lock}, veto)
    assert [s.reason for s in plan.sites] == [Reason.SHARED_MODULE, Reason.NOT_A_PLAIN_MODULE]
    assert weights == {}
