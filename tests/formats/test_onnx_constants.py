"""Constants that are computed, quantised or overridden in ONNX."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.algebra.refusal import Reason
from bnfold.errors import ModelError
from bnfold.formats.onnx.model import OnnxModel
from tests.formats.onnx_nets import Net, check_fold, fold, kinds


def ints(net: Net, *values: int) -> str:
    return net.weight(list(values), np.int64)


def standardised(net: Net, *, training: bool) -> str:
    """A weight that a BatchNorm standardises, as timm's StdConv2d exports it."""
    weight = net.node("Reshape", net.normal(4, 3, 3, 3), ints(net, 1, 4, -1))
    mean = net.node("ReduceMean", weight, axes=[0, 2], keepdims=0)
    off = net.node("Sub", weight, net.node("ReduceMean", weight, axes=[0, 2], keepdims=1))
    var = net.node("ReduceMean", net.node("Mul", off, off), axes=[0, 2], keepdims=0)
    how = {"training_mode": 1} if training else {}
    made = ["even", "m", "v"] if training else ()
    gamma, beta = net.normal(4), net.normal(4)
    even = net.node("BatchNormalization", weight, gamma, beta, mean, var, made=made, **how)
    return net.node("Reshape", even, ints(net, 4, 3, 3, 3))


@pytest.mark.parametrize("training", [False, True])
def test_a_batchnorm_of_a_weight_is_a_constant(training: bool) -> None:
    """It is no BatchNorm of the model: only the one behind the convolution is listed."""
    net = Net(opset=15)
    x = net.input("x", "N", 3, 9, 7)
    net.output(net.bn(net.node("Conv", x, standardised(net, training=training)), 4))
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["Conv"]
    assert plan.batchnorms.found == 1


def test_a_weight_without_variance_is_left_alone() -> None:
    """Its BatchNorm would divide by zero: the weight is not known."""
    net = Net(opset=15)
    x = net.input("x", "N", 3, 9, 7)
    zeros = net.weight(np.zeros((1, 4, 27)))
    statistics = [net.weight(v) for v in ([1] * 4, [0] * 4, [0] * 4, [0] * 4)]
    even = net.node("BatchNormalization", zeros, *statistics, epsilon=0.0)
    weight = net.node("Reshape", even, ints(net, 4, 3, 3, 3))
    net.output(net.bn(net.node("Conv", x, weight), 4))
    after, plan = fold(net.proto())
    assert plan.batchnorms.folded == 0
    assert "Conv" in kinds(after)


@pytest.mark.parametrize("noop", [0, 1])
def test_a_reduction_over_no_axes_is_one_over_all(noop: int) -> None:
    net = Net(opset=18)
    axes = net.weight(np.zeros(0), np.int64)
    total = net.node("ReduceMean", net.normal(4, 1, 1), axes, noop_with_empty_axes=noop)
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.node("Mul", inner, total))
    after, plan = check_fold(net.proto())
    assert plan.affines.kept == 0
    assert kinds(after) == ["Conv"]


def test_arithmetic_before_opset_7_broadcasts_by_attribute() -> None:
    """[2, 3] + [2] at axis 0: aligned from the right it would be an error, or something else."""
    net = Net(opset=6, ir=3)
    weight = net.node("Add", net.normal(3, 3, 3, 3), net.normal(3), broadcast=1, axis=0)
    x = net.input("x", "N", 3, 9, 7)
    net.output(net.bn(net.node("Conv", x, weight), 3, is_test=1))
    _, plan = fold(net.proto())
    assert plan.sites[0].reason is Reason.NOT_CONSTANT


def int8(net: Net, *sizes: int, axis: int = 0) -> str:
    """A weight stored in eight bits, with a scale for each index of `axis`."""
    codes = net.weight(net.rng.integers(-127, 127, sizes), np.int8)
    scale = net.weight(net.rng.uniform(0.005, 0.02, sizes[axis]))
    zero = net.weight(net.rng.integers(-5, 5, sizes[axis]), np.int8)
    return net.node("DequantizeLinear", codes, scale, zero, axis=axis)


def fake_quantised(net: Net, x: str) -> str:
    step, zero = net.weight(0.02), net.weight(0, np.int8)
    return net.node("DequantizeLinear", net.node("QuantizeLinear", x, step, zero), step, zero)


def conv_then_bn(net: Net, x: str) -> str:
    return net.bn(net.node("Conv", x, int8(net, 4, 3, 3, 3)), 4)


def bn_then_conv(net: Net, x: str) -> str:
    return net.node("Conv", net.bn(net.node("Relu", x), 3), int8(net, 4, 3, 3, 3))


def trained_for_it(net: Net, x: str) -> str:
    return net.bn(net.node("Conv", x, fake_quantised(net, net.normal(4, 3, 3, 3))), 4)


def transposed_matrix(net: Net, x: str) -> str:
    weight = net.node("Transpose", int8(net, 5, 7), perm=[1, 0])
    return net.node("Mul", net.node("MatMul", x, weight), net.normal(5))


QUANTISED = [conv_then_bn, bn_then_conv, trained_for_it, transposed_matrix]


@pytest.mark.parametrize("build", QUANTISED, ids=lambda f: f.__name__.replace("_", " "))
def test_a_quantised_weight_takes_nothing(build: Callable[[Net, str], str]) -> None:
    net = Net()
    net.output(build(net, net.input("x", "N", 3, 9, 7)))
    after, plan = check_fold(net.proto())
    assert kinds(after) == [node.op_type for node in net.nodes]
    (site,) = plan.sites
    assert Reason.PRECISION in {obstacle.reason for obstacle in site.obstacles}
    assert "is quantised, and would have to be quantised anew" in str(site.why)


