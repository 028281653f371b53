"""Folding ONNX models: every form of every operator that takes an affine, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.algebra.refusal import Reason
from bnfold.formats.onnx.model import OnnxModel
from tests.formats.onnx_nets import Net, assert_same, check_fold, fold, kinds

SAME = {"auto_pad": "SAME_UPPER"}


def conv_bn(net: Net, x: str) -> str:
    return net.bn(net.conv(x, 3, 5), 5)


def conv_1d(net: Net, x: str) -> str:
    flat = net.node("Reshape", x, net.weight([0, 3, 63], np.int64))
    wide = net.conv(flat, 3, 4, (5,), strides=[2], dilations=[2], pads=[1, 3])
    return net.node("Unsqueeze", net.bn(wide, 4), net.weight([3], np.int64))


def grouped(net: Net, x: str) -> str:
    return net.bn(net.conv(net.conv(x, 3, 6), 6, 8, (3, 1), group=2, bias=False), 8)


def transposed_grouped(net: Net, x: str) -> str:
    wide = net.conv(x, 3, 4, (1, 1))
    weight, bias = net.normal(4, 3, 3, 2), net.normal(6)
    how: dict[str, Any] = {
        "group": 2,
        "strides": [2, 1],
        "output_padding": [1, 0],
        "pads": [1, 0, 0, 1],
    }
    return net.bn(net.node("ConvTranspose", wide, weight, bias, **how), 6)


def transposed_after(net: Net, x: str) -> str:
    """A BatchNorm before a ConvTranspose of which every output sees all taps."""
    wide = net.bn(net.node("Relu", net.conv(x, 3, 4, (1, 1))), 4)
    return net.node("ConvTranspose", wide, net.normal(4, 3, 3, 3), group=2, pads=[2, 2, 2, 2])


def same_upper(net: Net, x: str) -> str:
    return net.bn(net.conv(x, 3, 5, (4, 3), strides=[2, 1], **SAME), 5)


def before_valid(net: Net, x: str) -> str:
    return net.conv(net.bn(x, 3), 3, 4, (3, 2), auto_pad="VALID")


def before_pointwise_same(net: Net, x: str) -> str:
    return net.conv(net.bn(x, 3), 3, 4, (1, 1), strides=[2, 3], **SAME)


def before_grouped(net: Net, x: str) -> str:
    return net.conv(net.bn(x, 3), 3, 6, (2, 2), group=3, bias=False)


def through_max_pool(net: Net, x: str) -> str:
    """Signs go up, so this only folds down; positive ones would fold up."""
    pooled = net.node("MaxPool", net.bn(x, 3), kernel_shape=[1, 1])
    return net.conv(pooled, 3, 4)


def through_average_pool(net: Net, x: str) -> str:
    wide = net.conv(x, 3, 5)
    pooled = net.node("AveragePool", wide, kernel_shape=[3, 2], pads=[1, 0, 1, 1])
    return net.bn(pooled, 5)


def through_global_pool(net: Net, x: str) -> str:
    return net.bn(net.node("GlobalAveragePool", net.conv(x, 3, 5)), 5)


def through_mean(net: Net, x: str) -> str:
    return net.bn(net.node("ReduceMean", net.conv(x, 3, 5), axes=[-1, 2]), 5)


def through_flatten(net: Net, x: str) -> str:
    flat = net.node("Flatten", net.bn(net.node("Relu", net.conv(x, 3, 2)), 2))
    dense = net.node("Gemm", flat, net.normal(2 * 7 * 5, 4), net.normal(4))
    return net.node("Reshape", dense, net.weight([0, 4, 1, 1], np.int64))


def through_concat(net: Net, x: str) -> str:
    both = net.node("Concat", net.conv(x, 3, 2), net.conv(x, 3, 3), axis=-3)
    return net.bn(both, 5)


def through_add(net: Net, x: str) -> str:
    return net.bn(net.node("Add", net.conv(x, 3, 4), net.conv(x, 3, 4)), 4)


def through_transpose(net: Net, x: str) -> str:
    turned = net.node("Transpose", net.conv(x, 3, 4), perm=[0, 2, 3, 1])
    scaled = net.node("Mul", turned, net.normal(4))
    return net.node("Add", net.normal(1, 4), scaled)


def through_identity(net: Net, x: str) -> str:
    same = net.node("Cast", net.node("Dropout", net.conv(x, 3, 4)), to=TensorProto.FLOAT)
    return net.bn(net.node("Identity", same), 4)


def constants(net: Net, x: str) -> str:
    """((c - conv(x)) * 3 / d + e) - f, with channel constants of several ranks."""
    value = net.node("Sub", net.normal(4, 1, 1), net.conv(x, 3, 4))
    value = net.node("Mul", net.weight(3.0), value)
    value = net.node("Div", value, net.weight([[[[0.5]], [[-2]], [[4]], [[3]]]]))
    return net.node("Sub", net.node("Add", value, net.normal(1, 1, 1)), net.normal(4, 1, 1))


def two_bns_in_a_row(net: Net, x: str) -> str:
    return net.bn(net.bn(net.conv(x, 3, 4), 4, epsilon=0.0), 4, epsilon=0.1)


def leaky(net: Net, x: str) -> str:
    scaled = net.node("Mul", net.node("LeakyRelu", net.conv(x, 3, 4)), net.weight(0.25))
    return net.node("PRelu", scaled, net.normal(4, 1, 1))


FOLDS: list[Callable[[Net, str], str]] = [
    conv_bn,
    conv_1d,
    grouped,
    transposed_grouped,
    transposed_after,
    same_upper,
    before_valid,
    before_pointwise_same,
    before_grouped,
    through_average_pool,
    through_global_pool,
    through_mean,
    through_flatten,
    through_concat,
    through_add,
    through_transpose,
    through_identity,
    constants,
    two_bns_in_a_row,
    leaky,
]


@pytest.mark.parametrize("build", FOLDS, ids=lambda f: f.__name__)
def test_everything_folds(build: Callable[[Net, str], str]) -> None:
    net = Net()
    net.output(build(net, net.input("x", "N", 3, 9, 7)))
    after, plan = check_fold(net.proto())
    assert plan.affines.found > 0
    assert plan.affines.kept == 0, str(plan)
    gone = {"BatchNormalization", "Mul", "Div", "Sub"}
    assert not gone & set(kinds(after))


@pytest.mark.parametrize("opset", [9, 13, 14, 15, 20])
def test_batchnorm_of_any_opset(opset: int) -> None:
    net = Net(opset=opset)
    net.output(conv_bn(net, net.input("x", "N", 3, 9, 7)))
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["Conv"]
    assert after.native.opset_import[0].version == opset
    assert after.native.ir_version == 8


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("rows", [None, (), (1,), (5,), (1, 5), (1, 1)])
def test_gemm_in_every_layout(trans_b: int, rows: tuple[int, ...] | None) -> None:
    net = Net()
    shape = (5, 6) if trans_b else (6, 5)
    bias = [] if rows is None else [net.normal(*rows)]
    before = net.bn(net.input("x", "N", 6), 6)
    gemm = net.node("Gemm", before, net.normal(*shape), *bias, alpha=0.3, beta=-1.7, transB=trans_b)
    net.output(net.bn(gemm, 5), rank=2)
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["Gemm"]


def test_gemm_bias_that_differs_by_row_is_left_alone() -> None:
    net = Net()
    gemm = net.node("Gemm", net.input("x", 2, 6), net.normal(6, 5), net.normal(2, 5))
    net.output(net.bn(gemm, 5), rank=2)
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["Gemm", "BatchNormalization"]
    assert "Gemm_0 (Gemm): its bias [2, 5] is no row of 5" in str(plan.sites[0].why)


@pytest.mark.parametrize("sizes", [("N", 6), ("N", 4, 6), ("N", "M", 4, 6)])
def test_matmul_without_bias_gets_one(sizes: tuple[int | str, ...]) -> None:
    net = Net()
    product = net.node("MatMul", net.input("x", *sizes), net.normal(6, 5))
    scaled = net.node("Mul", net.normal(5), product)
    net.output(net.node("Add", scaled, net.normal(5)), rank=len(sizes))
    after, plan = check_fold(net.proto())
    assert plan.affines.kept == 0
    assert kinds(after) == (["Gemm"] if len(sizes) == 2 else ["MatMul", "Add"])


def test_matmul_and_add_are_one_layer() -> None:
    net = Net()
    product = net.node("MatMul", net.input("x", "N", "L", 6), net.normal(6, 5))
    total = net.node("Add", net.normal(1, 5), product)
    scaled = net.node("Div", total, net.weight([1.5, 2, -3, 4, 5]))
    net.output(net.node("Sub", scaled, net.normal(5)), rank=3)
    after, plan = check_fold(net.proto())
    assert [site.name for site in plan.sites] == ["Div_2", "Sub_3"]
    assert [site.into for site in plan.sites] == [("MatMul_0",)] * 2
    assert kinds(after) == ["MatMul", "Add"]


def test_batchnorm_over_the_middle_axis_is_not_the_features() -> None:
    net = Net()
    product = net.node("MatMul", net.input("x", "N", 5, 6), net.normal(6, 5))
    net.output(net.bn(product, 5), rank=3)
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["MatMul", "BatchNormalization"]
    assert plan.sites[0].reason is Reason.WRONG_AXIS


def test_names_and_types_of_outputs_survive() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    net.bn(net.conv(x, 3, 4), 4, made="y")
    net.output("y")
    net.node("Mul", x, net.weight(1.0), made="same")
    net.output("same")
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["Conv", "Identity"]
    assert plan.affines.kept == 0


def test_convolution_that_is_also_an_output_stays() -> None:
    net = Net()
    inner = net.output(net.conv(net.input("x", "N", 3, 9, 7), 3, 4))
    net.output(net.bn(inner, 4))
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["Conv", "BatchNormalization"]
    assert plan.sites[0].reason is Reason.GRAPH_OUTPUT


def test_convolution_read_by_two_batchnorms_stays() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.bn(inner, 4))
    net.output(net.bn(inner, 4))
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["Conv", "BatchNormalization", "BatchNormalization"]
    assert {site.reason for site in plan.sites} == {Reason.OTHER_READERS}


def test_shared_weight_is_copied() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    weight = net.normal(4, 3, 3, 3, name="shared")
    net.output(net.bn(net.node("Conv", x, weight), 4))
    net.output(net.node("Conv", x, weight))
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["Conv", "Conv"]
    names = [node.input[1] for node in after.native.graph.node]
    assert names[1] == "shared"
    assert names[0] != "shared"


def test_own_weight_keeps_its_name_and_old_tensors_go() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    net.output(net.bn(net.node("Conv", x, net.normal(4, 3, 3, 3, name="conv.weight")), 4))
    after, _ = check_fold(net.proto())
    assert list(after.ir.graph.initializers) == ["conv.weight", "Conv_0.bias"]


def test_weight_that_can_be_overridden_is_no_constant() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    weight = net.normal(4, 3, 3, 3)
    net.output(net.bn(net.node("Conv", x, weight), 4))
    proto = net.proto()
    proto.graph.input.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, (4, 3, 3, 3)))
    after, plan = check_fold(proto)
    assert kinds(after) == ["Conv", "BatchNormalization"]
    assert plan.batchnorms.kept == 1


def test_before_ir_4_initializers_are_inputs_and_constants() -> None:
    net = Net(opset=8, ir=3)
    net.output(conv_bn(net, net.input("x", "N", 3, 9, 7)))
    proto = net.proto()
    for tensor in net.weights:
        entry = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(entry)
    after, _ = check_fold(proto)
    assert kinds(after) == ["Conv"]
    assert len(after.ir.graph.inputs) == 3


@pytest.mark.parametrize("like", [False, True], ids=["expand", "cast-like"])
def test_zero_bias_written_as_arithmetic(like: bool) -> None:
    """What an unoptimised torch export writes for a convolution without bias."""
    net = Net(opset=18)
    x, weight = net.input("x", "N", 3, 9, 7), net.normal(4, 3, 3, 3)
    length = net.node("Shape", weight, start=0, end=1)
    zeros = net.node("Expand", net.weight(0.0), length)
    if like:
        zeros = net.node("CastLike", zeros, x)
    net.output(net.bn(net.node("Conv", x, weight, zeros), 4))
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["Conv"]
    assert len(after.ir.graph.initializers) == 2


def test_weight_computed_from_constants() -> None:
    net = Net()
    weight = net.node("Transpose", net.normal(6, 5), perm=[1, 0])
    norm = net.node("ReduceL2", weight, axes=[1], keepdims=1)
    scaled = net.node("Mul", net.node("Div", weight, norm), net.normal(5, 1))
    gemm = net.node("Gemm", net.input("x", "N", 6), scaled, transB=1)
    net.output(net.bn(gemm, 5), rank=2)
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["Gemm"]


def test_reader_of_the_shape_alone_does_not_count() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.bn(inner, 4))
    net.output(net.node("Shape", inner), rank=1, elem=TensorProto.INT64)
    model = OnnxModel.from_proto(net.proto())
    after, _ = fold(model)
    assert kinds(after) == ["Conv", "Shape"]


def branches(net: Net, inner: str, *, foldable: bool) -> str:
    """An If whose first branch has a convolution and a BatchNorm, or reads `inner`."""
    bodies = []
    for number in range(2):
        body = Net(seed=number + 1)
        value = inner
        if foldable:
            value = body.bn(body.conv(inner, 3, 3, (1, 1)), 3)
        value = body.node("Relu", value, made=f"r{number}")
        for tensor in body.weights:
            tensor.name = f"b{number}.{tensor.name}"
        for node in body.nodes:
            node.input[:] = [f"b{number}.{n}" if n.startswith("w") else n for n in node.input]
        body.output(value)
        nodes, outputs = body.nodes, body.outputs
        bodies.append(helper.make_graph(nodes, f"b{number}", [], outputs, body.weights))
    test = net.input("test", elem=TensorProto.BOOL)
    return net.node("If", test, then_branch=bodies[0], else_branch=bodies[1])


def test_output_read_inside_a_branch_stays() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 3)
    normed = net.bn(inner, 3)
    net.output(net.node("Add", normed, branches(net, inner, foldable=False)))
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["Conv", "BatchNormalization", "If", "Add"]
    assert plan.sites[0].reason is Reason.OTHER_READERS


def test_batchnorm_read_inside_a_branch_folds() -> None:
    net = Net()
    normed = net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 3), 3)
    net.output(branches(net, normed, foldable=False))
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["Conv", "If"]


def test_branches_fold_inside() -> None:
    net = Net()
    net.output(branches(net, net.input("x", "N", 3, 9, 7), foldable=True))
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.folded == 2
    assert [n.op_type for n in after.ir.graph.all_nodes()] == ["If", *["Conv", "Relu"] * 2]


def test_branch_that_returns_a_batchnorm() -> None:
    net = Net()
    body = Net()
    body.bn(body.conv("x", 3, 3, (1, 1)), 3, made="inner")
    body.output("inner")
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["out"])],
        "other",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * 4)],
    )
    then = helper.make_graph(body.nodes, "then", [], body.outputs, body.weights)
    net.input("x", "N", 3, 9, 7)
    test = net.input("test", elem=TensorProto.BOOL)
    net.output(net.node("If", test, then_branch=then, else_branch=other))
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == 0
    assert sorted(n.op_type for n in after.ir.graph.all_nodes()) == ["Conv", "Identity", "If"]


def loop_body(nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    """Iteration, condition and a state in; condition and state out."""
    floats = TensorProto.FLOAT
    return helper.make_graph(
        nodes,
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", floats, ["N", 3, 9, 7]),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", floats, ["N", 3, 9, 7]),
        ],
    )


@pytest.mark.parametrize("normed_state", [False, True], ids=["inside", "state"])
def test_loop_bodies_fold_but_not_over_their_edge(normed_state: bool) -> None:
    """A BatchNorm of the loop's own state is read anew in every turn, and stays."""
    net, inner = Net(), Net()
    weight, statistics = net.normal(3, 3, 3, 3), net.statistics(3)
    value = inner.node("BatchNormalization", "s", *statistics) if normed_state else "s"
    value = inner.node("Conv", value, weight, pads=[1, 1, 1, 1])
    if not normed_state:
        value = inner.node("BatchNormalization", value, *statistics)
    inner.node("Relu", value, made="next")
    inner.node("Identity", "c", made="go")
    state = net.input("x", "N", 3, 9, 7)
    turns, body = net.weight(2, np.int64), loop_body(inner.nodes)
    net.output(net.node("Loop", turns, "", state, body=body))
    after, plan = check_fold(net.proto())
    assert plan.batchnorms.kept == normed_state
    inside = [n.op_type for n in after.ir.graph.all_nodes() if n.op_type != "Loop"]
    expected = ["Conv", "Relu", "Identity"]
    assert inside == (["BatchNormalization", *expected] if normed_state else expected)


