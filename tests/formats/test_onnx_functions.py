"""Functions that an ONNX model brings along: they fold as far as they can be inlined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.algebra.refusal import Reason
from bnfold.errors import ModelError
from bnfold.formats.onnx.functions import inlined
from bnfold.formats.onnx.model import OnnxModel
from tests.conftest import Ended
from tests.formats.onnx_nets import Net, assert_same, check_fold, fold, kinds

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


def with_one_call(opset: int) -> onnx.ModelProto:
    """A BatchNorm of the model's own, and one in a function of another opset than its 17."""
    net = Net()
    inner = net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 4), 4)
    given = inner, net.normal(5, 4, 3, 3), *net.statistics(5)
    net.output(net.node("Block", *given, domain="local"))
    return with_functions(net, function(conv_bn(), opset=opset))


def test_a_function_of_another_opset_in_which_all_is_the_same_folds() -> None:
    after, plan = check_fold(with_one_call(15))
    assert kinds(after) == ["Conv", "Conv"]
    assert plan.batchnorms.folded == 2
    assert not after.native.functions


@pytest.mark.parametrize("opset", [9, 14])
def test_a_batchnorm_in_a_function_of_an_opset_that_differs_is_kept(opset: int) -> None:
    """BatchNormalization changed in 14 and in 15."""
    before = OnnxModel.from_proto(with_one_call(opset))
    after, plan = fold(before)
    assert_same(before, after)
    assert kinds(after) == ["Conv", "Block"]
    assert plan.batchnorms.folded == plan.batchnorms.kept == 1
    assert len(after.native.functions) == 1
    site = plan.sites[1]
    assert (site.name, site.reason, site.batchnorm) == ("Block_2", Reason.FUNCTION, True)
    assert "local::Block, with 1 BatchNorms in it: its " in site.why
    assert f"is of opset {opset}, and may be another than that of 17" in site.why


def test_an_opset_that_is_not_known_is_not_guessed() -> None:
    """Even one beyond all that onnx knows could change an operator."""
    newest = onnx.defs.onnx_opset_version()
    proto = with_one_call(newest + 1)
    proto.opset_import[0].version = newest
    _, plan = fold(proto)
    assert [site.reason for site in plan.sites if site.batchnorm] == [None, Reason.FUNCTION]


def test_require_folded_sees_a_batchnorm_in_a_function(
    bnfold: Callable[..., Ended], tmp_path: Path
) -> None:
    onnx.save(with_one_call(9), tmp_path / "m.onnx")
    ended = bnfold("inspect", tmp_path / "m.onnx", "--require-folded")
    assert ended.code == 1
    assert "--require-folded: 1 BatchNorm is kept" in ended.out


def test_a_function_that_stays_keeps_what_it_calls_also_where_that_is_put_in_place() -> None:
    """What it calls is of the model's opset, and must not be put into one of another."""
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    value = net.node("Outer", x, net.normal(3, 3, 3, 3), *net.statistics(3), domain="local")
    given = value, net.normal(3, 3, 3, 3), *net.statistics(3)
    net.output(net.node("Block", *given, domain="local"))
    call = helper.make_node("Block", BLOCK, ["e"], domain="local")
    outer = [call, helper.make_node("Softmax", ["e"], ["d"])]
    functions = function(conv_bn()), function(outer, opset=12, name="Outer")
    before = OnnxModel.from_proto(with_functions(net, *functions))
    after, plan = fold(before)
    assert_same(before, after)
    assert kinds(after) == ["Outer", "Conv"]
    assert plan.batchnorms.folded == plan.batchnorms.kept == 1
    assert {each.name for each in after.native.functions} == {"Outer", "Block"}
    (block,) = (each for each in after.native.functions if each.name == "Block")
    assert [node.op_type for node in block.node] == ["Conv", "BatchNormalization"]


def test_a_batchnorm_in_a_function_that_stays_in_a_branch_is_kept() -> None:
    net, body = Net(), Net(seed=3)
    net.input("x", "N", 3, 9, 7)
    weight, statistics = body.normal(3, 3, 3, 3), body.statistics(3)
    body.output(body.node("Block", "x", weight, *statistics, domain="local"))
    then = helper.make_graph(body.nodes, "then", [], body.outputs, body.weights)
    other = Net(seed=4)
    other.output(other.node("Relu", "x", made="else"))
    els = helper.make_graph(other.nodes, "else", [], other.outputs, other.weights)
    test = net.input("test", elem=TensorProto.BOOL)
    net.output(net.node("If", test, then_branch=then, else_branch=els))
    _, plan = fold(with_functions(net, function(conv_bn(), opset=9)))
    assert [site.reason for site in plan.sites] == [Reason.FUNCTION]


def test_names_in_a_branch_stay_apart_from_those_of_functions() -> None:
    """What two calls make of `c` is `c` and `c_2`, which a branch has already."""
    net = Net()
    value = net.input("x", "N", 3, 9, 7)
    for _ in range(2):
        given = value, net.normal(3, 3, 3, 3), *net.statistics(3)
        value = net.node("Relu", net.node("Block", *given, domain="local"))
    net.output(value)
    body = Net()
    body.node("Add", "x", body.weight(2.0, name="c"), made="c_2")
    body.output(body.node("Relu", "c_2", made="e"))
    then = helper.make_graph(body.nodes, "then", [], body.outputs, body.weights)
    els = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, [None] * 4)],
    )
    test = net.input("test", elem=TensorProto.BOOL)
    net.output(net.node("If", test, then_branch=then, else_branch=els))
    nodes = conv_bn()
    nodes.insert(1, helper.make_node("Sigmoid", ["c"], ["e"]))
    nodes[2].input[0] = "e"
    after, plan = check_fold(with_functions(net, function(nodes)))
    assert plan.batchnorms.found == 2
    assert "c_2" in {value.name for node in after.ir.graph.all_nodes() for value in node.inputs}


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


