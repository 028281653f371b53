"""Maps that are carried to other places, as ONNX writes them: sizes, names, outputs, types."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.algebra import cost
from bnfold.algebra.graph import Add, Concat, Conv, Linear
from bnfold.algebra.plan import Plan
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.formats.onnx.model import OnnxModel
from tests.formats.onnx_nets import Net, assert_same

LARGEST_RATIO = 2.0
"""How much more than the original's own error one with moved maps may be off."""


@pytest.fixture(autouse=True)
def multiply_adds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks are worth moving only where nothing else than multiply-adds counts."""
    monkeypatch.setattr(cost, "MOVED", 0)
    monkeypatch.setattr(cost, "STARTED", 0)


def moved(net: Net) -> tuple[OnnxModel, Plan]:
    """The folded model with its maps moved, after proving it valid and the same."""
    before = OnnxModel.from_proto(net.proto())
    graph = before.read(None)
    plan, weights = make_rounded_plan(graph, before.locked(), before.veto, free=before.free())
    after = before.write(plan, weights)
    onnx.checker.check_model(after.native, full_check=True)
    assert_same(before, after)
    return after, plan


def assert_nothing_is_left_over(model: OnnxModel) -> None:
    graph = model.native.graph
    read = {*(value.name for value in graph.output), *(v for n in graph.node for v in n.input)}
    assert [node.name for node in graph.node if not read.intersection(node.output)] == []
    assert {weight.name for weight in graph.initializer} - read == set()


def operators(model: OnnxModel) -> Counter[str]:
    return Counter(node.op_type for node in model.native.graph.node)


def resized(net: Net, x: str, how: str, channels: int, size: int = 8, **attributes: Any) -> str:
    """An image of `channels`, enlarged to `size`, the way `how` writes the size."""
    mode = attributes.pop("mode", "linear")
    match how:
        case "scales":
            scale = net.weight([1, 1, 2, 2], np.float32)
            return net.node("Resize", x, "", scale, mode=mode, **attributes)
        case "sizes":
            sizes = net.weight([3, channels, size, size], np.int64)
            return net.node("Resize", x, "", "", sizes, mode=mode, **attributes)
        case "axes":
            sizes = net.weight([size, size], np.int64)
            return net.node("Resize", x, "", "", sizes, mode=mode, axes=[2, 3], **attributes)
    bounds = net.weight([0], np.int64), net.weight([2], np.int64)
    first = net.node("Slice", net.node("Shape", x), *bounds)
    rest = net.weight([size, size], np.int64)
    sizes = net.node("Concat", first, rest, axis=0)
    return net.node("Resize", x, "", "", sizes, mode=mode, **attributes)


MODES: list[dict[str, Any]] = [
    {"mode": "linear"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"mode": "cubic"},
]


@pytest.mark.parametrize("how", ["scales", "sizes", "axes", "computed"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode.values())))
def test_every_resize_takes_another_number_of_channels(how: str, mode: dict[str, Any]) -> None:
    net = Net(opset=18)
    x = net.input("x", "N" if how == "computed" else 3, 6, 4, 4)
    up = resized(net, net.node("Relu", x), how, 6, **mode)
    net.node("Relu", net.conv(up, 6, 5, (1, 1)), made="y")
    net.output("y")
    after, plan = moved(net)
    assert plan.made
    kinds = [node.op_type for node in after.native.graph.node]
    assert kinds.index("Conv") < kinds.index("Resize")


def head(net: Net, classes: int = 5) -> str:
    """Tokens of three resolutions, each with a layer, as images; joined, mapped, normalised."""
    images: list[str] = []
    for size, channels in ((8, 3), (4, 6), (2, 9)):
        x = net.input(f"x{size}", "N", size * size, channels)
        wide = net.node("Add", net.node("MatMul", x, net.normal(channels, 7)), net.normal(7))
        image = net.node("Transpose", wide, perm=[0, 2, 1])
        image = net.node("Reshape", image, net.weight([0, 7, size, size], np.int64))
        if size < 8:
            factors = np.array([1, 1, 8 // size, 8 // size], np.float32)
            scale = net.node("Constant", value=onnx.numpy_helper.from_array(factors))
            image = net.node("Resize", image, "", scale, mode="linear")
        images.append(image)
    joined = net.node("Concat", *images, axis=1)
    fused = net.node("Relu", net.bn(net.conv(joined, 21, 7, (1, 1), bias=False), 7))
    return net.conv(fused, 7, classes, (1, 1))


def test_the_head_of_segformer() -> None:
    net = Net()
    net.node("Identity", head(net), made="y")
    net.output("y")
    after, plan = moved(net)
    assert_nothing_is_left_over(after)
    assert operators(after)["Concat"] == 0
    assert operators(after)["Conv"] == 1
    assert operators(after)["MatMul"] == 3
    assert plan.batchnorms.kept == 0


def test_an_output_of_the_model_keeps_its_name_and_shape() -> None:
    net = Net()
    x = net.input("x", 3, 6, 4, 4)
    scale = net.weight([1, 1, 2, 2], np.float32)
    up = net.node("Resize", net.node("Relu", x), "", scale, mode="linear")
    net.nodes[-1].name = "up"
    weight, bias = net.normal(5, 6, 1, 1), net.normal(5)
    net.node("Conv", up, weight, bias, made="logits")
    net.output("logits")
    after, plan = moved(net)
    assert plan.made
    assert [value.name for value in after.native.graph.output] == ["logits"]
    assert after.native.graph.node[-1].op_type == "Resize"
    assert {w.name for w in after.native.graph.initializer}.isdisjoint({weight, bias})


def test_a_weight_that_another_layer_shares_is_copied() -> None:
    net = Net()
    x = net.node("Relu", net.input("x", 3, 6, 4, 4))
    weight = net.normal(6, 6, 1, 1)
    scale = net.weight([1, 1, 2, 2], np.float32)
    up = net.node("Resize", net.node("Relu", net.node("Conv", x, weight)), "", scale)
    net.node("Relu", net.node("Conv", up, weight), made="y")
    net.output("y")
    after, plan = moved(net)
    assert plan.made
    assert weight in {w.name for w in after.native.graph.initializer}


def test_repeated_pixels_of_expand() -> None:
    net = Net()
    x = net.node("Relu", net.input("x", 3, 6, 9))
    whole = net.node("ReduceMax", x, keepdims=1, axes=[2])
    wide = net.node("Expand", whole, net.weight([3, 6, 9], np.int64))
    joined = net.node("Concat", x, wide, axis=1)
    net.node("Relu", net.conv(joined, 12, 4, (1,)), made="y")
    net.output("y", 3)
    after, plan = moved(net)
    assert plan.made
    assert operators(after)["Expand"] == operators(after)["Concat"] == 0


def test_a_single_expand_is_told_the_new_size() -> None:
    net = Net()
    x = net.node("Relu", net.input("x", 3, 6, 1))
    wide = net.node("Expand", x, net.weight([3, 6, 9], np.int64))
    net.node("Relu", net.conv(wide, 6, 4, (1,)), made="y")
    net.output("y", 3)
    after, plan = moved(net)
    assert plan.made
    assert operators(after)["Expand"] == 1


def test_behind_a_global_mean() -> None:
    net = Net()
    x = net.node("Relu", net.input("x", 3, 6, 4, 5))
    pooled = net.node("GlobalAveragePool", net.conv(x, 6, 8, (1, 1)))
    flat = net.node("Flatten", pooled)
    net.node("Gemm", flat, net.normal(8, 4), net.normal(4), made="y")
    net.output("y", 2)
    after, plan = moved(net)
    assert plan.made
    assert operators(after) == Counter(Relu=1, GlobalAveragePool=1, Conv=1, Flatten=1)


def measured(net: Net, x: str) -> str:
    """Adds what depends on the number of channels that something else reads of `x`."""
    count = net.node("Cast", net.node("Shape", x), to=net.elem)
    net.node("ReduceSum", count, keepdims=0, made="sum")
    net.output("sum", 0)
    return x


@pytest.mark.parametrize("batch", ["N", 3])
def test_a_value_whose_sizes_are_read_moves_only_where_they_are_known(batch: str | int) -> None:
    """UNSEEN."""
    net = Net()
    x = net.node("Relu", net.input("x", batch, 6, 4, 4))
    scale = net.weight([1, 1, 2, 2], np.float32)
    up = measured(net, net.node("Resize", x, "", scale, mode="linear"))
    net.node("Relu", net.conv(up, 6, 5, (1, 1)), made="y")
    net.output("y")
    after, plan = moved(net)
    assert bool(plan.made) is (batch == 3)
    if plan.made:
        assert_nothing_is_left_over(after)


def test_a_body_keeps_its_maps() -> None:
    """MAIN."""
    inner = Net(seed=1)
    inner.weights.append(onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scale"))
    up = inner.node("Resize", "outer", "", "scale", mode="linear", made="up")
    weight = inner.normal(5, 6, 1, 1, name="inner_weight")
    inner.node("Conv", up, weight, made="branch")
    inner.output("branch")
    body = onnx.helper.make_graph(inner.nodes, "body", [], inner.outputs, inner.weights)
    net = Net()
    x = net.input("x", 3, 6, 4, 4)
    net.node("Relu", x, made="outer")
    condition = net.input("c", elem=onnx.TensorProto.BOOL)
    net.node("If", condition, made="y", then_branch=body, else_branch=body)
    net.output("y")
    assert not moved(net)[1].made


def test_before_opset_11_nothing_moves() -> None:
    net = Net(opset=10)
    x = net.node("Relu", net.input("x", 3, 6, 4, 4))
    scale = net.weight([1, 1, 2, 2], np.float32)
    net.node("Relu", net.conv(net.node("Resize", x, scale), 6, 5, (1, 1)), made="y")
    net.output("y")
    assert not moved(net)[1].made


def test_what_cannot_be_stored_elsewhere_stays_and_folds_as_before() -> None:
    """The product of two layers overflows float16; the BatchNorm goes into the second alone."""
    net = Net(dtype=np.float16)
    x = net.node("Relu", net.input("x", 3, 6, 2, 2))
    large = net.weight(np.full((4, 6, 1, 1), 3e4))
    scale = net.weight([1, 1, 4, 4], np.float32)
    up = net.node("Resize", net.node("Conv", x, large), "", scale, mode="nearest")
    last = net.node("Conv", up, net.weight(np.full((5, 4, 1, 1), 9.0)))
    net.node("Relu", net.bn(last, 5), made="y")
    net.output("y")
    before = OnnxModel.from_proto(net.proto())
    plan, weights = make_rounded_plan(before.read(None), {}, before.veto, free=before.free())
    plain, _ = make_rounded_plan(before.read(None), {}, before.veto)
    assert not plan.made
    assert str(plan.after) == str(plain.after)
    assert [site.outcome for site in plan.sites] == [site.outcome for site in plain.sites]
    onnx.checker.check_model(before.write(plan, weights).native)


def test_the_same_bytes_every_time() -> None:
    net = Net()
    net.node("Identity", head(net), made="y")
    net.output("y")
    first, second = (moved(net)[0].native.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_the_error_grows_by_a_factor_of_two_at_most() -> None:
    net = Net(seed=3)
    net.node("Identity", head(net), made="y")
    net.output("y")
    shapes = ["x8=2x64x3", "x4=2x16x6", "x2=2x4x9"]
    result = bnfold.fold(net.proto(), shapes)
    assert result.plan.made
    assert result.verification is not None
    assert result.verification.passed
    assert max(row.ratio for row in result.verification.rows) <= LARGEST_RATIO


def test_it_can_be_left_out() -> None:
    net = Net()
    net.node("Identity", head(net), made="y")
    net.output("y")
    result = bnfold.fold(net.proto(), verify=False)
    assert result.plan.made
    note = (
        "a linear map is computed where it costs less, which no proof follows: Conv_17"
        "; --no-move leaves what is there"
    )
    assert result.notes == (note,)
    assert '"took"' in bnfold.render(result, "html")
    still = bnfold.fold(net.proto(), verify=False, move=False).plan
    assert not still.made
    assert Counter(type(n.op) for n in still.after.nodes)[Concat] == 1
    assert {Conv, Linear} <= {type(n.op) for n in still.after.nodes}
    assert Add not in {type(n.op) for n in still.after.nodes}
    assert not bnfold.inspect(net.proto(), move=False)[1].made
    assert bnfold.inspect(net.proto())[1].made