def test_kept_batchnorm_takes_the_multiplication_after_it() -> None:
    net = Net()
    normed = net.bn(net.input("x", "N", 3, 9, 7), 3)
    scaled = net.node("Mul", normed, net.normal(3, 1, 1))
    net.output(net.node("Relu", net.node("Add", scaled, net.weight([0.7]))))
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["BatchNormalization", "Relu"]
    assert plan.affines.folded == 2


def test_kept_multiplication_takes_another_and_a_division() -> None:
    net = Net()
    halved = net.node("Div", net.input("x", "N", 3, 9, 7), net.weight(2.0))
    scaled = net.node("Mul", net.normal(3, 1, 1), halved)
    net.output(net.node("Sigmoid", scaled))
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["Mul", "Sigmoid"]
    assert plan.affines.folded == 1


def test_kept_affine_refuses_numbers_that_its_type_cannot_hold() -> None:
    net = Net()
    large = net.node("Mul", net.input("x", "N", 3, 9, 7), net.weight(1e30))
    net.output(net.node("Sigmoid", net.node("Mul", large, net.weight(1e30))))
    model = OnnxModel.from_proto(net.proto())
    after, plan = fold(model)
    assert kinds(after) == ["Mul", "Mul", "Sigmoid"]
    assert {site.reason for site in plan.sites} >= {Reason.PRECISION}


