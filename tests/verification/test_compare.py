"""Whole comparisons: what must fail does, and a right fold does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnfold.algebra.rounding import numpy_dtype
from bnfold.errors import ModelError, UsageError
from bnfold.formats.pytorch.nn_module import ModuleModel
from bnfold.protocol import DEFAULT, Protocol
from bnfold.runtimes import NotComputableError, Outputs, Sample, TensorSpec
from bnfold.verification import Case, NotDeterministicError, Verification, compare
from bnfold.verification.cases import probes
from bnfold.verification.scatter import nudged
from tests.formats.networks import trained

X = np.random.default_rng(0).standard_normal((3, 4, 6, 5)).astype(np.float32)
CASES = list(probes([TensorSpec("x", "float32", X.shape)], {"x": X}))


class Fake:
    """A runner made of a function of the input."""

    input_names = ("x",)

    def __init__(self, function: Callable[[Any], Outputs], name: str = "torch cpu") -> None:
        self.function = function
        self.name = name

    def __call__(self, sample: Sample) -> Outputs:
        return self.function(sample["x"])


def exact(x: Any) -> Outputs:
    return {"y": x.astype(np.float64) * 0.3 + 0.1, "n": np.array([3])}


def single(x: Any) -> Outputs:
    return {"y": x * np.float32(0.3) + np.float32(0.1), "n": np.array([3])}


def judged(candidate: Callable[[Any], Outputs], cases: list[Case] = CASES) -> Verification:
    return compare(Fake(exact, "float64"), [Fake(single)], [Fake(candidate)], cases, DEFAULT)


def changed(**new: Any) -> Callable[[Any], Outputs]:
    return lambda x: {
        name: new[name](value) if name in new else value for name, value in single(x).items()
    }


def test_the_original_itself_passes() -> None:
    verification = judged(single)
    assert verification.passed
    assert verification.worst is not None
    assert verification.worst.ratio <= 1


def _with(value: float) -> Callable[[Any], Any]:
    def change(y: Any) -> Any:
        y = y.copy()
        y.flat[7] = value
        return y

    return change


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (changed(y=_with(np.nan)), "NaN or infinity"),
        (changed(y=_with(np.inf)), "NaN or infinity"),
        (changed(y=lambda y: y * np.float32(1.001)), "times the floor"),
        (changed(y=lambda y: np.roll(y, 1, axis=1)), "times the floor"),
        (changed(y=lambda y: y[:, :3]), "its shape is"),
        (changed(y=lambda y: y.astype(np.float64)), "its type is"),
        (changed(n=lambda n: n + 1), "[0] is 4, not 3"),
        (lambda x: {"y": single(x)["y"]}, "it has 1 outputs, the original has 2"),
        (lambda x: {**single(x), "z": x}, "it has 3 outputs, the original has 2"),
    ],
    ids=["nan", "inf", "scale", "channels", "shape", "type", "integer", "missing", "extra"],
)
def test_a_wrong_candidate_fails(candidate: Callable[[Any], Outputs], why: str) -> None:
    verification = judged(candidate)
    assert not verification.passed
    assert why in verification.summary


def test_a_candidate_that_raises_fails() -> None:
    def broken(x: Any) -> Outputs:
        raise RuntimeError("out of luck\nmore")

    verification = judged(broken)
    assert not verification.passed
    assert verification.worst is not None
    assert verification.worst.why == "the candidate does not run: out of luck"


def test_running_out_of_memory_is_a_failure_of_the_candidate_and_an_error_of_the_original() -> None:
    def hungry(x: Any) -> Outputs:
        if np.abs(x).max() > 50:
            raise MemoryError
        return single(x)

    assert not judged(hungry).passed
    assert "MemoryError" in judged(hungry).summary
    with pytest.raises(MemoryError):
        compare(Fake(exact, "float64"), [Fake(hungry)], [Fake(single)], CASES, DEFAULT)


def test_an_interruption_is_no_verdict() -> None:
    def interrupted(x: Any) -> Outputs:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(interrupted)


def test_an_input_that_the_user_gave_is_never_left_out() -> None:
    def fragile(x: Any) -> Outputs:
        y = single(x)
        return {**y, "y": y["y"] / np.float32(0)} if np.abs(x).max() > 50 else y

    given = [Case(case.name, case.sample, given=case.name == "large") for case in CASES]
    with np.errstate(divide="ignore"):
        left_out = compare(Fake(exact, "float64"), [Fake(fragile)], [Fake(fragile)], CASES, DEFAULT)
        found = compare(Fake(exact, "float64"), [Fake(fragile)], [Fake(fragile)], given, DEFAULT)
    assert left_out.passed
    assert not found.passed
    assert "it cannot be judged: the original gives NaN or infinity" in found.summary


@pytest.mark.parametrize(
    ("protocol", "off", "passes"),
    [
        (Protocol(policy="assert-close"), 1.0e-6, True),
        (Protocol(policy="assert-close"), 1.0e-4, False),
        (Protocol(policy="fixed", rtol={"": 1e-3}), 1.0e-4, True),
        (Protocol(policy="fixed", rtol={"": 1e-5}), 1.0e-4, False),
        (Protocol(policy="fixed", rtol={"y": 1e-3, "": 0.0}), 1.0e-4, True),
        (Protocol(policy="fixed", rtol={"": 1e-3, "y": 0.0}), 1.0e-4, False),
        (Protocol(policy="fixed", rtol={"n": 1e-3}), 1.0e-4, False),
        (Protocol(), 1.0e-4, False),
    ],
)
def test_each_policy_passes_what_it_allows(protocol: Protocol, off: float, passes: bool) -> None:
    off_by = changed(y=lambda y: y * np.float32(1 + off))
    found = compare(Fake(exact, "float64"), [Fake(single)], [Fake(off_by)], CASES, protocol)
    assert found.passed is passes
    assert protocol.rule in found.summary
    said = f"times what {protocol.rule} allows" in found.summary
    assert said is (not passes and protocol.policy != "floor")


@pytest.mark.parametrize("policy", ["assert-close", "fixed"])
def test_no_policy_passes_nan(policy: Any) -> None:
    protocol = Protocol(policy=policy, rtol={"": 1e9} if policy == "fixed" else {})
    for bad in (np.nan, np.inf):
        found = compare(
            Fake(exact, "float64"), [Fake(single)], [Fake(changed(y=_with(bad)))], CASES, protocol
        )
        assert not found.passed


def test_a_tolerance_for_an_output_that_is_not_there_is_refused() -> None:
    protocol = Protocol(policy="fixed", atol={"z": 1.0})
    with pytest.raises(UsageError, match="a tolerance for 'z', which is no output"):
        compare(Fake(exact, "float64"), [Fake(single)], [Fake(single)], CASES, protocol)


def test_it_tells_the_smallest_k_and_what_the_usual_rules_say() -> None:
    slightly = judged(changed(y=lambda y: y * np.float32(1 + 1e-4)))
    assert not slightly.passed
    data = slightly.to_json()
    assert data["truth"] == "float64"
    assert data["difference"]["assert_close"] == "fail"
    assert data["difference"]["relative"] == pytest.approx(1e-4, rel=0.01)
    again = compare(
        Fake(exact, "float64"),
        [Fake(single)],
        [Fake(changed(y=lambda y: y * np.float32(1 + 1e-4)))],
        CASES,
        Protocol(k=float(data["smallest_k"])),
    )
    assert again.passed


def test_without_a_truth_the_original_stands_for_it_and_half_the_digits_are_asked() -> None:
    for off, passes in ((1e-4, True), (1e-2, False)):
        candidate = Fake(changed(y=lambda y, off=off: y * np.float32(1 + off)))
        found = compare(None, [Fake(single)], [candidate], CASES, DEFAULT)
        assert found.passed is passes
        assert "held against: the original as it runs on torch cpu" in found.asides


def test_without_a_truth_what_the_original_spreads_by_is_granted() -> None:
    """Two places in which the original runs are a tenth apart, which half the digits would fail."""

    def other(x: Any) -> Outputs:
        return {**single(x), "y": single(x)["y"] * np.float32(1.1)}

    originals = [Fake(single, "one"), Fake(other, "two")]
    for off, passes in ((0.1, True), (1.0, False)):
        candidate = Fake(changed(y=lambda y, off=off: y * np.float32(1 + off)), "one")
        found = compare(None, originals, [candidate], CASES, DEFAULT)
        assert found.passed is passes


TINY = 1e-9


def squashed(error: float) -> Callable[[Any], Outputs]:
    """Like a sigmoid far below 0, in a runtime that is off by `error` of 1, whatever it gives."""
    return lambda x: {"y": (np.abs(x) * TINY + error * (x > 0)).astype(np.float32)}


def test_a_bounded_output_has_the_scale_of_its_bounds() -> None:
    """Without them the truth would be taken for one of another function: it is all error."""

    def truth(x: Any) -> Outputs:
        return {"y": np.abs(x.astype(np.float64)) * TINY}

    cases = [case for case in CASES if case.name != "huge"]
    runners = Fake(truth, "float64"), [Fake(squashed(3e-8))]
    for error, passes in ((6e-8, True), (1e-5, False)):
        found = compare(*runners, [Fake(squashed(error))], cases, DEFAULT, (1.0,))
        assert found.passed is passes
        assert found.truth == "float64"
    assert "zeros would pass" in found.notes[0]
    with pytest.raises(NotComputableError):
        compare(*runners, [Fake(squashed(6e-8))], cases, DEFAULT)


def test_a_truth_that_rounding_is_as_large_as_is_kept() -> None:
    """What is left of large numbers that cancel is noise, another for an input close by."""

    def cancelling(x: Any) -> Outputs:
        return {"y": (x + np.float32(1e4)) - np.float32(1e4) - x}

    def truth(x: Any) -> Outputs:
        return {"y": np.full(x.shape, 1e-7)}

    cases = [case for case in CASES if case.name != "huge"]
    found = compare(Fake(truth, "float64"), [Fake(cancelling)], [Fake(cancelling)], cases, DEFAULT)
    assert found.truth == "float64"
    assert found.passed


def test_nothing_compared_is_not_a_pass() -> None:
    assert not judged(single, []).passed
    assert "nothing could be compared" in judged(single, []).summary


def test_no_candidate_is_not_a_pass() -> None:
    assert not compare(Fake(exact, "float64"), [Fake(single)], [], CASES, DEFAULT).passed


def test_an_original_that_overflows_is_left_out_and_that_is_said() -> None:
    def overflowing(x: Any) -> Outputs:
        with np.errstate(over="ignore"):
            return {"y": x * np.float32(1e38)}

    def wide(x: Any) -> Outputs:
        return {"y": x.astype(np.float64) * float(np.float32(1e38))}

    verification = compare(Fake(wide), [Fake(overflowing)], [Fake(overflowing)], CASES, DEFAULT)
    assert verification.passed
    assert any("case large is left out" in note for note in verification.notes)
    assert "large" not in {row.place.case for row in verification.rows}


def test_a_lucky_floor_of_zero_does_not_fail_a_right_fold() -> None:
    """An original that happens to be exact in one case; the candidate is one ulp off there."""

    def lucky(x: Any) -> Outputs:
        return {"y": np.full((1,), 2.0, np.float32), "n": np.array([3])}

    def truth(x: Any) -> Outputs:
        return {"y": np.full((1,), 2.0), "n": np.array([3])}

    def close(x: Any) -> Outputs:
        return {
            "y": np.nextafter(np.full((1,), 2.0, np.float32), np.float32(3)),
            "n": np.array([3]),
        }

    assert compare(Fake(truth), [Fake(lucky)], [Fake(close)], CASES, DEFAULT).passed


def test_each_runtime_is_held_against_its_own_floor() -> None:
    """A candidate as coarse as the coarse original fails where the fine one runs."""

    def coarse(x: Any) -> Outputs:
        return {name: v if name == "n" else v * np.float32(1.0001) for name, v in single(x).items()}

    originals = [Fake(single, "fine"), Fake(coarse, "coarse")]
    candidates = [Fake(coarse, "fine"), Fake(coarse, "coarse")]
    rows = compare(Fake(exact, "float64"), originals, candidates, CASES, DEFAULT).rows
    verdicts = {
        name: all(r.passed for r in rows if r.place.provider == name) for name in ("fine", "coarse")
    }
    assert verdicts == {"fine": False, "coarse": True}


def test_a_wrong_epsilon_is_seen_behind_a_softmax() -> None:
    def net(eps: float) -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=eps), nn.Softmax(1))
        return trained(layers)

    model, wrong = ModuleModel(net(1e-5)), ModuleModel(net(2e-5))
    cases = list(probes([TensorSpec("input", "float32", X.shape)], {"input": X}))
    right = compare(model.truth(), model.runners(), model.runners(), cases, DEFAULT)
    found = compare(model.truth(), model.runners(), wrong.runners(), cases, DEFAULT)
    assert right.passed
    assert not found.passed
    outputs = [m.runners()[0](cases[0].sample)["output"] for m in (model, wrong)]
    np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-4)


def test_it_prints_itself_as_a_table_with_the_verdict_below() -> None:
    heading, *rows, verdict = str(judged(single)).splitlines()
    assert heading.split() == [
        "verified",
        "on",
        "output",
        "worst",
        "case",
        "floor",
        "error",
        "of",
        "its",
        "size",
        "ratio",
        "verdict",
    ]
    assert [row.split()[2] for row in rows] == ["y", "n"]
    assert all(row.endswith("pass") for row in rows)
    assert verdict.startswith("pass: ")
    assert judged(single).closeness[0].startswith("torch.testing.assert_close would pass it: ")
    wrong = judged(changed(y=lambda y: y * np.float32(1.01)), CASES[:1])
    assert "1.0e-02" in str(wrong), "an error of a hundredth of the output's size"


def test_an_output_that_is_zero_may_be_off_by_a_rounding_of_its_usual_size() -> None:
    def truth(x: Any) -> Outputs:
        return {"y": x.astype(np.float64) * 0.3}

    def original(x: Any) -> Outputs:
        return {"y": x * np.float32(0.3)}

    def shifted(by: float) -> Callable[[Any], Outputs]:
        return lambda x: {"y": original(x)["y"] + np.float32(0 if x.any() else by)}

    for by, passes in ((1e-8, True), (1e-3, False)):
        found = compare(Fake(truth), [Fake(original)], [Fake(shifted(by))], CASES, DEFAULT)
        assert found.passed is passes


def test_an_original_that_does_not_repeat_itself_is_refused() -> None:
    rng = np.random.default_rng(0)

    def random(x: Any) -> Outputs:
        return {"y": single(x)["y"] * np.float32(rng.uniform()), "n": np.array([3])}

    with pytest.raises(NotDeterministicError, match="different values of y"):
        compare(Fake(exact, "float64"), [Fake(random)], [Fake(single)], CASES, DEFAULT)


def test_outputs_in_another_order_fail() -> None:
    verification = judged(lambda x: dict(reversed(single(x).items())))
    assert not verification.passed
    assert "its outputs come in another order: n, y" in verification.summary


def test_outputs_of_other_names_are_matched_in_order() -> None:
    assert judged(lambda x: dict(zip("ab", single(x).values(), strict=True))).passed
    assert not judged(lambda x: dict(zip("ab", [*single(x).values()][::-1], strict=True))).passed


def test_the_original_must_run_on_the_first_case_and_may_fail_on_a_later_one() -> None:
    def small_only(x: Any) -> Outputs:
        if np.abs(x).max() > 50:
            raise ValueError("too large")
        return single(x)

    found = compare(Fake(exact, "float64"), [Fake(small_only)], [Fake(single)], CASES, DEFAULT)
    assert found.passed
    assert any("case large is left out" in note for note in found.notes)
    large = [case for case in CASES if case.name == "large"]
    with pytest.raises(ValueError, match="too large"):
        compare(Fake(exact, "float64"), [Fake(small_only)], [Fake(single)], large, DEFAULT)


def test_texts_are_the_same_or_fail() -> None:
    def naming(*names: str) -> Callable[[Any], Outputs]:
        return lambda x: {"label": np.array(names, object)}

    def held(candidate: Callable[[Any], Outputs]) -> Verification:
        originals = [Fake(naming("cat", "dog"))]
        return compare(
            Fake(naming("cat", "dog"), "float64"), originals, [Fake(candidate)], CASES, DEFAULT
        )

    assert held(naming("cat", "dog")).passed
    assert not held(naming("cat", "cow")).passed


def test_an_output_that_is_no_array_is_refused() -> None:
    def listing(x: Any) -> Any:
        return {"scores": [{"cat": 0.5}]}

    with pytest.raises(ModelError, match="the output 'scores' is a list, which cannot be compared"):
        compare(Fake(listing), [Fake(listing)], [Fake(listing)], CASES, DEFAULT)


def test_a_list_in_place_of_a_tensor_fails() -> None:
    verification = judged(lambda x: {**single(x), "n": [3]})  # type: ignore[dict-item]
    assert not verification.passed
    assert "it is a list, not a tensor" in verification.summary


def test_a_truth_of_another_function_is_no_truth() -> None:
    """Its floor would be as large as the output, and everything would pass."""

    def wrong(x: Any) -> Outputs:
        return {"y": -exact(x)["y"], "n": np.array([3])}

    with pytest.raises(NotComputableError, match=r"y on torch cpu is usually 200\.0% of"):
        compare(Fake(wrong, "float64"), [Fake(single)], [Fake(single)], CASES, DEFAULT)


def unstable(size: float) -> Callable[[Any], Outputs]:
    """Exact on the inputs as they are; off by `size` as soon as one of them is one step away."""
    known = {case.sample["x"].tobytes() for case in CASES}

    def run(x: Any) -> Outputs:
        outputs = single(x)
        if x.tobytes() not in known:
            outputs["y"] = outputs["y"] + np.float32(size)
        return outputs

    return run


@pytest.mark.parametrize(
    ("size", "off", "passed"),
    [(1e-5, 3e-6, True), (1e-5, 3e-4, False), (1.0, 3e-6, True), (1.0, 3e-5, False)],
    ids=["within", "beyond", "within what luck can be", "beyond what luck can be"],
)
def test_a_floor_that_was_luck_is_measured_again(size: float, off: float, passed: bool) -> None:
    """Zeros have a floor of 2.4e-8: 3e-6 is 125 of them, and 4 of 32 times it; 3e-5 is 40 of that,
    and would be 4 of 320 times."""
    candidate = Fake(changed(y=lambda y: y + np.float32(off)))
    verification = compare(
        Fake(exact, "float64"), [Fake(unstable(size))], [candidate], CASES, DEFAULT
    )
    assert verification.passed is passed


def test_what_passes_is_not_measured_again() -> None:
    runs: list[int] = []

    def counted(x: Any) -> Outputs:
        runs.append(1)
        return single(x)

    original = Fake(counted)
    assert compare(Fake(exact, "float64"), [original], [Fake(single)], CASES, DEFAULT).passed
    assert len(runs) == len(CASES) + 1  # the first case twice, to see that it repeats itself


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_a_nudged_sample_is_one_step_away(dtype: str) -> None:
    x = X.astype(numpy_dtype(dtype))
    sample = {"x": x, "n": np.arange(5), "flag": np.array([True, False])}
    first, again = nudged(sample, 1), nudged(sample, 1)
    other = nudged(sample, 2)
    moved = first["x"].astype(np.float64) - x.astype(np.float64)
    step = np.spacing(np.abs(x)).astype(np.float64)
    assert first["x"].dtype == x.dtype
    assert set(np.unique(np.sign(moved))) == {-1.0, 0.0, 1.0}
    assert np.all(np.abs(moved) <= step)
    assert np.array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], other["x"])
    assert np.array_equal(first["n"], sample["n"])
    assert np.array_equal(first["flag"], sample["flag"])


def test_a_shared_name_must_stand_where_it_does_in_the_original() -> None:
    one = Case("one", {"a": X, "b": X})

    @dataclass
    class Named:
        input_names: tuple[str, ...]
        outputs: tuple[str, ...]
        name: str = "torch cpu"

        def __call__(self, sample: Sample) -> Outputs:
            return dict.fromkeys(self.outputs, X)

    original = Named(("a", "b"), ("y", "z"))

    def summary(names: tuple[str, ...], outputs: tuple[str, ...]) -> str:
        return compare(None, [original], [Named(names, outputs)], [one], DEFAULT).summary

    for names in (("a", "b"), ("p", "q"), ("a", "q"), ("a", "more", "b")):
        assert summary(names, ("y", "z")).startswith("pass")
    for names in (("b", "a"), ("b", "c"), ("b", "more", "a")):
        assert "its inputs come in another order" in summary(names, ("y", "z"))
    for outputs in (("p", "q"), ("y", "q")):
        assert summary(("a", "b"), outputs).startswith("pass")
    for outputs in (("z", "y"), ("z", "q")):
        assert "its outputs come in another order" in summary(("a", "b"), outputs)


def test_an_output_that_says_nothing_is_named() -> None:
    def saturated(x: Any) -> Outputs:
        return {"y": np.tanh(x + 1e6), "z": x}

    found = compare(Fake(saturated), [Fake(saturated)], [Fake(saturated)], CASES, DEFAULT)
    assert found.notes == ("the output y is the same in every case: it shows nothing of the model",)
    assert not judged(single, CASES[:1]).notes


def test_a_truth_of_another_shape_is_no_truth() -> None:
    def joined(x: Any) -> Outputs:
        return {"y": np.vstack([exact(x)["y"]] * 2), "n": np.array([3])}

    with pytest.raises(NotComputableError, match=r"y is .* on torch cpu and .* in float64"):
        compare(Fake(joined, "float64"), [Fake(single)], [Fake(single)], CASES, DEFAULT)
