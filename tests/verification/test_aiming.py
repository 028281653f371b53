"""Which sides of a model were reached, and probes aimed at those that were not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from onnx import parser
from torch import nn

from bnfold.formats.onnx.float64 import Float64Runner
from bnfold.formats.opening import open_model
from bnfold.runtimes.sides import OF_ATEN, OF_ONNX, Sides
from bnfold.verification.aiming import FEWEST, MOST, WORK, aimed

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y)'


def runner(body: str) -> Float64Runner:
    return Float64Runner(parser.parse_model(f"{HEAD} {body}"))


def sample(*numbers: float) -> dict[str, Any]:
    return {"x": np.array([numbers], np.float32)}


def found(op: str, *inputs: Any, **attributes: float) -> dict[str, bool]:
    """Each side with whether it is reached."""
    margins = OF_ONNX[op]([np.array(value) for value in inputs], attributes)
    return {side: margin > 0 for side, margin in margins}


@pytest.mark.parametrize(
    ("op", "inputs", "reached"),
    [
        ("Relu", ([-1.0, -2.0],), {"below 0": True, "above 0": False}),
        ("Relu", ([0.0],), {"below 0": False, "above 0": False}),
        ("Clip", ([7.0], 0.0, 6.0), {"below its minimum": False, "above its maximum": True,
                                     "within its limits": False}),
        ("Clip", ([3.0], 0.0, 6.0), {"below its minimum": False, "above its maximum": False,
                                     "within its limits": True}),
        ("Clip", ([3.0], -3.4e38, 6.0), {"above its maximum": False, "within its limits": True}),
        ("Sigmoid", ([-5.0],), {"saturated below": True, "not saturated": False,
                                "saturated above": False}),
        ("HardSigmoid", ([9.0],), {"below its minimum": False, "above its maximum": True,
                                   "within its limits": False}),
        ("Greater", ([1.0], 1.0), {"true": False, "false": True}),
        ("GreaterOrEqual", ([2.0], 1.0), {"true": True, "false": False}),
        ("Less", ([0.5, 3.0], 1.0), {"true": True, "false": True}),
        ("Equal", ([1.0], 1.0), {"true": True, "false": False}),
        ("Where", ([True],), {"true": True, "false": False}),
        ("Max", ([1.0], [2.0]), {"its first input": False, "its second input": True}),
        ("Min", ([1.0], [2.0]), {"its first input": True, "its second input": False}),
    ],
)  # fmt: skip
def test_a_side_is_reached_by_a_number_beyond_it(op: str, inputs: Any, reached: Any) -> None:
    assert found(op, *inputs) == reached


def test_what_hangs_on_no_number_of_the_input_has_no_sides() -> None:
    truth = runner("{ s = Shape (x) f = Cast <to = 1> (s) r = Relu (f) y = Relu (x) }")
    truth(sample(1, 2, 3))
    assert set(truth.sides.largest) == {("y (Relu)", "below 0"), ("y (Relu)", "above 0")}
    assert truth.sides.unseen == [("y (Relu)", "below 0")]
    truth(sample(1, -2, 3))
    assert truth.sides.unseen == []
    truth(sample(1, 2, 3))
    assert truth.sides.unseen == [], "what was once reached stays so"


def aims(body: str, *before: dict[str, Any]) -> tuple[Float64Runner, list[Any]]:
    truth = runner(body)
    for each in before or (sample(0.5, -0.5, 1.5),):
        truth(each)
    return truth, list(aimed(truth, sample(0, 0, 0)))


def test_nothing_is_aimed_at_where_all_was_reached() -> None:
    assert aims("{ y = Relu (x) }")[1] == []


@pytest.mark.parametrize(
    "body",
    [
        "<float h = {700}> { y = Clip (x, , h) }",
        "<float h = {50000}> { y = Clip (x, , h) }",
        "<float t = {40}> { m = ReduceMean <axes = [1], keepdims = 1> (x) h = Greater (m, t) "
        "n = Neg (x) y = Where (h, n, x) }",
    ],
    ids=["a limit", "a limit beyond all probes", "a mean"],
)
def test_a_limit_is_reached_by_inputs_of_one_sign(body: str) -> None:
    truth, cases = aims(body)
    assert truth.sides.unseen == []
    assert cases
    assert all(case.name.startswith("aimed at ") for case in cases)


def test_a_side_that_no_plain_input_reaches_is_searched_for() -> None:
    """The first number has to be far above the other two."""
    body = """<float[3, 1] w = {1, -1, -1}, float t = {2000}> {
        d = MatMul (x, w) h = Greater (d, t) n = Neg (x) y = Where (h, n, x) }"""
    truth, cases = aims(body)
    assert truth.sides.unseen == []
    assert len(cases) == 1


def test_a_side_that_is_out_of_reach_is_given_up() -> None:
    truth, cases = aims("<float z = {-1}> { s = Mul (x, x) h = Less (s, z) y = Where (h, z, x) }")
    assert cases == []
    assert [side for _, side in truth.sides.unseen] == ["true", "true"]


def test_a_large_model_is_tried_less_often() -> None:
    class Counting:
        name, input_names = "float64", ("x",)

        def __init__(self, work: int) -> None:
            self.sides, self.runs, self._work = Sides(), 0, work
            self.note()

        def note(self) -> None:
            def below() -> Iterator[tuple[str, float]]:
                yield "below 0", -1.0

            self.sides.note("y", below())
            self.sides.work = self._work

        def __call__(self, sample: Any) -> Any:
            self.runs += 1
            self.note()
            return {}

    for work, tries in ((1, MOST), (int(WORK), FEWEST), (int(WORK / 20), 20)):
        truth = Counting(work)
        assert list(aimed(truth, sample(0, 0, 0))) == []
        assert truth.runs == tries


@pytest.mark.parametrize("form", ["module", "torchscript", "program"])
def test_every_form_of_torch_tells_its_sides(form: str) -> None:
    net: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU6(inplace=True), nn.Linear(4, 2), nn.Sigmoid())
    x = torch.zeros(2, 3)
    if form == "torchscript":
        net = torch.jit.trace(net, x)
    elif form == "program":
        net = torch.export.export(net, (x,))
    truth: Any = open_model(net).truth()
    (name,) = truth.input_names
    truth({name: np.full((2, 3), 1e3, np.float32)})
    assert {name for name, _ in truth.sides.largest} == {"hardtanh 1", "sigmoid 1"}
    assert truth.sides.unseen


def test_the_operators_of_torch_have_the_sides_of_onnx() -> None:
    x, low, high = np.array([-7.0, 3.0]), 0.0, 6.0
    of_onnx = dict(OF_ONNX["Clip"]([x, np.array(low), np.array(high)], {}))
    for op in ("clamp", "hardtanh"):
        assert dict(OF_ATEN[op]([x, low, high], {})) == of_onnx
    assert dict(OF_ATEN["clamp_min"]([x, low], {}))["below its minimum"] == 7
    assert dict(OF_ATEN["clamp_max"]([x, high], {}))["above its maximum"] == -3