@pytest.mark.parametrize("statistics", [np.float16, np.float32], ids=["half", "mixed"])
def test_half_precision(statistics: type) -> None:
    net = Net(opset=15, dtype=np.float16)
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.bn(inner, 4, dtype=statistics))
    model = OnnxModel.from_proto(net.proto())
    after, plan = fold(model)
    onnx.checker.check_model(after.native, full_check=True)
    assert plan.batchnorms.kept == 0
    assert {str(v.dtype) for v in after.ir.graph.initializers.values()} == {"FLOAT16"}
    assert_same(model, after)


def test_a_fold_is_deterministic() -> None:
    net = Net()
    net.output(through_concat(net, net.input("x", "N", 3, 9, 7)))
    first, _ = fold(net.proto())
    second, _ = fold(net.proto())
    assert first.native.SerializeToString() == second.native.SerializeToString()


def test_what_is_not_folded_is_preserved() -> None:
    net = Net()
    net.output(conv_bn(net, net.input("x", "N", 3, 9, 7)))
    proto = net.proto()
    proto.producer_name = "test"
    helper.set_model_props(proto, {"author": "me"})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    after, _ = fold(proto)
    assert after.native.producer_name == "test"
    assert {p.key: p.value for p in after.native.metadata_props} == {"author": "me"}
    assert {o.domain for o in after.native.opset_import} == {"", "com.microsoft"}


