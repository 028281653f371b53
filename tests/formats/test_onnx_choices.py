"""Where an ONNX model chooses, what bounds it, and a fold in front of either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import bnfold
from benchmarks.fooling import TRICKS, made, seen
from bnfold import Protocol
from bnfold.formats.onnx.choices import bounds, cut, pairs
from bnfold.formats.opening import open_model

CLASSES, NUMBERS = "int64[N, H, W] y", "float[N, 5, H, W] y"
SIZED = {"x": np.zeros((2, 3, 9, 11), np.float32)}


def ir_of(body: str, output: str = NUMBERS) -> object:
    return open_model(made(body, output=output)).ir  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        ("    y = Sigmoid (n)", 1),
        ("    a = Softmax <axis = 1> (n)\n    y = Transpose <perm = [0, 1, 3, 2]> (a)", 1),
        ("    y = Clip (n, #-3, #6)", 6),
        ("    y = Clip (n, #-3)", 0),
        ("    a = Tanh (n)\n    y = Mul (a, #100)", 0),
        ("    y = Relu (n)", 0),
        ("    y = HardSigmoid (n)", 1),
    ],
)
def test_what_bounds_an_output(body: str, bound: float) -> None:
    assert bounds(ir_of(body)) == (bound,)  # type: ignore[arg-type]


def test_a_cut_takes_all_that_comes_after_a_choice() -> None:
    body = """
    h = Greater (n, #0.5)
    f = Cast <to = 1> (h)
    y = Mul (f, n)"""
    found = cut(ir_of(body))  # type: ignore[arg-type]
    assert found is not None
    assert found.chosen_by == ("n",)
    assert found.read == ("n",)
    assert found.positions == (0,)
    assert {node.op_type for node in found.tail.graph} == {"Moved", "Greater", "Cast", "Mul"}


@pytest.mark.parametrize(
    "body",
    ["    y = Relu (n)", "    s = Shape (x)\n    f = Cast <to = 1> (s)\n    g = Floor (f)\n"
     "    i = Cast <to = 7> (g)\n    t = Expand (n, i)\n    y = Identity (n)"],
    ids=["none", "of sizes"],
)  # fmt: skip
def test_what_is_no_choice(body: str) -> None:
    assert cut(ir_of(body)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("    y = ArgMax <axis = 1, keepdims = 0> (n)", CLASSES),
        ("    y = Greater (n, #0.5)", "bool[N, 5, H, W] y"),
        ("    h = Greater (n, #0.5)\n    y = NonZero (h)", "int64[4, K] y"),
        ("    q = Mul (n, #20)\n    z = Clip (q, #0, #255)\n    y = Cast <to = 2> (z)",
         "uint8[N, 5, H, W] y"),
        ("    a = Round (n)\n    y = Mul (a, n)", NUMBERS),
    ],
    ids=["argmax", "threshold", "nonzero", "bytes", "rounded"],
)  # fmt: skip
def test_a_right_fold_passes_on_every_draw(body: str, output: str) -> None:
    """An image large enough that some pixels tie."""
    given = {"x": np.zeros((1, 3, 64, 66), np.float32)}
    result = bnfold.fold(made(body, output=output), given, protocol=Protocol(seeds=(0, 1, 2)))
    assert result.plan.batchnorms.folded == 1
    assert result.verification is not None
    assert result.verification.passed, result.verification.summary
    assert result.verification.truth == "float64"


def test_what_an_output_is_chosen_by_is_compared() -> None:
    """Two classes that lose everywhere: no index tells, the scores do."""
    names = {trick.name: trick for trick in TRICKS}
    right, wrong = names["a class off by a thousandth"].models()
    original, other = open_model(right), open_model(wrong)
    found = pairs(original.ir, other.ir)  # type: ignore[attr-defined]
    assert [(pair.one, pair.other) for pair in found] == [("z", "z")]
    verification = bnfold.verify(right, wrong, SIZED)
    assert not verification.passed
    chosen = [row for row in verification.rows if "by which y (ArgMax) chooses" in row.place.output]
    assert chosen or any(row.why for row in verification.rows)


FOOLED = [
    *("height for width", "below the example's width", "above a batch of 3", "beyond 3000"),
    *("where a mean is below -700", "before a sigmoid far from 0", "behind a fill value of -1000"),
    *("a negative row", "a limit of integers", "two losing classes swapped"),
    *("a threshold off by 1e-4", "one shifted box", "a mask of what a ReLU stops"),
]


@pytest.mark.parametrize("trick", [t for t in TRICKS if t.name in FOOLED], ids=lambda t: t.name)
def test_a_mistake_where_probes_seldom_reach_is_seen(trick: object) -> None:
    caught, said = seen(trick)  # type: ignore[arg-type]
    assert caught, said


def test_a_sigmoid_that_is_tiny_everywhere_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """As of a text detector on noise; its logits are what tells a wrong fold."""
    model = made("    z = Sub (n, #16)\n    y = Sigmoid (z)")
    result = bnfold.fold(model, SIZED)
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.truth == "float64"
    wrong = onnx.ModelProto()
    wrong.CopyFrom(result.model)
    for tensor in wrong.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.shape == (5,):
            array[0] += 1e-3
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    found = bnfold.verify(model, wrong, SIZED)
    assert not found.passed


def test_a_choice_in_a_body_is_left_alone() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x, bool b) => (float[2] y) {
        y = If (b) <
            then_branch = t () => (float[2] p) { p = Round (x) },
            else_branch = e () => (float[2] q) { q = Neg (x) }
        >
    }
    """
    model = parser.parse_model(text)
    assert cut(open_model(model).ir) is None  # type: ignore[attr-defined]
    assert bnfold.verify(model, model).passed
