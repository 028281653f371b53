"""The float64 truth of ONNX models: against ONNX Runtime, against formulas, and its refusals."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from bnfold.errors import UsageError
from bnfold.formats.onnx.float64 import Float64Runner, NotComputableError
from bnfold.runtimes.ort import OrtRunner

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(2, 6, 7, 9)) * 1.3).astype(np.float32)


def model(body: str, opset: int = 20, inputs: str = "float[2,6,7,9] x") -> onnx.ModelProto:
    head = f'<ir_version: 9, opset_import: ["": {opset}]>'
    return parser.parse_model(f"{head} g ({inputs}) => (float y) {{ {body} }}")


SIX = "s = Constant<value_floats=[1.1, -1.2, 0.3, 0.4, 0.5, 0.6]>() v = Abs(s)"
KERNEL = """a = Constant<value_float=0.0>() b = Constant<value_float=108.0>()
            c = Constant<value_float=1.0>() r = Range(a, b, c) q = Sin(r)
            k = Constant<value_ints=[6, 2, 3, 3]>() w = Reshape(q, k)"""
SCALES = "z = Sin(x) s = Constant<value_floats=[1.0, 1.0, 2.0, 1.5]>()"
SIZES = "z = Sin(x) s = Constant<value_ints=[2, 6, 11, 4]>()"
BRANCHES = """a = ReduceSum<keepdims=0>(x) b = Constant<value_float=0.0>() c = Greater(a, b)
    y = If(c) <then_branch = t () => (float q) { h = Constant<value_float=0.1>() p = Erf(x)
                                                 q = Mul(p, h) },
               else_branch = e () => (float r) { r = Gelu(x) }>"""

CASES = {
    "conv": (KERNEL + "y = Conv<group=3, pads=[1, 0, 0, 2], strides=[2, 1]>(x, w)", 17),
    "conv same": (KERNEL + 'y = Conv<group=3, auto_pad="SAME_LOWER", strides=[2, 3]>(x, w)', 17),
    "transposed": (
        KERNEL + "y = ConvTranspose<group=2, pads=[1, 0, 0, 1], strides=[2, 3],"
        "dilations=[1, 2], output_padding=[1, 0]>(x, w)",
        17,
    ),
    "transposed same": (
        KERNEL + 'y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w)',
        17,
    ),
    "transposed sized": (
        KERNEL + "y = ConvTranspose<output_shape=[14, 17], strides=[2, 2]>(x, w)",
        17,
    ),
    "batchnorm 9": (SIX + "y = BatchNormalization(x, s, s, s, v)", 9),
    "batchnorm 15": (SIX + "y = BatchNormalization<epsilon=0.1>(x, s, s, s, v)", 15),
    "instance norm": (SIX + "y = InstanceNormalization(x, s, s)", 17),
    "group norm": (SIX + "y = GroupNormalization<num_groups=2>(x, s, s)", 21),
    "layer norm": ("s = Constant<value_float=0.3>() y = LayerNormalization<axis=-1>(x, s)", 17),
    "softmax 11": ("y = Softmax(x)", 11),
    "softmax 13": ("y = Softmax(x)", 13),
    "log softmax 11": ("y = LogSoftmax<axis=2>(x)", 11),
    "erf": ("y = Erf(x)", 17),
    "gelu": ("y = Gelu(x)", 20),
    "gelu tanh": ('y = Gelu<approximate="tanh">(x)', 20),
    "hard swish": ("y = HardSwish(x)", 17),
    "mish": ("y = Mish(x)", 18),
    "lrn": ("y = LRN<size=3, alpha=0.3>(x)", 17),
    "resize nearest": (SCALES + 'y = Resize<mode="nearest">(z, , s)', 17),
    "resize cubic": (SCALES + 'y = Resize<mode="cubic">(z, , s)', 17),
    "resize corners": (
        SCALES
        + 'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(z, , s)',
        17,
    ),
    "resize sizes": (SIZES + 'y = Resize<mode="linear">(z, , , s)', 17),
    "resize 10": (SCALES + 'y = Resize<mode="linear">(z, s)', 10),
    "upsample 9": (SCALES + 'y = Upsample<mode="nearest">(z, s)', 9),
    "constant of shape": ("h = Shape(x) c = ConstantOfShape(h) d = Sin(x) y = Add(c, d)", 17),
    "cast like": ("i = Constant<value_int=3>() j = CastLike(i, x) z = Sin(x) y = Mul(j, z)", 17),
    "cast": ("z = Sin(x) d = Cast<to=11>(z) e = Cos(d) y = Cast<to=1>(e)", 17),
    "dropout": ("z = Sin(x) y = Dropout(z)", 17),
    "branches": (BRANCHES, 20),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_onnx_runtime_and_is_no_float32(case: str) -> None:
    body, opset = CASES[case]
    proto = model(body, opset)
    truth = Float64Runner(proto)({"x": X})["y"]
    single = OrtRunner(proto.SerializeToString(), level="unoptimised")({"x": X})["y"]
    assert truth.dtype == np.float64
    assert truth.shape == single.shape
    # sums of up to 54 float32 products: about sqrt(54) roundings of 2**-24, and twice that at most
    assert np.abs(truth - single).max() < 2 * math.sqrt(54) * 2.0**-23 * np.abs(truth).max()
    assert np.mean(truth == truth.astype(np.float32)) < 0.5


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 7), (1, 2, 3, 4, 5)])
def test_a_maximum_over_all_is_kept_in_its_rank(shape: tuple[int, ...]) -> None:
    """onnx.reference gives a [2, 3, 5] without its last axis."""
    sizes = ",".join(map(str, shape))
    proto = model("y = GlobalMaxPool(x)", 17, f"float[{sizes}] x")
    x = RNG.standard_normal(shape).astype(np.float32)
    expected = x.max(tuple(range(2, len(shape))), keepdims=True)
    np.testing.assert_array_equal(Float64Runner(proto)({"x": x})["y"], expected)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("pad", ["pads=[1, 1, 0, 1]", 'auto_pad="SAME_UPPER"', 'auto_pad="VALID"'])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("counted", [0, 1])
def test_pools_as_onnx_runtime_does(
    kind: str, pad: str, stride: int, ceil: int, counted: int
) -> None:
    how = f"kernel_shape=[3, 2], strides=[{stride}, {stride}], ceil_mode={ceil}, {pad}"
    if kind == "AveragePool":
        how += f", count_include_pad={counted}"
    proto = model(f"z = Sin(x) y = {kind}<{how}>(z)", 19)
    truth = Float64Runner(proto)({"x": X})["y"]
    single = OrtRunner(proto.SerializeToString(), level="unoptimised")({"x": X})["y"]
    assert truth.shape == single.shape
    assert np.abs(truth - single).max() < 8 * 2.0**-23  # six numbers up to 1, added in float32


PRECISE: dict[str, Any] = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "Erf": np.vectorize(math.erf),
    "Gelu": np.vectorize(lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2)))),
    "HardSwish": lambda x: x * np.clip(x * np.float32(1 / 6).astype(float) + 0.5, 0, 1),
    "Mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "Exp": np.exp,
    "Reciprocal": lambda x: 1 / x,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdims=True),
    "ReduceL2": lambda x: np.sqrt((x**2).sum(keepdims=True)),
}


@pytest.mark.parametrize("kind", PRECISE)
def test_formulas_hold_to_float64(kind: str) -> None:
    truth = Float64Runner(model(f"y = {kind}(x)"))({"x": X})["y"]
    assert truth == pytest.approx(PRECISE[kind](X.astype(np.float64)), rel=1e-12, abs=1e-13)


def test_training_batchnorm_uses_the_batch() -> None:
    body = SIX + "y, m, n = BatchNormalization<training_mode=1>(x, s, s, s, v)"
    truth = Float64Runner(model(body, 15))({"x": X})["y"]
    x, s = X.astype(np.float64), np.array([1.1, -1.2, 0.3, 0.4, 0.5, 0.6], np.float32)
    by = (1, -1, 1, 1)
    mean, var = (f((0, 2, 3)).reshape(by) for f in (x.mean, x.var))
    scale = s.astype(np.float64).reshape(by)
    # the default epsilon is a float32 in onnx, which is off by 2**-25 of 1e-5 and counts by 1e-5
    assert truth == pytest.approx((x - mean) / np.sqrt(var + 1e-5) * scale + scale, abs=1e-11)


@pytest.mark.parametrize("narrow", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_models_are_widened(narrow: int) -> None:
    kind = helper.tensor_dtype_to_np_dtype(narrow)
    weight = helper.make_tensor("w", narrow, [1], [0.1])
    value = [helper.make_tensor_value_info(n, narrow, [3]) for n in ("x", "y")]
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Sin", ["a"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=narrow),
        helper.make_node("Mul", ["c", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [weight])
    x: Any = np.array([0.1, 0.2, 0.3]).astype(kind)
    found = Float64Runner(helper.make_model(graph))({"x": x})["y"]
    exact = np.sin(x.astype(np.float64)) * float(np.array(0.1).astype(kind))
    assert found == pytest.approx(exact, rel=1e-15)


def test_bfloat16_models_are_widened() -> None:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [1], [0.1])
    value = [helper.make_tensor_value_info(n, TensorProto.BFLOAT16, [3]) for n in ("x", "y")]
    nodes = [
        helper.make_node("Sin", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Mul", ["b", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [weight])
    x = np.array([0.1, 0.2, 0.3], ml_dtypes.bfloat16)
    found = Float64Runner(helper.make_model(graph))({"x": x})["y"]
    exact = np.sin(x.astype(np.float64)) * float(ml_dtypes.bfloat16(0.1))
    assert found.dtype == np.float64
    assert found == pytest.approx(exact, rel=1e-15)  # a few roundings of float64


def test_a_kernel_that_computes_in_float32_is_named() -> None:
    """onnx.reference makes the grid of an AffineGrid in float32, whatever it is given."""
    body = "s = Constant<value_ints=[2, 3, 4, 5]>() y = AffineGrid(x, s)"
    with pytest.raises(NotComputableError, match=r"y \(AffineGrid\) is not computed in float64"):
        Float64Runner(model(body, inputs="float[2,2,3] x"))({"x": X[:2, :2, :3, 0]})


def test_local_functions_are_widened() -> None:
    proto = model("y = f(x)", 20)
    proto.graph.node[0].domain = "local"
    proto.opset_import.append(helper.make_opsetid("local", 1))
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=0.5),
        helper.make_node("Erf", ["a"], ["e"]),
        helper.make_node("Mul", ["e", "c"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 20)]
    proto.functions.append(helper.make_function("local", "f", ["a"], ["b"], nodes, opsets))
    found = Float64Runner(proto)({"x": X})["y"]
    assert found == pytest.approx(PRECISE["Erf"](X.astype(np.float64)) / 2, rel=1e-13)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("y = RandomNormalLike(x)", r"y \(RandomNormalLike\) is random"),
        (
            "r = Constant<value_float=0.5>() t = Constant<value_int=1>() b = Cast<to=9>(t) "
            "y = Dropout(x, r, b)",
            r"y \(Dropout\) has no float64 result: a Dropout that is active",
        ),
        ("z = NoSuchOperator(x) y = Relu(z)", "NoSuchOperator"),
        ("a = Constant<value_ints=[5]>() y = Reshape(x, a)", r"y \(Reshape\) has no float64"),
        (
            "s = Constant<value_ints=[2, 3, 4, 5]>() r = Constant<value_ints=[2, 2, 3]>() "
            "f = Constant<value_ints=[-1]>() v = Reshape(x, f) b = Constant<value_ints=[0]>() "
            "e = Constant<value_ints=[12]>() c = Slice(v, b, e) t = Reshape(c, r) "
            "y = AffineGrid(t, s)",
            r"y \(AffineGrid\) is not computed in float64 here",
        ),
    ],
    ids=["random", "dropout", "unknown", "failing", "narrow"],
)
def test_what_cannot_be_computed_is_named(body: str, words: str) -> None:
    with pytest.raises(NotComputableError, match=words):
        Float64Runner(model(body))({"x": X})


def test_inputs_are_checked_and_widened() -> None:
    runner = Float64Runner(model("y = Sin(x)"))
    with pytest.raises(UsageError, match="'x' is missing"):
        runner({})
    with pytest.raises(UsageError, match="wanted x=2x6x7x9:float64"):
        runner({"x": X[0]})
    half: Any = X.astype(np.float16)
    assert runner({"x": half})["y"] == pytest.approx(np.sin(half.astype(np.float64)))
