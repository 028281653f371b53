"""A node that is the same in an older opset goes there; the converter takes the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bnfold.errors import ExportError
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.onnx.opsets import _is_same, at_opset
from tests.formats.onnx_nets import Net

OWN = 20


def node(kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
    made = [f"y{i}" for i in range(outputs)]
    return helper.make_node(kind, inputs or ["x"], made, **attributes)


@pytest.mark.parametrize(
    ("made", "version"),
    {
        "only types differ": (node("Relu"), 14),
        "the same version": (node("MatMul", "x", "w"), 20),
        "a BatchNorm in inference": (node("BatchNormalization", *"xsbmv"), 14),
        "a later attribute at its default": (
            node("BatchNormalization", *"xsbmv", training_mode=0),
            14,
        ),
        "a later attribute that is not set": (node("Reshape", "x", "s"), 14),
        "a later input that is not given": (node("Pad", "x", "p"), 18),
    }.values(),
)
def test_what_is_the_same(made: onnx.NodeProto, version: int) -> None:
    assert _is_same(made, version)


@pytest.mark.parametrize(
    ("made", "version"),
    {
        "a default changed": (node("Softmax"), 13),
        "an attribute became an input": (node("ReduceSum", "x", "a"), 13),
        "a later attribute in use": (node("Reshape", "x", "s", allowzero=1), 14),
        "a later input in use": (node("Pad", "x", "p", "v", "axes"), 18),
        "a choice that was not there": (node("TopK", "x", "k", outputs=2, sorted=0), 11),
        "it was not there": (node("HardSwish"), 14),
        "it is deprecated": (node("Upsample", "x", "s"), 10),
        "the old meaning is not the new default": (node("RoiAlign", *"xrb"), 16),
        "another domain": (helper.make_node("Relu", ["x"], ["y"], domain="com.microsoft"), 14),
        "what was required is left out": (node("Resize", "x", "", "s"), 13),
    }.values(),
)
def test_what_is_not_the_same(made: onnx.NodeProto, version: int) -> None:
    assert not _is_same(made, version)


def results(proto: onnx.ModelProto, x: NDArray[Any]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"x": x}))


def everyday() -> onnx.ModelProto:
    """What a classifier and a detector are made of, as opset 20 writes it."""
    net = Net(opset=OWN)
    value = net.bn(net.conv(net.input("x", 2, 3, 8, 6), 3, 4), 4, epsilon=0.25)
    value = net.node("LeakyRelu", value, alpha=0.3)
    value = net.node("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    value = net.node("Clip", value, *(net.weight(np.array(v, np.float32)) for v in (-1.0, 1.5)))
    value = net.node("Concat", value, net.node("Sigmoid", value), axis=1)
    value = net.node("Mul", value, net.node("Tanh", value))
    pooled = net.node("GlobalAveragePool", value)
    value = net.node("ReduceMean", value, net.weight(np.array([2, 3]), np.int64), keepdims=1)
    flat = net.node("Flatten", net.node("Add", pooled, value))
    weights = net.normal(5, 8), net.normal(5)
    net.output(net.node("Gemm", flat, *weights, transB=1), 2)
    return net.proto()


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 17, 19, 22])
def test_the_converted_model_computes_the_same(opset: int) -> None:
    proto = everyday()
    made = at_opset(OnnxModel.from_proto(proto), opset).native
    onnx.checker.check_model(made, full_check=True)
    assert [(o.domain, o.version) for o in made.opset_import] == [("", opset)]
    x = np.random.default_rng(3).standard_normal((2, 3, 8, 6)).astype(np.float32)
    for found, expected in zip(results(made, x), results(proto, x), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_model_itself_is_left_as_it_is() -> None:
    model = OnnxModel.from_proto(everyday())
    before = model.native.SerializeToString()
    at_opset(model, 13)
    assert model.native.SerializeToString() == before
    assert at_opset(model, OWN) is model
    assert at_opset(model, None) is model


def test_the_operator_and_the_nearest_opset_are_told() -> None:
    net = Net(opset=OWN)
    net.output(net.node("HardSwish", net.input("x", 2, 3, 8, 6)))
    with pytest.raises(ExportError, match=r"from opset 20 to 11: .*HardSwish") as caught:
        at_opset(OnnxModel.from_proto(net.proto()), 11)
    assert caught.value.hint == "use --opset 14"


def test_the_body_of_a_branch_is_the_converters() -> None:
    then = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    branch = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=then)
    assert not _is_same(branch, 19)
