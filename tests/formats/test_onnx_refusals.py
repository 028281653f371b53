"""What must not be folded in ONNX models, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.algebra.graph import Affine, Pool
from bnfold.algebra.refusal import Reason
from bnfold.errors import ModelError
from bnfold.formats.onnx.model import OnnxModel
from bnfold.formats.onnx.tensors import misfit
from tests.conftest import Ended
from tests.formats.onnx_nets import Net, check_fold, fold, kinds, sample_of


def only_site(net: Net) -> Any:
    after, plan = check_fold(net.proto())
    assert kinds(after) == [node.op_type for node in net.nodes]
    return plan.sites[0]


def test_training_mode_uses_the_statistics_of_the_batch() -> None:
    net = Net(opset=15)
    inner = net.conv(net.input("x", 2, 3, 9, 7), 3, 4)
    net.bn(inner, 4, made=["y", "mean", "var"], training_mode=1)
    for name, rank in (("y", 4), ("mean", 1), ("var", 1)):
        net.output(name, rank)
    site = only_site(net)
    assert site.batchnorm
    assert site.reason is Reason.BATCH_STATISTICS
    assert "BatchNormalization_1 (BatchNormalization): training_mode is 1" in site.why


def test_statistics_outputs_before_opset_14_mean_training() -> None:
    net = Net(opset=9)
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.bn(inner, 4, made=["y", "mean", "var"])
    net.output("y")
    net.output("mean", 1)
    _, plan = fold(net.proto())
    assert plan.sites[0].reason is Reason.BATCH_STATISTICS


@pytest.mark.parametrize("opset", [7, 9, 13])
@pytest.mark.parametrize("others", [["", "", "", ""], ["a", "b", "c", "d"], ["a", ""], [""]])
def test_outputs_that_are_listed_before_opset_14_mean_training(
    opset: int, others: list[str]
) -> None:
    """Whether they are read or not; a BatchNorm beside it folds all the same."""
    net = Net(opset=opset)
    inner = net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4)
    net.output(net.bn(net.conv(inner, 4, 4), 4, made=["y", *others]))
    folded, plan = fold(net.proto())
    assert kinds(folded) == ["Conv", "Conv", "BatchNormalization"]
    assert plan.sites[1].reason is Reason.BATCH_STATISTICS
    assert f"it has {len(others) + 1} outputs, which means training" in plan.sites[1].why
    if len(others) < 4 or "" in others:
        return  # another number is invalid; with empty names, ONNX Runtime crashes
    before = OnnxModel.from_proto(net.proto())
    sample = sample_of(before)
    for was, now in zip(before.runners(), folded.runners(), strict=True):
        expected = was(sample)["y"]
        scale = np.abs(expected).max()
        assert np.abs(now(sample)["y"] - expected).max() < 1e-5 * scale  # 60 products in float32


def test_a_batchnorm_of_a_constant_that_trains_is_no_constant() -> None:
    net = Net(opset=9)
    weight = net.bn(net.normal(4, 3, 3, 3), 3, made=["even", "a", "b", "c", "d"])
    x = net.input("x", 2, 3, 9, 7)
    net.output(net.bn(net.node("Conv", x, weight), 4))
    _, plan = fold(net.proto())
    assert plan.batchnorms.folded == 0


def test_a_mode_is_read_where_the_standard_has_it() -> None:
    """SpaceToDepth has one order of channels; from opset 28 on two, by `mode`."""
    for opset, mode, folded in ((17, None, 1), (17, "DCR", 1), (17, "CRD", 0), (28, "CRD", 1)):
        net = Net(opset=opset)
        inner = net.conv(net.input("x", 2, 3, 10, 8), 3, 4)
        how = {} if mode is None else {"mode": mode}
        net.output(
            net.node("Mul", net.node("SpaceToDepth", inner, blocksize=2, **how), net.weight(3))
        )
        _, plan = fold(net.proto())
        assert plan.affines.folded == folded


@pytest.mark.parametrize("attributes", [{}, {"is_test": 0}, {"is_test": 1}], ids=str)
def test_opset_6_says_by_attribute_whether_it_trains(attributes: dict[str, Any]) -> None:
    net = Net(opset=6, ir=3)
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.bn(inner, 4, **attributes))
    _, plan = fold(net.proto())
    assert plan.batchnorms.folded == attributes.get("is_test", 0)


def test_statistics_that_are_inputs() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    gamma, beta, mean, _ = net.statistics(4)
    var = net.node("Abs", net.input("var", 4))
    net.output(net.node("BatchNormalization", inner, gamma, beta, mean, var))
    site = only_site(net)
    assert site.reason is Reason.NOT_CONSTANT
    assert site.why == (
        "BatchNormalization_2 (BatchNormalization): its running_var v1 is computed at run time"
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, Reason.NON_FINITE),
        (np.inf, Reason.NON_FINITE),
        (-0.5, Reason.NON_POSITIVE_VARIANCE),
    ],
)
def test_bad_variance_names_the_channel(value: float, reason: Reason) -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    gamma, beta, mean, _ = net.statistics(4)
    var = net.weight([1, 2, value, 3])
    net.output(net.node("BatchNormalization", inner, gamma, beta, mean, var, made="y"))
    after, plan = fold(net.proto())
    assert kinds(after) == ["Conv", "BatchNormalization"]
    assert plan.sites[0].reason is reason
    assert "BatchNormalization_1 (BatchNormalization): running_var" in str(plan.sites[0].why)
    assert "channel 2" in str(plan.sites[0].why)


def test_zero_epsilon_is_zero() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 2)
    tiny = [net.weight(v) for v in ([1, 1], [0, 0], [0, 0], [1e-8, 4e-8])]
    net.output(net.node("BatchNormalization", inner, *tiny, epsilon=0.0))
    _, plan = check_fold(net.proto())
    assert plan.sites[0].amplification == pytest.approx(1e4)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [9, "H"])
def test_shift_into_automatic_padding(auto_pad: str, stride: int, height: int | str) -> None:
    net = Net()
    normed = net.bn(net.input("x", "N", 3, height, 7), 3)
    how: dict[str, Any] = {"auto_pad": auto_pad, "strides": [stride, stride]}
    net.output(net.conv(normed, 3, 4, **how))
    assert only_site(net).reason is Reason.ZERO_PADDING


@pytest.mark.parametrize("constant", [(5,), (1, 5), (5, 1), (4, 5, 5), (2, 1, 1, 1)], ids=str)
def test_constants_align_from_the_right(constant: tuple[int, ...]) -> None:
    """[W] where W equals C is a scale of columns; [N, 1, 1, 1] one of the batch."""
    net = Net()
    inner = net.conv(net.input("x", 2, 3, 7, 7), 3, 5 if constant != (4, 5, 5) else 4)
    net.output(net.node("Mul", inner, net.normal(*constant)))
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["Conv", "Mul"]
    assert plan.affines.folded == 0


def test_constant_that_widens_the_value_is_no_affine() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 1)
    net.output(net.node("Mul", inner, net.normal(4, 1, 1)))
    net.output(net.node("Add", inner, net.normal(1, 1, 1, 1, 1)), rank=5)
    after, plan = check_fold(net.proto())
    assert kinds(after) == ["Conv", "Mul", "Add"]
    assert plan.affines.found == 0


def test_integers_are_no_affines() -> None:
    net = Net()
    x = net.input("x", "N", 3, elem=TensorProto.INT64)
    wide = net.node("Mul", x, net.weight([[2, 3, 4]], np.int64))
    net.output(net.node("Add", wide, net.weight(1, np.int64)), rank=2, elem=TensorProto.INT64)
    _, plan = fold(net.proto())
    assert plan.affines.found == 0


def test_constant_that_is_not_finite() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 2)
    net.output(net.node("Div", inner, net.weight([[[2]], [[0]]])))
    _, plan = fold(net.proto())
    assert plan.sites[0].reason is Reason.NON_FINITE
    assert not plan.sites[0].batchnorm


def dropout(net: Net, x: str, training: bool) -> str:
    flag = net.weight(training, np.bool_)
    return net.node("Dropout", x, net.weight(0.5, np.float32), flag)


@pytest.mark.parametrize("training", [False, True])
def test_active_dropout_is_not_passed(training: bool) -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.bn(dropout(net, inner, training), 4))
    _, plan = fold(net.proto())
    assert plan.batchnorms.kept == training


def test_dropout_whose_mask_is_read_is_not_passed() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.bn(net.node("Dropout", inner, made=["d", "mask"]), 4))
    net.output("mask", elem=TensorProto.BOOL)
    _, plan = fold(net.proto())
    assert plan.batchnorms.kept == 1


def max_pool_of_negative_scale(net: Net, x: str) -> str:
    return net.bn(net.node("MaxPool", net.conv(x, 3, 4), kernel_shape=[2, 2]), 4)


def max_pool_with_indices(net: Net, x: str) -> str:
    inner = net.node("MaxPool", net.conv(x, 3, 4), made=["p", "i"], kernel_shape=[2, 2])
    net.output("i", elem=TensorProto.INT64)
    scale = [net.weight(v) for v in ([1, 2, 3, 4], [0] * 4, [0] * 4, [1] * 4)]
    return net.node("BatchNormalization", inner, *scale)


def average_with_counted_pads(net: Net, x: str) -> str:
    how: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    return net.bn(net.node("AveragePool", net.conv(x, 3, 4), **how), 4)


def average_with_counted_ceiling(net: Net, x: str) -> str:
    how: dict[str, Any] = {
        "kernel_shape": [2, 2],
        "strides": [2, 2],
        "ceil_mode": 1,
        "count_include_pad": 1,
    }
    return net.bn(net.node("AveragePool", net.conv(x, 3, 4), **how), 4)


def instance_norm_of_a_given_scale(net: Net, x: str) -> str:
    scale = net.input("scale", 4)
    inner = net.node("InstanceNormalization", net.conv(x, 3, 4), scale, net.normal(4))
    return net.bn(inner, 4)


def relu(net: Net, x: str) -> str:
    return net.bn(net.node("Relu", net.conv(x, 3, 4)), 4)


def half_cast(net: Net, x: str) -> str:
    half = net.node("Cast", net.conv(x, 3, 4), to=TensorProto.DOUBLE)
    return net.bn(net.node("Cast", half, to=TensorProto.FLOAT), 4)


def constant_divided(net: Net, x: str) -> str:
    return net.bn(net.node("Div", net.weight(2.0), net.conv(x, 3, 4)), 4)


STOPPED: list[Callable[[Net, str], str]] = [
    max_pool_of_negative_scale,
    max_pool_with_indices,
    average_with_counted_pads,
    average_with_counted_ceiling,
    instance_norm_of_a_given_scale,
    relu,
    half_cast,
    constant_divided,
]


@pytest.mark.parametrize("build", STOPPED, ids=lambda f: f.__name__)
def test_nothing_passes(build: Callable[[Net, str], str]) -> None:
    net = Net()
    net.output(build(net, net.input("x", "N", 3, 9, 7)))
    model = OnnxModel.from_proto(net.proto())
    after, plan = check_fold(model)
    assert plan.batchnorms.kept == 1, str(plan)
    assert kinds(after) == kinds(model)


def test_an_instance_norm_takes_it_and_passes_nothing_on() -> None:
    net = Net()
    conv = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    inner = net.node("InstanceNormalization", conv, net.normal(4), net.normal(4))
    net.output(net.bn(inner, 4))
    after, plan = check_fold(net.proto())
    assert [site.into for site in plan.sites] == [("InstanceNormalization_1",)]
    assert kinds(after) == ["Conv", "InstanceNormalization"]


def test_ceiling_with_pads_bars_a_shift() -> None:
    net = Net()
    how: dict[str, Any] = {
        "kernel_shape": [3, 3],
        "strides": [2, 2],
        "ceil_mode": 1,
        "pads": [1, 1, 0, 0],
    }
    net.output(net.node("AveragePool", net.input("x", "N", 3, 9, 7), **how))
    graph = OnnxModel.from_proto(net.proto()).read(None)
    (pool,) = [node.op for node in graph.nodes]
    assert isinstance(pool, Pool)
    assert pool.divisor == 9


def test_other_domains_are_opaque() -> None:
    net = Net()
    inner = net.conv(net.input("x", "N", 3, 9, 7), 3, 4)
    net.output(net.node("Mul", inner, net.normal(4, 1, 1), domain="my.ops"))
    proto = net.proto()
    proto.opset_import.append(helper.make_opsetid("my.ops", 1))
    graph = OnnxModel.from_proto(proto).read(None)
    assert not any(isinstance(node.op, Affine) for node in graph.nodes)


def test_nodes_without_unique_names_go_by_their_outputs() -> None:
    net = Net()
    net.output(net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 4), 4, made="y"))
    proto = net.proto()
    for node in proto.graph.node:
        node.name = "same"
    graph = OnnxModel.from_proto(proto).read(None)
    assert [node.name for node in graph.nodes] == ["v0", "y"]
    onnx.checker.check_model(fold(proto)[0].native)


def tensor(kind: int, dims: list[int], **data: Any) -> TensorProto:
    return TensorProto(name="t", data_type=kind, dims=dims, **data)


MISFITS = {
    "raw data of a scalar": (tensor(1, [], raw_data=bytes(8)), "takes 4 bytes, and has 8"),
    "too few raw data": (tensor(1, [3], raw_data=bytes(8)), "takes 12 bytes, and has 8"),
    "2^62 numbers": (tensor(1, [1 << 31, 1 << 31], raw_data=b""), "and has 0"),
    "a size below zero": (tensor(1, [-1], raw_data=b""), "has a size below zero"),
    "floats": (tensor(1, [3], float_data=[1, 2]), "takes 3 numbers, and has 2"),
    "no data": (tensor(7, [3]), "takes 3 numbers, and has 0"),
    "complex": (tensor(14, [2], float_data=[1, 2]), "takes 4 numbers, and has 2"),
    "four bits": (tensor(22, [5], raw_data=bytes(2)), "takes 3 bytes, and has 2"),
    "four bits as numbers": (tensor(22, [5], int32_data=[1, 2]), "takes 3 numbers, and has 2"),
    "texts": (tensor(8, [2], string_data=[b"a"]), "takes 2 texts, and has 1"),
    "no type": (tensor(99, [2], raw_data=bytes(8)), "a type that ONNX does not have, 99"),
}


def of_the_graph(proto: onnx.ModelProto, wrong: TensorProto) -> None:
    proto.graph.initializer.append(wrong)


def of_a_node(proto: onnx.ModelProto, wrong: TensorProto) -> None:
    proto.graph.node.append(helper.make_node("Constant", [], ["k"], value=wrong))


def of_a_body(proto: onnx.ModelProto, wrong: TensorProto) -> None:
    made = helper.make_tensor_value_info("k", 1, None)
    body = helper.make_graph([helper.make_node("Relu", ["t"], ["k"])], "b", [], [made], [wrong])
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=body))


def of_a_function(proto: onnx.ModelProto, wrong: TensorProto) -> None:
    constant = helper.make_node("Constant", [], ["k"], value=wrong)
    proto.functions.append(helper.make_function("d", "F", [], ["k"], [constant], []))


@pytest.mark.parametrize(("wrong", "said"), MISFITS.values(), ids=MISFITS)
def test_a_tensor_that_does_not_fit_its_shape(wrong: TensorProto, said: str) -> None:
    proto = Net().proto()
    proto.graph.output.append(helper.make_tensor_value_info("t", 1, None))
    of_the_graph(proto, wrong)
    with pytest.raises(ModelError, match=said):
        OnnxModel.from_proto(proto)


@pytest.mark.parametrize("place", [of_the_graph, of_a_node, of_a_body, of_a_function])
def test_it_is_found_wherever_it_is(place: Any) -> None:
    proto = Net().proto()
    proto.graph.output.append(helper.make_tensor_value_info("t", 1, None))
    place(proto, MISFITS["floats"][0])
    with pytest.raises(ModelError, match="takes 3 numbers"):
        OnnxModel.from_proto(proto)


@pytest.mark.parametrize(
    "fine",
    [
        tensor(22, [5], raw_data=bytes(3)),
        tensor(22, [5], int32_data=[1, 2, 3]),
        tensor(14, [2], float_data=[1, 2, 3, 4]),
        tensor(1, [0], raw_data=b""),
        tensor(16, [2], int32_data=[1, 2]),
        tensor(8, [1], string_data=[b"a"]),
    ],
    ids=["four bits", "as numbers", "complex", "empty", "bfloat16", "text"],
)
def test_what_fits_is_read(fine: TensorProto) -> None:
    assert misfit(helper.make_model(helper.make_graph([], "g", [], [], [fine]))) is None


def test_a_file_that_no_exporter_takes_is_at_fault_itself(
    bnfold: Callable[..., Ended], tmp_path: Path
) -> None:
    net = Net()
    inner = net.conv(net.input("x", 2, 3, 9, 7), 3, 4, axis=1)
    net.output(net.bn(inner, 4))
    onnx.save(net.proto(), tmp_path / "m.onnx")
    ended = bnfold("export", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert ended.code == 3
    first, *rest = ended.err.splitlines()
    assert first.startswith("error: the onnx model is invalid: Unrecognized attribute: axis")
    assert all(line.startswith("hint: ") for line in rest)
