"""The verdict on one output."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.protocol import DEFAULT, Protocol
from bnfold.verification.gate import (
    ASSERT_CLOSE,
    Difference,
    Distance,
    Place,
    Row,
    difference,
    distance,
    judge,
    least,
    mismatch,
    scale_of,
)

TRUTH = np.array([1.0, -2.0, 3.0])
SAME = Difference(0.0, 0.0, 0.0)


def judged(floor: Distance, error: Distance, k: float = 8.0) -> Row:
    return judge(Place("case", "torch", "y"), floor, error, SAME, Protocol(k=k))


def ratio_of(output: object, truth: object = TRUTH, floor: float = 1e-6) -> float:
    error = distance(np.asarray(output), np.asarray(truth))
    return judged(Distance(floor, floor), error).ratio


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_fails_where_the_truth_is(bad: float) -> None:
    output = TRUTH.copy()
    output[1] = bad
    row = judged(Distance(1, 1), distance(output, TRUTH))
    assert not row.passed
    assert "NaN or infinity" in str(row.why)


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_in_the_truth_must_be_the_same(special: float) -> None:
    truth = np.array([1.0, special, 3.0])
    assert distance(truth.astype(np.float32), truth).max == 0
    for other in (0.0, math.inf, -math.inf, math.nan):
        output = np.array([1.0, other, 3.0], np.float32)
        same = np.array_equal(output, truth, equal_nan=True)
        assert math.isinf(distance(output, truth).max) is not same


def test_both_parts_of_complex_numbers_count() -> None:
    truth = np.array([1 + 2j, 3 - 1j])
    assert distance((truth + 0.5j).astype(np.complex64), truth).max == 0.5
    assert scale_of(np.array([3 + 4j])).max == 5.0


def test_a_ratio_that_is_no_number_passes_nothing() -> None:
    assert not judged(Distance(math.inf, 1.0), Distance(math.inf, 1.0)).passed


def test_numbers_whose_squares_overflow_have_a_size() -> None:
    truth = np.array([3e300, -4e300])
    size = scale_of(truth)
    assert size.rms == pytest.approx(math.sqrt(12.5) * 1e300, rel=1e-15)  # one rounding of float64
    error = distance(truth * (1 + 2.0**-50), truth)
    assert judged(least(size, "float64"), error).passed
    assert not judged(least(size, "float64"), distance(truth * 1.0001, truth)).passed


def test_an_infinite_floor_passes_nothing() -> None:
    row = judged(Distance(math.inf, math.inf), Distance(1.0, 1.0))
    assert not row.passed


def test_ratio_is_the_smallest_k_that_passes() -> None:
    error, floor = Distance(3e-6, 2e-6), Distance(1e-6, 1e-6)
    row = judged(floor, error)
    assert (row.ratio, row.metric) == (pytest.approx(3.0), "rms")
    assert judged(floor, error, row.ratio).passed
    assert not judged(floor, error, float(np.nextafter(row.ratio, 0))).passed


def test_the_maximum_counts_as_much_as_the_mean() -> None:
    row = judged(Distance(1e-6, 1e-6), Distance(1e-6, 9e-6))
    assert not row.passed
    assert row.metric == "max"
    assert "more than k = 8" in str(row.why)


def test_zero_error_passes_at_any_floor() -> None:
    assert ratio_of(TRUTH, floor=0.0) == 0.0


def test_any_error_fails_at_a_floor_of_zero() -> None:
    assert math.isinf(ratio_of(TRUTH + 1e-300, np.zeros(3), floor=0.0))


@pytest.mark.parametrize(
    ("output", "part"),
    [
        (np.zeros((3, 1), np.float32), "its shape is [3, 1], the original's is [3]"),
        (np.zeros(3, np.float16), "its type is float16, the original's is float32"),
        (np.zeros(3, np.float32), None),
    ],
)
def test_form(output: object, part: str | None) -> None:
    assert mismatch(np.asarray(output), np.zeros(3, np.float32)) == part


def test_the_least_floor_is_two_steps_of_the_type_at_the_scale_of_the_output() -> None:
    scale = scale_of(TRUTH)
    assert least(scale, "float32").max == 2 * 2.0**-23 * 3
    assert least(scale, "bfloat16").max == 2 * 2.0**-7 * 3
    assert least(scale, "int64") == Distance(0.0, 0.0)
    assert scale_of(np.array([3.0, -4.0])) == Distance(math.sqrt(12.5), 4.0)


def test_json_has_no_bare_infinity() -> None:
    row = judged(Distance(0, 0), Distance(1, 1))
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["ratio"] == "inf"


def test_the_tolerances_of_assert_close_are_those_of_torch() -> None:
    import torch
    from torch.testing._comparison import default_tolerances

    for name in (*ASSERT_CLOSE, "int64", "bool"):
        known = default_tolerances(getattr(torch, name))
        assert ASSERT_CLOSE.get(name, (0.0, 0.0)) == known


@pytest.mark.parametrize("off", [0.0, 1e-6, 1.1e-6, 1.2e-5, 1e-4, math.nan, math.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_assert_close_is_foretold(dtype: str, off: float) -> None:
    import torch

    original = (np.array([0.0, 1.0, -200.0])).astype(dtype)
    output = original.copy()
    if dtype != "int64":
        output[1:] += np.asarray(off, dtype)
    elif off:
        output[0] = 1
    found = difference(output, original, "y", DEFAULT).assert_close <= 1
    try:
        torch.testing.assert_close(torch.from_numpy(output), torch.from_numpy(original))
    except AssertionError:
        assert not found
    else:
        assert found


def test_the_difference_is_what_each_tolerance_alone_would_need() -> None:
    original = np.array([1.0, -10.0, 0.0], np.float32)
    output = np.array([1.5, -11.0, 0.0], np.float32)
    found = difference(output, original, "y", DEFAULT)
    assert (found.absolute, found.relative, found.fixed) == (1.0, 0.5, None)
    output[2] = 0.25
    assert math.isinf(difference(output, original, "y", DEFAULT).relative)
    fixed = Protocol(policy="fixed", atol={"": 2.0})
    assert difference(output, original, "y", fixed).fixed == 0.5


LOGITS = np.random.default_rng(0).standard_normal((3, 40))


def filled(*fills: float) -> NDArray[np.float64]:
    logits = LOGITS.copy()
    for column, fill in enumerate(fills):
        logits[:, column] = fill
    return logits


def floor_of(truth: NDArray[np.float64]) -> Distance:
    own = distance(truth.astype(np.float32), truth)
    return own.or_more(least(scale_of(truth), "float32"))


@pytest.mark.parametrize(
    "fills", [(-1e9,), (-1000.0,), (-1.7e38, -3.4e38), (1e4, 1e4, -3e4)], ids=str
)
def test_a_fill_value_hides_nothing(fills: tuple[float, ...]) -> None:
    truth = filled(*fills)
    assert judged(floor_of(truth), distance(truth.astype(np.float32), truth)).passed
    row = judged(floor_of(truth), distance(truth + np.where(truth == LOGITS, 1e-4, 0), truth))
    assert not row.passed
    assert row.metric == "rest"
    wrong_fill = np.where(truth == LOGITS, truth, truth * 1.01)
    assert not judged(floor_of(truth), distance(wrong_fill, truth)).passed


@pytest.mark.parametrize(
    "truth",
    [LOGITS, LOGITS * 1e9, np.geomspace(1e-9, 1e9, 120), np.full(9, 1e9), np.array([1e9, 1.0])],
    ids=["noise", "large noise", "any size", "one number", "one outlier"],
)
def test_what_is_no_fill_value(truth: NDArray[np.float64]) -> None:
    assert scale_of(truth).rest == 0


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_integers_that_float64_cannot_tell_apart_differ(dtype: type) -> None:
    truth = np.array([2**60, 5], dtype)
    assert distance(truth, truth).max == 0
    assert distance(truth + dtype(1), truth).max == 1
    assert distance(truth + dtype(7), truth).max == 7