def repvgg(net: Net, x: str) -> str:
    """Three branches of one value, each with its BatchNorm, and a difference."""
    wide = net.bn(net.conv(x, 3, 3, bias=False, pads=[1, 1, 1, 1]), 3)
    narrow = net.bn(net.conv(x, 3, 3, (1, 1), bias=False), 3)
    total = net.node("Add", wide, narrow)
    return net.node("Sub", total, net.bn(x, 3))


def pointwise_first(net: Net, x: str) -> str:
    return net.bn(net.conv(net.bn(net.conv(x, 3, 8, (1, 1)), 8), 8, 4), 4)


def pointwise_last(net: Net, x: str) -> str:
    return net.conv(net.conv(x, 3, 6, pads=[1, 0, 1, 2]), 6, 2, (1, 1))


@pytest.mark.parametrize("build", [repvgg, pointwise_first, pointwise_last])
@pytest.mark.parametrize("last", [False, True], ids=["inside", "output"])
def test_branches_and_chains_merge(build: Callable[[Net, str], str], last: bool) -> None:
    net = Net()
    made = build(net, net.input("x", "N", 3, 9, 7))
    net.output(made if last else net.node("Relu", made))
    after, _ = check_fold(net.proto())
    assert kinds(after) == (["Conv"] if last else ["Conv", "Relu"])
    assert len(after.ir.graph.initializers) == 2


