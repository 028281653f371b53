"""Functions that an ONNX model brings along: they fold as far as they can be inlined."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tests.formats.onnx_nets import Net, check_fold, fold, kinds

BLOCK = ["a", "w", "scale", "b", "mean", "var"]


def function(nodes: list[onnx.NodeProto], opset: int = 17, **how: Any) -> onnx.FunctionProto:
    domain, name = how.pop("domain", "local"), how.pop("name", "Block")
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    inputs, outputs = how.pop("inputs", BLOCK), how.pop("outputs", ["d"])
    return helper.make_function(domain, name, inputs, outputs, nodes, opsets, **how)


def conv_bn() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", ["a", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", *BLOCK[2:]], ["d"], name="bn"),
    ]


def with_functions(net: Net, *functions: onnx.FunctionProto) -> onnx.ModelProto:
    proto = net.proto()
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.functions.extend(functions)
    return proto


@pytest.mark.parametrize("calls", [1, 2])
def test_each_call_of_a_function_folds(calls: int) -> None:
    """Both calls share one weight, which then becomes two."""
    net = Net()
    value, weight = net.input("x", "N", 3, 9, 7), net.normal(3, 3, 3, 3)
    for _ in range(calls):
        value = net.node("Block", value, weight, *net.statistics(3), domain="local")
    net.output(value)
    proto = with_functions(net, function(conv_bn()))
    after, plan = check_fold(proto)
    assert kinds(after) == ["Conv"] * calls
    assert plan.batchnorms.folded == calls
    assert not after.native.functions
    assert len(proto.functions) == 1


def test_a_function_of_functions_folds() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    net.output(net.node("Outer", x, net.normal(4, 3, 3, 3), *net.statistics(4), domain="local"))
    call = helper.make_node("Block", BLOCK, ["e"], domain="local")
    outer = function([call, helper.make_node("Relu", ["e"], ["d"])], name="Outer")
    after, plan = check_fold(with_functions(net, function(conv_bn()), outer))
    assert kinds(after) == ["Conv", "Relu"]
    assert plan.batchnorms.kept == 0


def test_attributes_reach_the_function() -> None:
    net = Net()
    given = net.input("x", "N", 3, 9, 7), net.normal(4, 3, 3, 3), *net.statistics(4)
    net.output(net.node("Block", *given, domain="local", eps=0.5))
    nodes = conv_bn()
    kind = onnx.AttributeProto.FLOAT
    nodes[1].attribute.add(name="epsilon", ref_attr_name="eps", type=kind)
    after, plan = check_fold(with_functions(net, function(nodes, attributes=["eps"])))
    assert plan.batchnorms.kept == 0
    assert kinds(after) == ["Conv"]


def test_a_function_inside_a_branch_folds() -> None:
    net, body = Net(), Net(seed=3)
    net.input("x", "N", 3, 9, 7)
    weight, statistics = body.normal(3, 3, 3, 3), body.statistics(3)
    body.output(body.node("Block", "x", weight, *statistics, domain="local"))
    then = helper.make_graph(body.nodes, "then", [], body.outputs, body.weights)
    other = Net(seed=4)
    weight = other.normal(3, 3, 3, 3, name="other")
    other.output(other.node("Conv", "x", weight, made="else"))
    els = helper.make_graph(other.nodes, "else", [], other.outputs, other.weights)
    test = net.input("test", elem=TensorProto.BOOL)
    net.output(net.node("If", test, then_branch=then, else_branch=els))
    after, plan = check_fold(with_functions(net, function(conv_bn())))
    assert plan.batchnorms.folded == 1
    assert "BatchNormalization" not in {node.op_type for node in after.ir.graph.all_nodes()}


def test_a_function_of_another_opset_is_opaque_and_survives() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    inner = net.bn(net.conv(x, 3, 4), 4)
    value = net.node("Block", inner, net.normal(5, 4, 3, 3), *net.statistics(5), domain="local")
    net.output(value)
    after, plan = check_fold(with_functions(net, function(conv_bn(), opset=15)))
    assert kinds(after) == ["Conv", "Block"]
    assert plan.batchnorms.folded == 1
    assert len(after.native.functions) == 1


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_a_function_that_is_called_like_an_operator_is_neither(domain: str) -> None:
    """Runtimes take the operator, the standard says the function: nothing is known of it."""
    name = "Identity" if domain == "" else "Gelu"
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.bn(net.node(name, inner, domain=domain), 4))
    exp = [helper.make_node("Exp", ["a"], ["d"])]
    proto = with_functions(net, function(exp, domain=domain, name=name, inputs=["a"]))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    after, plan = fold(proto)
    assert plan.batchnorms.folded == 0
    assert kinds(after) == ["Conv", name, "BatchNormalization"]


def test_a_function_called_like_an_operator_makes_no_constants() -> None:
    net = Net()
    x, weight = net.input("x", "N", 3, 9, 7), net.normal(4, 3, 3, 3)
    bias = net.node("Neg", net.normal(4))
    net.output(net.bn(net.node("Conv", x, weight, bias), 4))
    exp = [helper.make_node("Exp", ["a"], ["d"])]
    _, plan = fold(with_functions(net, function(exp, domain="", name="Neg", inputs=["a"])))
    assert plan.batchnorms.folded == 0


def test_functions_that_call_each_other_are_left_alone() -> None:
    net = Net()
    net.output(net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 4), 4))
    circle = [
        function([helper.make_node(other, ["a"], ["d"], domain="local")], name=own, inputs=["a"])
        for own, other in (("One", "Two"), ("Two", "One"))
    ]
    _, plan = fold(with_functions(net, *circle))
    assert plan.batchnorms.found == 1


def swish(domain: str = "local") -> onnx.FunctionProto:
    nodes = [
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["d"]),
    ]
    return function(nodes, name="Swish", inputs=["a"], domain=domain)


def test_a_function_that_nothing_is_folded_in_stays() -> None:
    """Beside one that is put in place, and calls it."""
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    value = net.node("Swish", x, domain="local")
    given = value, net.normal(3, 3, 3, 3), *net.statistics(3)
    net.output(net.node("Outer", *given, domain="local"))
    call = helper.make_node("Swish", ["e"], ["d"], domain="local")
    nodes = conv_bn()
    nodes[1].output[0] = "e"
    outer = function([*nodes, call], name="Outer")
    after, plan = check_fold(with_functions(net, swish(), outer))
    assert plan.batchnorms.folded == 1
    assert [each.name for each in after.native.functions] == ["Swish"]
    assert [node.op_type for node in after.native.graph.node] == ["Swish", "Conv", "Swish"]


def test_a_function_that_an_affine_passes_is_put_in_place() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    value = net.node("Keep", net.conv(x, 3, 4), domain="local")
    net.output(net.bn(value, 4))
    nodes = [
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["d"]),
    ]
    keep = function(nodes, name="Keep", inputs=["a"])
    after, plan = check_fold(with_functions(net, keep))
    assert plan.batchnorms.folded == 1
    assert not after.native.functions