def test_a_batchnorm_in_a_function_that_is_called_like_an_operator_is_kept() -> None:
    net = Net()
    given = net.input("x", "N", 3, 9, 7), net.normal(4, 3, 3, 3), *net.statistics(4)
    net.output(net.node("FusedConv", *given, domain="com.microsoft"))
    proto = with_functions(net, function(conv_bn(), domain="com.microsoft", name="FusedConv"))
    _, plan = fold(proto)
    assert [site.reason for site in plan.sites] == [Reason.FUNCTION]
    assert "a runtime may take an operator of its own" in plan.sites[0].why


def test_functions_that_call_each_other_are_left_alone() -> None:
    """And counted, and do not keep another from being put in place."""
    net = Net()
    given = net.input("x", "N", 3, 9, 7), net.normal(4, 3, 3, 3), *net.statistics(4)
    value = net.node("Block", *given, domain="local")
    net.output(net.node("One", value, *net.statistics(4), domain="local"))
    circle = []
    for own, other in (("One", "Two"), ("Two", "One")):
        norm = helper.make_node("BatchNormalization", ["a", *BLOCK[2:]], ["c"])
        call = helper.make_node(other, ["c", *BLOCK[2:]], ["d"], domain="local")
        circle.append(function([norm, call], name=own, inputs=["a", *BLOCK[2:]]))
    _, plan = fold(with_functions(net, function(conv_bn()), *circle))
    assert [site.op for site in plan.sites] == ["BatchNormalization", "One"]
    assert plan.sites[1].reason is Reason.FUNCTION
    assert "local::One, with 2 BatchNorms in it: it calls itself" in plan.sites[1].why


def test_a_function_that_is_given_a_graph_is_refused() -> None:
    net = Net()
    made = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "body", [], [made])
    net.input("x", 2)
    net.output(net.node("Choose", net.input("t", elem=TensorProto.BOOL), domain="local", b=body))
    choice = helper.make_node("If", ["t"], ["d"])
    for branch in ("then_branch", "else_branch"):
        choice.attribute.add(name=branch, ref_attr_name="b", type=onnx.AttributeProto.GRAPH)
    choose = function([choice], name="Choose", inputs=["t"], attributes=["b"])
    with pytest.raises(ModelError, match="a function that is given a graph"):
        fold(with_functions(net, choose))


def test_a_call_that_does_not_fit_its_function_is_kept() -> None:
    net = Net()
    given = net.input("x", "N", 3, 9, 7), net.normal(4, 3, 3, 3), *net.statistics(4)
    net.output(net.node("Block", *given, net.weight(1.0), domain="local"))
    _, plan = fold(with_functions(net, function(conv_bn())))
    assert [site.reason for site in plan.sites] == [Reason.FUNCTION]


def test_an_operator_of_somebody_else_may_change_with_its_version() -> None:
    """And one without a BatchNorm in it is none."""
    net = Net()
    net.output(net.node("Block", net.input("x", "N", 3, 9, 7), domain="local"))
    for version in (1, 2):
        block = function([helper.make_node("Secret", ["a"], ["d"], domain="mmcv")], inputs=["a"])
        block.opset_import.append(helper.make_opsetid("mmcv", version))
        proto = with_functions(net, block)
        proto.opset_import.append(helper.make_opsetid("mmcv", 2))
        model = OnnxModel.from_proto(proto)
        assert bool(inlined(model.ir).functions) == (version == 1)
        assert not fold(model)[1].sites


def test_functions_have_no_version() -> None:
    """Each is here once; a BatchNorm that one is called after is none of its own."""
    net = Net()
    given = net.input("x", "N", 3, 9, 7), net.normal(4, 3, 3, 3), *net.statistics(4)
    net.output(net.node("Outer", *given, domain="local"))
    call = helper.make_node("MyBatchNorm", BLOCK, ["e"], domain="local")
    for opset, left in ((17, ["Conv", "Relu"]), (9, ["Outer"])):
        inner = function(conv_bn(), opset=opset, name="MyBatchNorm")
        nodes = [call, helper.make_node("Relu", ["e"], ["d"])]
        outer = function(nodes, opset=opset, name="Outer")
        proto = with_functions(net, inner, outer)
        proto.opset_import[-1].version = 2
        after, plan = fold(proto)
        assert kinds(after) == left
        assert plan.batchnorms.kept == (opset == 9)
        assert opset == 17 or "with 1 BatchNorms in it" in (plan.sites[0].why or "")


@pytest.mark.parametrize("kind", ["SyncBatchNorm", "BatchNormInternal", "batch_norm"])
def test_a_batchnorm_of_somebody_else_is_kept(kind: str) -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.node(kind, inner, *net.statistics(4), domain="mmcv"))
    _, plan = fold(net.proto())
    assert [(site.batchnorm, site.reason) for site in plan.sites] == [(True, Reason.NOT_LINEAR)]


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
