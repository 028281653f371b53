"""Operators without a float64 kernel are computed by ONNX Runtime, and the report names them."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import parser

import bnfold
from bnfold import Protocol
from bnfold.formats.onnx.float64 import Float64Runner
from bnfold.runtimes import NotComputableError
from bnfold.verification.verdict import FLOAT64

ON_CPU = Protocol(providers=("cpu",))
SAMPLING = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 2, 5, 5] x, float[1, 3, 3, 2] grid) => (float[1, 2, 3, 3] y)
<float[2, 2, 1, 1] w = {0.5, -0.25, 1.5, 0.75}, float[2] gamma = {1.5, -0.5},
 float[2] beta = {0.1, 0.2}, float[2] mean = {0.3, -0.1}, float[2] var = {0.8, 1.7}> {
    c = Conv (x, w)
    b = BatchNormalization <epsilon = EPS> (c, gamma, beta, mean, var)
    y = GridSample (b, grid)
}
"""
FUSED = """
<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
g (float[3, 4] x) => (float[3, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
    p = com.microsoft.FusedMatMul <alpha = 0.3> (x, w)
    y = com.microsoft.QuickGelu (p)
}
"""


def sampling(eps: float = 1e-5) -> onnx.ModelProto:
    return parser.parse_model(SAMPLING.replace("EPS", str(eps)))


def test_a_fold_around_such_an_operator_is_judged_by_the_floor_and_it_is_named() -> None:
    result = bnfold.fold(sampling(), protocol=ON_CPU)
    verification = result.verification
    assert verification is not None
    assert verification.passed
    assert verification.truth == "float64, but for GridSample, in float32 by ONNX Runtime"
    assert verification.asides[0] == f"held against: {verification.truth}"
    assert json.loads(json.dumps(verification.to_json()))["truth"] == verification.truth
    assert not bnfold.verify(sampling(), sampling(1e-4), protocol=ON_CPU).passed


def test_operators_of_another_domain_too() -> None:
    model = parser.parse_model(FUSED)
    runner = Float64Runner(model)
    assert runner.name == "float64, but for FusedMatMul, QuickGelu, in float32 by ONNX Runtime"
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    made = runner({"x": x})["y"]
    product = 0.3 * x.astype(np.float64) @ np.arange(1.0, 9.0).reshape(4, 2)
    expected = product / (1 + np.exp(-1.702 * product))
    assert made.dtype == np.float64
    # four products and a sigmoid in float32: a few roundings of 2**-23 of the largest
    np.testing.assert_allclose(made, expected, rtol=0, atol=8 * 2.0**-23 * np.abs(expected).max())


def test_others_stay_in_float64_and_say_nothing_else() -> None:
    plain = SAMPLING.replace("GridSample (b, grid)", "Identity (b)")
    plain = plain.replace("float[1, 2, 3, 3] y", "float[1, 2, 5, 5] y").replace("EPS", "1e-5")
    assert Float64Runner(parser.parse_model(plain)).name == FLOAT64


@pytest.mark.parametrize("op", ["RandomNormalLike", "com.example.Unknown"])
def test_what_is_random_or_unknown_to_both_is_not_computable(op: str) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>
    g (float[3] x) => (float[3] y) { y = OP (x) }
    """
    with pytest.raises(NotComputableError):
        Float64Runner(parser.parse_model(text.replace("OP", op)))({"x": np.ones(3, np.float32)})
