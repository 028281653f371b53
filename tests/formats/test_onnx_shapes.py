"""Shapes that a file does not say: evident ones are seen without onnx, others are inferred."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.formats.onnx import values
from bnfold.formats.onnx.model import OnnxModel
from tests.formats.onnx_nets import Net


def network(*last: str) -> tuple[onnx.ModelProto, str]:
    """A convolution and an output whose shapes are said; between them values whose are not."""
    net = Net()
    made = net.conv(net.input("x", 2, 3, 9, 7), 3, 4)
    flat = net.node("Reshape", net.node("Sigmoid", made), net.weight([2, 4, 35], "int64"))
    result = net.node(last[0], flat, *(net.weight(1, "int64") for _ in last[1:]))
    output = net.node("Abs", result)
    net.outputs.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [2, 4, 35]))
    proto = net.proto()
    proto.graph.value_info.append(
        helper.make_tensor_value_info(made, TensorProto.FLOAT, [2, 4, 7, 5])
    )
    return proto, result


def test_evident_shapes_need_no_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any) -> Any:
        raise AssertionError("inference ran")

    monkeypatch.setattr(values, "inferred", fail)
    proto, result = network("Relu")
    assert OnnxModel.from_proto(proto).read(None).shapes[result] == (2, 4, 35)


def test_other_shapes_are_inferred() -> None:
    proto, result = network("CumSum", "axis")
    assert OnnxModel.from_proto(proto).read(None).shapes[result] == (2, 4, 35)


@pytest.mark.parametrize("target", [[2, 4, -1], [0, 4, 35]])
def test_a_reshape_that_leaves_a_size_open_is_inferred(target: list[int]) -> None:
    proto, result = network("Relu")
    (sizes,) = (each for each in proto.graph.initializer if each.data_type == TensorProto.INT64)
    sizes.CopyFrom(helper.make_tensor(sizes.name, TensorProto.INT64, [3], target))
    assert OnnxModel.from_proto(proto).read(None).shapes[result] == (2, 4, 35)


def test_a_chain_of_which_nothing_is_said_may_be_asked_from_its_end() -> None:
    net = Net()
    value = net.conv(net.input("x", 2, 3, 9, 7), 3, 4)
    for _ in range(2000):
        value = net.node("Sigmoid", value)
    net.output(value)
    model = OnnxModel.from_proto(net.proto()).ir
    (last,) = (each for node in model.graph for each in node.outputs if each.name == value)
    last.shape = last.type = None
    known = values.Values(model)
    assert (known.dtype(last), known.shape(last)) == ("float32", (2, 4, 7, 5))