def test_a_quantised_bias_takes_nothing() -> None:
    net = Net()
    codes = net.weight([100, -200, 300, 50], np.int32)
    bias = net.node("DequantizeLinear", codes, net.weight(0.001))
    x = net.input("x", "N", 3, 9, 7)
    net.output(net.bn(net.node("Conv", x, net.normal(4, 3, 3, 3), bias), 4))
    _, plan = check_fold(net.proto())
    assert plan.sites[0].reason is Reason.PRECISION
    assert f"its bias {bias} is quantised" in str(plan.sites[0].why)


def test_nothing_passes_what_quantises_activations() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    net.output(net.bn(fake_quantised(net, net.conv(x, 3, 4)), 4))
    net.output(net.conv(fake_quantised(net, net.bn(net.node("Relu", x), 3)), 3, 4))
    after, plan = fold(net.proto())
    assert plan.batchnorms.folded == 0
    assert kinds(after) == [node.op_type for node in net.nodes]


def test_products_of_quantised_activations_are_products() -> None:
    """What is quantised on the way is no weight."""
    net = Net()
    x = net.input("x", 2, 5, 5)
    net.output(net.node("MatMul", x, fake_quantised(net, net.node("Relu", x))), rank=3)
    graph = OnnxModel.from_proto(net.proto()).read(None)
    assert type(graph.nodes[-1].op).__name__ == "MatMul"


def test_a_weight_that_is_computed_is_named() -> None:
    net = Net()
    weight = net.node("Relu", net.input("w", 4, 3, 3, 3))
    net.output(net.bn(net.node("Conv", net.input("x", "N", 3, 9, 7), weight), 4))
    _, plan = check_fold(net.proto())
    assert plan.sites[0].reason is Reason.NOT_CONSTANT
    assert "Conv_1 (Conv): its weight v0 is computed at run time" in str(plan.sites[0].why)


def test_a_cast_between_types_says_so() -> None:
    """float16 convolutions around a BatchNorm in float32: it would be rounded elsewhere."""
    net = Net(opset=15, dtype=np.float16)
    wide = net.node("Cast", net.conv(net.input("x", "N", 3, 9, 7), 3, 4), to=TensorProto.FLOAT)
    normed = net.node("BatchNormalization", wide, *net.statistics(4, np.float32))
    net.output(net.node("Cast", normed, to=TensorProto.FLOAT16))
    _, plan = check_fold(net.proto())
    assert plan.sites[0].reason is Reason.PRECISION
    assert "Cast_1 (Cast): it turns float16 into float32" in str(plan.sites[0].why)


@pytest.mark.parametrize("same", [True, False])
def test_a_cast_to_the_type_of_another_value(same: bool) -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    like = net.input("like", 2, elem=TensorProto.FLOAT if same else TensorProto.DOUBLE)
    cast = net.node("CastLike", inner, like)
    back = net.node("Cast", cast, to=TensorProto.FLOAT)
    net.output(net.bn(back, 4))
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.folded == same


def test_what_a_cast_is_like_is_read_for_its_type_alone() -> None:
    net = Net()
    x = net.input("x", "N", 3, 9, 7)
    inner = net.conv(x, 3, 4)
    net.output(net.bn(inner, 4))
    net.output(net.node("CastLike", net.input("y", "N", elem=TensorProto.DOUBLE), inner), rank=1)
    _, plan = check_fold(net.proto())
    assert plan.batchnorms.folded == 1


def test_sparse_initializers_are_refused() -> None:
    net = Net()
    net.output(net.node("Relu", net.input("x", 3)), rank=1)
    proto = net.proto()
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    sparse.dims.append(3)
    with pytest.raises(ModelError, match="sparse initializers"):
        OnnxModel.from_proto(proto)


def test_a_body_input_with_a_default_is_no_constant() -> None:
    """A loop gives its body other values than the initializer of the same name."""
    net, inner = Net(), Net()
    floats = TensorProto.FLOAT
    inner.node("Mul", "s", "factor", made="next")
    inner.node("Identity", "factor", made="same")
    inner.node("Identity", "c", made="go")
    default = numpy_helper.from_array(np.array([2.0], np.float32), "factor")
    given = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("s", floats, ["N", 3, 9, 7]),
        helper.make_tensor_value_info("factor", floats, [1]),
    ]
    made = [
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", floats, ["N", 3, 9, 7]),
        helper.make_tensor_value_info("same", floats, [1]),
    ]
    body = helper.make_graph(inner.nodes, "body", given, made, [default])
    x, turns = net.input("x", "N", 3, 9, 7), net.weight(2, np.int64)
    net.node("Loop", turns, "", x, net.weight([3.0]), made=["y", "last"], body=body)
    net.output("y")
    graph = OnnxModel.from_proto(net.proto()).read(None)
    assert not any(node.is_site for node in graph.nodes)


def test_double_precision_folds() -> None:
    """ONNX Runtime has no such convolution, so it is the truths that are compared."""
    net = Net(dtype=np.float64)
    net.output(net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 4), 4))
    model = OnnxModel.from_proto(net.proto())
    after, plan = fold(model)
    sample = {"x": np.random.default_rng(0).normal(size=(2, 3, 9, 7))}
    (was,), (now,) = (m.truth()(sample).values() for m in (model, after))
    assert plan.batchnorms.kept == 0
    assert after.ir.graph.outputs[0].dtype is not None
    assert np.abs(was - now).max() <= 1e-13 * np.abs(was).max()
    onnx.checker.check_model(after.native, full_check=True)
