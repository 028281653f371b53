"""Layers and activations of every opset and layout in ONNX, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnfold.algebra.graph import Activation, Affine, Conv
from bnfold.algebra.refusal import Reason
from bnfold.formats.onnx.model import OnnxModel
from tests.formats.onnx_nets import Net, assert_same, check_fold, fold, kinds


@pytest.mark.parametrize(
    ("opset", "attributes", "reason"),
    [
        (1, {}, Reason.BATCH_STATISTICS),
        (6, {"is_test": 1}, None),
        (6, {"is_test": 1, "spatial": 1}, None),
        (6, {"is_test": 1, "spatial": 0}, None),
        (7, {"spatial": 0}, None),
        (8, {"spatial": 1}, None),
    ],
    ids=str,
)
def test_old_batchnorms(opset: int, attributes: dict[str, Any], reason: Reason | None) -> None:
    """Of a vector: statistics for every element are those of every channel."""
    net = Net(opset=opset, ir=3)
    how = {"transB": 1} | ({"broadcast": 1} if opset < 7 else {})
    gemm = net.node("Gemm", net.input("x", "N", 6), net.normal(4, 6), net.normal(4), **how)
    net.output(net.bn(gemm, 4, **attributes), rank=2)
    _, plan = fold(net.proto())
    assert plan.sites[0].reason is reason
    assert plan.batchnorms.folded == (reason is None)


@pytest.mark.parametrize("is_test", [0, 1])
def test_the_oldest_batchnorm(is_test: int) -> None:
    net = Net(opset=1, ir=3)
    how: dict[str, Any] = {"is_test": is_test, "consumed_inputs": [0, 0, 0, 1, 1]}
    net.output(net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 4), 4, **how))
    _, plan = fold(net.proto())
    assert plan.batchnorms.folded == is_test


def same(net: Net, x: str, mode: str, step: int, kernel: int) -> str:
    weight = net.normal(3, 4, kernel, kernel)
    return net.node("ConvTranspose", x, weight, strides=[step, step], auto_pad=mode)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("sizes", [(9, 7), ("H", "W")], ids=str)
def test_a_transposed_convolution_pads_itself(mode: str, sizes: tuple[int | str, ...]) -> None:
    net = Net()
    x = net.input("x", "N", 3, *sizes)
    net.output(net.bn(same(net, x, mode, 2, 5), 4))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0


def test_sums_of_transposed_convolutions_that_pad_on_other_sides_are_two() -> None:
    """An odd row too many is cut at the end by one, at the beginning by the other."""
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    upper, lower = (same(net, x, mode, 1, 4) for mode in ("SAME_UPPER", "SAME_LOWER"))
    net.output(net.node("Add", upper, lower))
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["ConvTranspose", "ConvTranspose", "Add"]


@pytest.mark.parametrize(
    ("how", "pads"),
    [
        ({"output_shape": [18, 14]}, ((1, 0), (1, 0))),
        ({"output_shape": [16, 13]}, ((2, 1), (1, 1))),
        ({"output_shape": [16, 14], "auto_pad": "SAME_UPPER"}, ((1, 2), (0, 1))),
        ({"auto_pad": "SAME_LOWER"}, ((1, 0), (1, 0))),
        ({"auto_pad": "VALID"}, ((0, 0), (0, 0))),
    ],
    ids=str,
)
def test_a_transposed_convolution_of_a_wanted_size(how: dict[str, Any], pads: Any) -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    made = net.node("ConvTranspose", x, net.normal(3, 4, 3, 3), strides=[2, 2], **how)
    net.output(net.bn(made, 4))
    model = OnnxModel.from_proto(net.proto())
    first = model.read(None).nodes[0].op
    assert isinstance(first, Conv)
    assert first.pads == pads
    _, plan = check_fold(model)
    assert plan.batchnorms.kept == 0


def test_a_wanted_size_of_an_unknown_one_is_opaque() -> None:
    net = Net()
    x = net.input("x", "N", 3, "H", 7)
    made = net.node("ConvTranspose", x, net.normal(3, 4, 3, 3), output_shape=[9, 9])
    net.output(net.bn(made, 4))
    _, plan = fold(net.proto())
    assert plan.batchnorms.kept == 1


@pytest.mark.parametrize("shape", [(2, 5), (2, 1)], ids=str)
def test_a_bias_that_differs_by_row_is_no_bias(shape: tuple[int, ...]) -> None:
    net = Net()
    gemm = net.node("Gemm", net.input("x", 2, 6), net.normal(6, 5), net.normal(*shape))
    net.output(net.bn(gemm, 5), rank=2)
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 1


def test_a_transposed_operand_is_no_layer() -> None:
    net = Net()
    gemm = net.node("Gemm", net.input("x", 6, 2), net.normal(6, 5), transA=1)
    net.output(net.bn(gemm, 5), rank=2)
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 1


def test_bfloat16_folds() -> None:
    """ONNX Runtime has no such convolution on a CPU."""
    net = Net(opset=15, dtype=ml_dtypes.bfloat16)
    net.output(net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 4), 4))
    after, plan = fold(net.proto())
    assert plan.batchnorms.kept == 0
    assert {str(v.dtype) for v in after.ir.graph.initializers.values()} == {"BFLOAT16"}


def test_a_negation_folds_on_either_side() -> None:
    net = Net()
    inner = net.node("Neg", net.conv(net.input("x", "N", 3, 9, 7), 3, 4))
    net.output(net.node("Neg", net.bn(inner, 4)))
    after, plan = check_fold(net.proto())
    assert plan.affines.kept == 0
    assert kinds(after) == ["Conv"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_negation_that_stays_becomes_a_multiplication(first: bool, dtype: type) -> None:
    net = Net(dtype=dtype)
    value = net.input("x", "N", 3, 9, 7)
    for negates in (first, not first):
        value = net.node("Neg", value) if negates else net.node("Mul", value, net.normal(3, 1, 1))
    net.output(net.node("Sigmoid", value))
    model = OnnxModel.from_proto(net.proto())
    after, plan = fold(model)
    assert plan.affines.folded == 1
    assert kinds(after) == ["Mul", "Sigmoid"]
    assert_same(model, after)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_a_sum_of_several(terms: int) -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    net.output(net.bn(net.node("Sum", *(net.conv(x, 3, 4) for _ in range(terms))), 4))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0


def test_a_sum_with_a_constant_is_an_affine() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.node("Sum", net.normal(4, 1, 1), inner))
    after, plan = check_fold(net.proto())
    assert plan.affines.folded == 1
    assert kinds(after) == ["Conv"]


Step = Callable[[Net, str], str]

RELUS: dict[str, tuple[int, Step]] = {
    "minimum": (17, lambda net, y: net.node("Clip", y, net.weight(0.0))),
    "maximum of all": (17, lambda net, y: net.node("Clip", y, net.weight(0.0), net.weight(3.5e38))),
    "attributes": (10, lambda net, y: net.node("Clip", y, min=0.0)),
}
CLIPS: dict[str, tuple[int, Step]] = {
    "relu6": (17, lambda net, y: net.node("Clip", y, net.weight(0.0), net.weight(6.0))),
    "relu6 by attributes": (10, lambda net, y: net.node("Clip", y, min=0.0, max=6.0)),
    "maximum": (17, lambda net, y: net.node("Clip", y, "", net.weight(0.0))),
    "from below": (17, lambda net, y: net.node("Clip", y, net.weight(-1.0))),
    "computed": (17, lambda net, y: net.node("Clip", y, net.input("least"))),
    "computed maximum": (
        17,
        lambda net, y: net.node("Clip", y, net.weight(0.0), net.input("most")),
    ),
}


@pytest.mark.parametrize("case", [*RELUS, *CLIPS])
def test_a_clip_is_a_relu_if_it_cuts_at_zero_only(case: str) -> None:
    opset, step = {**RELUS, **CLIPS}[case]
    net = Net(opset=opset)
    clipped = step(net, net.conv(net.input("x", "N", 3, 9, 7), 3, 4))
    net.output(net.node("Mul", clipped, net.weight(2.0)))
    _, plan = check_fold(net.proto())
    assert plan.affines.folded == (case in RELUS)


@pytest.mark.parametrize(
    ("axes", "keepdims", "folded"),
    [([2, 3], 1, 1), ([-1], 1, 1), ([3, 2], 1, 1), ([2], 1, 1), ([2, 3], 0, 1)],
    ids=str,
)
@pytest.mark.parametrize("opset", [17, 18])
def test_a_maximum_over_axes(axes: list[int], keepdims: int, folded: int, opset: int) -> None:
    net = Net(opset=opset)
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    given = [net.weight(axes, np.int64)] if opset >= 18 else []
    how: dict[str, Any] = {"keepdims": keepdims} | ({} if given else {"axes": axes})
    most = net.node("ReduceMax", inner, *given, **how)
    scaled = net.node("Mul", most, net.weight(2.0))
    net.output(net.node("Add", scaled, net.weight(1.0)), rank=4 if keepdims else 2)
    _, plan = check_fold(net.proto())
    assert plan.affines.folded == 2 * folded


def test_a_maximum_of_negative_scales_stays() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.bn(net.node("ReduceMax", inner, axes=[2, 3]), 4))
    _, plan = check_fold(net.proto())
    assert plan.sites[0].reason is Reason.NEGATIVE_SCALE


@pytest.mark.parametrize("opset", [10, 17])
def test_slopes_are_read(opset: int) -> None:
    net = Net(opset=opset)
    leaky = net.node("LeakyRelu", net.input("x", "N", 3, 9, 7), alpha=0.2)
    net.output(net.node("PRelu", leaky, net.weight([[[2]], [[3]], [[4]]])))
    ops = [node.op for node in OnnxModel.from_proto(net.proto()).read(None).nodes]
    slopes = [op.slope.reshape(-1).tolist() for op in ops if isinstance(op, Activation)]
    assert slopes == [[pytest.approx(0.2)], [2, 3, 4]]


def test_affines_are_told_apart_from_products() -> None:
    net = Net()
    x = net.input("x", 2, 5, 5, 5)
    net.output(net.node("Mul", net.node("Mul", x, net.normal(5, 1, 5)), net.normal(5)))
    ops = [node.op for node in OnnxModel.from_proto(net.proto()).read(None).nodes]
    assert [isinstance(op, Affine) for op in ops if type(op).__name__ != "Opaque"] == [False, True]


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_a_convolution_after_an_unknown_operator_folds(kind: str) -> None:
    """onnx infers no shape past it; the weight tells the rank and the channels."""
    net = Net()
    made = net.node("Gelu", net.input("x", "N", 4, 9, 7), domain="com.microsoft")
    out = 6 if kind == "Conv" else 10
    layer = net.node(kind, made, net.normal(*((6, 2) if kind == "Conv" else (4, 5)), 3, 3), group=2)
    net.output(net.node("Relu", net.bn(layer, out)))
    proto = net.proto()
    proto.opset_import.add(domain="com.microsoft", version=1)
    _, plan = check_fold(proto)
    assert plan.batchnorms.kept == 0, str(plan)