def test_nodes_that_nothing_reads_are_left_alone() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    net.output(net.node("Relu", x))
    net.node("Mul", net.bn(net.node("Relu", x), 3), net.weight(3.0))
    after, plan = check_fold(net.proto())
    assert plan.affines.folded == 1
    assert kinds(after) == ["Relu", "Relu", "BatchNormalization"]


def test_a_scalar_stays_a_scalar() -> None:
    net = Net()
    shifted = net.node("Add", net.input("x", "N", 3, 9, 7), net.weight(0.5))
    net.output(net.node("Sigmoid", net.node("Sub", shifted, net.weight(2.0))))
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["Add", "Sigmoid"]
    (value,) = after.ir.graph.initializers.values()
    assert value.const_value is not None
    assert value.const_value.numpy().shape == ()


def test_what_merges_behind_an_output_reads_what_became_of_it() -> None:
    """The sum is an output and merges into the BatchNorm; the chain behind it merges too."""
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.node("Sigmoid", inner))
    total = net.output(net.node("Add", net.bn(inner, 4), inner))
    wide = net.conv(total, 4, 6, (1, 1), bias=False)
    net.output(net.conv(wide, 6, 2, pads=[1, 1, 1, 0]))
    after, _ = check_fold(net.proto())
    assert kinds(after) == ["Conv", "Sigmoid", "BatchNormalization", "Conv"]


