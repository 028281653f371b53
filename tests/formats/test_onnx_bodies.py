"""Bodies of Scan, bodies within bodies, and what they read from outside, in ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.algebra.refusal import Reason
from tests.formats.onnx_nets import Net, check_fold

FLOAT = TensorProto.FLOAT


def body(net: Net, name: str, result: str, *inputs: onnx.ValueInfoProto) -> onnx.GraphProto:
    """What `net` has become as a body; its weights get names of their own."""
    for tensor in net.weights:
        tensor.name = f"{name}.{tensor.name}"
    for node in net.nodes:
        node.input[:] = [f"{name}.{n}" if n.startswith("w") else n for n in node.input]
        node.output[:] = [f"{name}.{n}" if n != result else n for n in node.output]
        node.input[:] = [f"{name}.{n}" if n.startswith("v") else n for n in node.input]
    net.output(result)
    return helper.make_graph(net.nodes, name, list(inputs), net.outputs, net.weights)


def branch(net: Net, then: onnx.GraphProto, other: onnx.GraphProto) -> str:
    test = "test" if any(i.name == "test" for i in net.inputs) else None
    test = test or net.input("test", elem=TensorProto.BOOL)
    return net.node("If", test, then_branch=then, else_branch=other)


def relu(name: str, value: str) -> onnx.GraphProto:
    net = Net()
    net.node("Relu", value, made=f"{name}.out")
    return body(net, name, f"{name}.out")


def operators(model: onnx.ModelProto | onnx.GraphProto) -> list[str]:
    graph = model.graph if isinstance(model, onnx.ModelProto) else model
    found: list[str] = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += operators(attribute.g)
    return found


def test_a_scan_body_folds() -> None:
    """One image after another; the shift of each goes into the convolution of the body."""
    net, inner = Net(), Net(seed=1)
    inner.bn(inner.conv("image", 3, 4), 4, made="y")
    image = helper.make_tensor_value_info("image", FLOAT, [2, 3, 9, 7])
    scanned = body(inner, "scanned", "y", image)
    x = net.input("x", "T", 2, 3, 9, 7)
    net.output(net.node("Scan", x, num_scan_inputs=1, body=scanned), rank=5)
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0, str(plan)
    assert operators(after.native) == ["Scan", "Conv"]


@pytest.mark.parametrize("condition", ["always", ""], ids=["condition", "no condition"])
def test_a_loop_folds_whose_state_has_no_shape(condition: str) -> None:
    """The rank and the channels that its convolution makes are those of the weight."""
    net, inner = Net(), Net(seed=1)
    inner.node("Relu", inner.bn(inner.conv("state", 3, 3, (1, 1)), 3), made="v")
    inner.node("Identity", "on", made="still")
    inner.node("Identity", "v", made="kept")
    boolean = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    state = helper.make_tensor_value_info("state", FLOAT, None)
    repeated = body(inner, "repeated", "still", count, boolean, state)
    repeated.output[0].CopyFrom(helper.make_tensor_value_info("still", TensorProto.BOOL, []))
    for name in ("repeated.v", "repeated.kept"):
        repeated.output.append(helper.make_tensor_value_info(name, FLOAT, None))
    given = net.weight(True, np.bool_, name=condition) if condition else ""
    steps = net.weight(3, np.int64)
    x = net.input("x", "N", 3, 9, 7)
    net.node("Loop", steps, given, x, made=["a", "b"], body=repeated)
    net.output("a")
    net.output("b", rank=5)
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0, str(plan)
    assert "BatchNormalization" not in operators(after.native)


def test_a_body_within_a_body_folds() -> None:
    net, outer, inner = Net(), Net(seed=1), Net(seed=2)
    net.input("x", "N", 3, 9, 7)
    net.input("test", elem=TensorProto.BOOL)
    inner.node("Relu", inner.bn(inner.conv("x", 3, 4), 4), made="deep")
    outer.node(
        "If",
        "test",
        made="middle",
        then_branch=body(inner, "inner", "deep"),
        else_branch=conv("plain"),
    )
    net.output(branch(net, body(outer, "outer", "middle"), conv("other")))
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0, str(plan)
    assert "BatchNormalization" not in operators(after.native)


def conv(name: str) -> onnx.GraphProto:
    net = Net(seed=len(name))
    net.node("Relu", net.conv("x", 3, 4), made=f"{name}.out")
    return body(net, name, f"{name}.out")


def test_a_batchnorm_in_a_branch_folds_into_the_convolution_outside() -> None:
    """Only that branch reads the convolution, so it may change for all."""
    net, inner = Net(), Net(seed=1)
    outside = net.node("Identity", net.conv(net.input("x", "N", 3, 9, 7), 3, 4), made="outside")
    inner.node("Relu", inner.bn(outside, 4), made="y")
    net.output(branch(net, body(inner, "then", "y"), conv("other")))
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0
    assert "BatchNormalization" not in operators(after.native)


def test_a_batchnorm_in_one_branch_stays_where_the_other_reads_the_same() -> None:
    net, inner = Net(), Net(seed=1)
    outside = net.node("Identity", net.conv(net.input("x", "N", 3, 9, 7), 3, 4), made="outside")
    inner.node("Relu", inner.bn(outside, 4), made="y")
    net.output(branch(net, body(inner, "then", "y"), relu("other", outside)))
    _, plan = check_fold(net.proto())
    assert plan.sites[0].reason is Reason.OTHER_READERS


def test_a_batchnorm_outside_folds_into_the_bodies_that_read_it() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    outside = net.bn(net.node("Sigmoid", x), 3, made="outside")
    bodies = []
    for name in ("one", "two"):
        inner = Net(seed=len(name) + ord(name[0]))
        inner.conv(outside, 3, 4)
        inner.nodes[-1].output[0] = f"{name}.y"
        bodies.append(body(inner, name, f"{name}.y"))
    net.output(branch(net, *bodies))
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0
    assert operators(after.native) == ["Sigmoid", "If", "Conv", "Conv"]


@pytest.mark.parametrize("shared", [True, False])
def test_a_weight_from_outside_is_changed_for_its_own_layer_alone(shared: bool) -> None:
    net, inner = Net(), Net(seed=1)
    x, weight = net.input("x", "N", 3, 9, 7), net.normal(4, 3, 3, 3, name="common")
    inner.node("Relu", inner.bn(inner.node("Conv", "x", weight), 4), made="y")
    made = branch(net, body(inner, "then", "y"), conv("other"))
    net.output(net.node("Add", made, net.node("Conv", x, weight)) if shared else made)
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0
    assert "common" in after.ir.graph.initializers