def test_before_ir_version_4_a_new_weight_is_an_input_as_well() -> None:
    """Where every initializer has to be one."""
    net = Net(opset=8, ir=3)
    net.output(net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 4, bias=False), 4))
    proto = net.proto()
    proto.graph.input.extend(
        helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        for weight in proto.graph.initializer
    )
    after, plan = check_fold(proto)
    assert plan.batchnorms.folded == 1
    given = {value.name for value in after.native.graph.input}
    assert {weight.name for weight in after.native.graph.initializer} == given - {"x"}
    assert len(given) == 3


def test_an_output_keeps_its_name_where_its_own_node_goes() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(inner)
    net.output(net.node("Mul", inner, net.weight(1.0), made="same"))
    after, _ = check_fold(net.proto())
    assert [value.name for value in after.native.graph.output] == [inner, "same"]


def test_a_batchnorm_that_stays_keeps_its_epsilon_when_it_takes_an_affine_in() -> None:
    net = Net()
    value = net.bn(net.input("x", "N", 4, 9, 7), 4, epsilon=0.5)
    scale = net.weight(np.array([2.0, -0.5, 3.0, 1.5]).reshape(4, 1, 1))
    net.output(net.node("Sigmoid", net.node("Mul", value, scale)))
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["BatchNormalization", "Sigmoid"]
    assert plan.affines.folded == 1
