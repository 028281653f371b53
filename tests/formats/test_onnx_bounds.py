"""ONNX files that ask for more than any network does: told from the file, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold as package
from bnfold.algebra import rounding
from bnfold.algebra.plan import Outcome
from bnfold.errors import ModelError
from bnfold.formats import sizes
from bnfold.formats.onnx import bounds
from bnfold.formats.onnx.model import OnnxModel

LARGE = 1 << 62
RNG = np.random.default_rng(0)
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]

Nodes = list[onnx.NodeProto]


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def norm(name: str, x: str, y: str) -> tuple[Nodes, dict[str, Any]]:
    names = [f"{name}.{role}" for role in ("gamma", "beta", "mean", "var")]
    arrays = [floats(3), floats(3), floats(3), abs(floats(3)) + 0.5]
    node = helper.make_node("BatchNormalization", [x, *names], [y], name)
    return [node], dict(zip(names, arrays, strict=True))


def proto(
    nodes: Nodes,
    arrays: dict[str, Any],
    functions: Sequence[onnx.FunctionProto] = (),
    output: str = "y",
) -> onnx.ModelProto:
    """A model of float32[2, 3, 5, 7]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 5, 7])],
        [onnx.ValueInfoProto(name=output)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8, functions=functions)


def after_conv(*nodes: onnx.NodeProto, **arrays: Any) -> onnx.ModelProto:
    """Conv and BatchNorm, which give "z", then `nodes`."""
    own, numbers = norm("bn", "conv.y", "z")
    conv = helper.make_node("Conv", ["x", "w"], ["conv.y"], "conv")
    return proto([conv, *own, *nodes], {"w": floats(3, 3, 1, 1), **numbers, **arrays})


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def calling(times: int, depth: int, *inner: onnx.NodeProto) -> onnx.ModelProto:
    """Functions each of which calls the one before `times` times."""
    names = [f"F{i}" for i in range(depth)]
    functions = [helper.make_function("my", "F0", ["a"], ["b"], list(inner), OPSETS)]
    for before, name in pairwise(names):
        values = ["a", *[f"t{i}" for i in range(times - 1)], "b"]
        calls = [
            helper.make_node(before, [one], [other], domain="my") for one, other in pairwise(values)
        ]
        functions.append(helper.make_function("my", name, ["a"], ["b"], calls, OPSETS))
    model = after_conv(helper.make_node(names[-1], ["z"], ["y"], domain="my"))
    model.functions.extend(functions)
    return model


class TestCalls:
    @pytest.mark.parametrize(
        ("times", "depth", "said"),
        [
            (2, 41, r"it has 10\^12 nodes"),
            (2, 19, "it has 262,146 nodes"),
            (1, 2000, "2000 levels deep"),
        ],
    )
    def test_functions_that_grow_are_refused(self, times: int, depth: int, said: str) -> None:
        with pytest.raises(ModelError, match=said):
            OnnxModel.from_proto(calling(times, depth, node("Relu", "a", "b")))

    @pytest.mark.parametrize(("times", "depth"), [(2, 8), (1, 40)])
    def test_others_fold(self, times: int, depth: int) -> None:
        result = package.fold(calling(times, depth, node("Relu", "a", "b")))
        assert (result.plan.batchnorms.folded, result.passed) == (1, True)

    def test_the_bound_is_on_the_nodes_that_come_of_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = calling(3, 4, node("Relu", "a", "b"))  # 27 and two
        monkeypatch.setattr(bounds, "MOST_NODES", 29)
        OnnxModel.from_proto(model)
        monkeypatch.setattr(bounds, "MOST_NODES", 28)
        with pytest.raises(ModelError, match="29 nodes"):
            OnnxModel.from_proto(model)

    def test_functions_in_a_circle_end(self) -> None:
        model = calling(1, 2, helper.make_node("F1", ["a"], ["b"], domain="my"))
        with pytest.raises(ModelError):
            package.fold(model)


def looping(most: int | None, first: bool, *tail: onnx.NodeProto, **more: Any) -> onnx.ModelProto:
    """A loop whose body says by `tail` whether it goes on."""
    entries = [("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, [])]
    entries += [("v", TensorProto.FLOAT, [2, 3, 5, 7])]
    body = helper.make_graph(
        [*tail, node("Relu", "v", "w2")],
        "b",
        [helper.make_tensor_value_info(*entry) for entry in entries],
        [onnx.ValueInfoProto(name="on"), onnx.ValueInfoProto(name="w2")],
    )
    inputs = ["" if most is None else "most", "go", "z"]
    loop = helper.make_node("Loop", inputs, ["y"], "loop", body=body)
    count = {} if most is None else {"most": np.int64(most)}
    return after_conv(loop, go=np.bool_(first), **count, **more)


class TestRounds:
    @pytest.mark.parametrize(
        ("model", "said"),
        [
            (looping(10**15, True, node("Identity", "c", "on")), "1,000,000,000,000,000 times"),
            (looping(10_000_001, True, node("Identity", "c", "on")), "10,000,001 times"),
            (looping(None, True, node("Identity", "c", "on")), "never ends"),
            (
                looping(10**15, True, node("Identity", "yes", "on"), yes=np.bool_(True)),
                "1,000,000,000,000,000 times",
            ),
        ],
        ids=["counts", "just too often", "forever", "always true"],
    )
    def test_a_loop_that_only_counts_is_refused(self, model: onnx.ModelProto, said: str) -> None:
        with pytest.raises(ModelError, match=said):
            OnnxModel.from_proto(model)

    @pytest.mark.parametrize(
        "model",
        [
            looping(7, True, node("Identity", "c", "on")),
            looping(10**15, False, node("Identity", "c", "on")),
            looping(10**15, True, node("Not", "c", "on")),
            looping(None, True, node("Less", "i four", "on"), four=np.int64(4)),
        ],
        ids=["few rounds", "none", "ends itself", "ends itself without a count"],
    )
    def test_others_fold(self, model: onnx.ModelProto) -> None:
        assert package.fold(model).passed


ROUND, GO = onnx.ValueInfoProto(name="i"), onnx.ValueInfoProto(name="c")
DAMAGED = {
    "none": None,
    "a number": 1,
    "one without a condition": helper.make_graph([], "b", [onnx.ValueInfoProto(name="i")], [GO]),
    "one that gives nothing": helper.make_graph([], "b", [ROUND, GO], []),
    "one that copies nothing": helper.make_graph(
        [helper.make_node("Identity", [""], ["on"])],
        "b",
        [ROUND, GO],
        [onnx.ValueInfoProto(name="on")],
    ),
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_body_is_nothing_that_counts(body: Any) -> None:
    given = {} if body is None else {"body": body}
    loop = helper.make_node("Loop", ["most", "go"], ["y"], "loop", **given)
    given_numbers = {"most": np.int64(9**9), "go": np.bool_(True)}
    weights = [numpy_helper.from_array(number, name) for name, number in given_numbers.items()]
    graph = helper.make_graph([loop], "g", [], [onnx.ValueInfoProto(name="y")], weights)
    bounds.require_few_rounds(ir.from_proto(helper.make_model(graph)))


def used(*makers: onnx.NodeProto, **arrays: Any) -> onnx.ModelProto:
    """What `makers` make, called "e", has its largest number added to the result."""
    largest, total = node("ReduceMax", "e", "s"), node("Add", "z s")
    return after_conv(*makers, largest, total, **arrays)


GIGABYTES = {
    "Expand": used(node("Expand", "one n", "e"), one=floats(1), n=np.array([50000, 60000])),
    "Expand of the input": used(node("Expand", "z n", "e"), n=np.array([10**7, 1, 3, 5, 7])),
    "ConstantOfShape": used(node("ConstantOfShape", "n", "e"), n=np.array([50000, 60000])),
    "Tile": used(node("Tile", "z n", "e"), n=np.array([1000, 1000, 10, 1])),
    "Range": used(node("Range", "a b c", "e"), a=np.float32(0), b=np.float32(3e9), c=np.float32(1)),
    "Pad": used(node("Pad", "z n", "e"), n=np.array([0, 0, 20000, 20000] * 2)),
    "Resize": used(
        helper.make_node("Resize", ["z", "", "n"], ["e"]), n=np.array([1, 1, 5e3, 5e3], np.float32)
    ),
    "OneHot": used(
        node("OneHot", "i n v", "e"), i=np.arange(999), n=np.int64(3e6), v=np.float32([0, 1])
    ),
    "MatMul": used(
        *(node("Reshape", f"k s{i}", f"m{i}") for i in (0, 1)),
        node("MatMul", "m0 m1", "e"),
        k=floats(40000),
        s0=np.array([40000, 1]),
        s1=np.array([1, 40000]),
    ),
    "Concat of itself": used(
        *(node("Concat", f"d{i} d{i}", f"d{i + 1}", axis=0) for i in range(34)),
        node("Identity", "d34", "e"),
        d0=floats(1),
    ),
    "MaxPool": used(node("MaxPool", "z", "e", kernel_shape=[30000] * 2, pads=[29999] * 4)),
    "ConvTranspose": used(node("ConvTranspose", "z w", "e", strides=[20000, 20000])),
    "Split": used(node("Split", "z n", "e f", axis=1), n=np.array([LARGE, 3 - LARGE])),
}


class TestSizes:
    @pytest.mark.parametrize("kind", GIGABYTES)
    def test_values_of_gigabytes_are_refused(self, kind: str) -> None:
        """By whatever would take their memory: reading, the truth, the runtime, onnxsim."""
        model = OnnxModel.from_proto(GIGABYTES[kind])
        for use in (lambda: model.read(None), model.truth, model.runners):
            with pytest.raises(ModelError, match=r"its values take .*GB, of which"):
                use()  # type: ignore[operator]

    def test_before_onnxsim_as_well(self) -> None:
        from bnfold.formats.onnx.simplification import simplified

        with pytest.raises(ModelError, match="its values take"):
            simplified(OnnxModel.from_proto(GIGABYTES["Expand"]))

    def test_the_bound_grows_with_the_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """16 MB made of 840 bytes of input and 48 of weights, or of 400 kB more."""
        monkeypatch.setattr(sizes, "MOST_BYTES", 1 << 20)
        made = node("Expand", "one n", "e")
        arrays = {"one": floats(1), "n": np.array([2000, 2000])}
        with pytest.raises(ModelError, match=r"16\.0 MB"):
            OnnxModel.from_proto(used(made, **arrays)).read(None)
        OnnxModel.from_proto(used(made, **arrays, more=floats(100_000))).read(None)

    @pytest.mark.parametrize(
        ("nodes", "arrays", "said"),
        [
            ([node("DepthToSpace", "z", blocksize=0)], {}, "squares of 0 pixels"),
            ([node("SpaceToDepth", "z", blocksize=0)], {}, "squares of 0 pixels"),
            (
                [node("Slice", "z a b c d")],
                {"a": [0], "b": [3], "c": [1], "d": [0]},
                "slice step cannot be zero",
            ),
            ([node("Concat", "z z", axis=-LARGE)], {}, "axis"),
            ([node("Transpose", "z", perm=[LARGE, 0, 1, 2])], {}, "permutes"),
        ],
    )
    def test_sizes_that_contradict_are_a_sentence(
        self, nodes: Nodes, arrays: dict[str, Any], said: str
    ) -> None:
        numbers = {name: np.array(value) for name, value in arrays.items()}
        with pytest.raises(ModelError, match=said):
            package.fold(after_conv(*nodes, **numbers))

    @pytest.mark.parametrize(
        "attributes",
        [
            {"group": 0},
            {"group": -1},
            {"group": LARGE},
            {"strides": [0, 0]},
            {"strides": [-1, -1]},
            {"dilations": [0, 0]},
            {"pads": [LARGE] * 4},
            {"pads": [-LARGE] * 4},
            {"pads": [30000] * 4},
            {"pads": [1]},
            {"kernel_shape": [10**9, 10**9]},
        ],
        ids=str,
    )
    def test_a_convolution_that_nothing_can_run(self, attributes: dict[str, Any]) -> None:
        model = after_conv(node("Identity", "z"))
        model.graph.node[0].attribute.extend(
            helper.make_attribute(name, value) for name, value in attributes.items()
        )
        with pytest.raises(ModelError):
            package.fold(model)


LENGTH = 1500
"""More than Python's stack is deep."""

Link = Callable[[int, str, str], tuple[Nodes, dict[str, Any]]]


def conv(i: int, x: str, y: str) -> tuple[Nodes, dict[str, Any]]:
    return [node("Conv", f"{x} w{i}", y)], {f"w{i}": floats(3, 3, 1, 1) / 2}


def conv_and_norm(i: int, x: str, y: str) -> tuple[Nodes, dict[str, Any]]:
    layer, weight = conv(i, x, f"{y}c")
    own, numbers = norm(f"bn{i}", f"{y}c", f"{y}n")
    return [*layer, *own, node("Relu", f"{y}n", y)], {**weight, **numbers}


LINKS: dict[str, Link] = {
    "Relu": lambda i, x, y: ([node("Relu", x, y)], {}),
    "Identity": lambda i, x, y: ([node("Identity", x, y)], {}),
    "BatchNormalization": lambda i, x, y: norm(f"bn{i}", x, y),
    "Mul": lambda i, x, y: ([node("Mul", f"{x} m{i}", y)], {f"m{i}": floats(1, 3, 1, 1)}),
    "Add": lambda i, x, y: ([node("Add", f"{x} x", y)], {}),
    "Conv": conv,
    "Conv, BatchNormalization, Relu": conv_and_norm,
    "Reshape": lambda i, x, y: (
        [node("Reshape", f"{x} r{i}", y)],
        {f"r{i}": np.array([2, 3, 35] if i % 2 else [2, 3, 5, 7])},
    ),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_chain_of_equal_nodes(kind: str) -> None:
    """Read and planned, each of them once; what it becomes is right where it is short, too."""
    nodes: Nodes = []
    arrays: dict[str, Any] = {}
    for i in range(LENGTH):
        own, numbers = LINKS[kind](i, f"v{i}" if i else "x", f"v{i + 1}")
        nodes += own
        arrays |= numbers
    model = proto(nodes, arrays, output=f"v{LENGTH}")
    _, plan = package.inspect(model)
    wanted = LENGTH if "Batch" in kind else 0
    assert plan.batchnorms.found == wanted
    if kind == "Conv, BatchNormalization, Relu":
        assert {site.outcome for site in plan.sites} == {Outcome.FOLDED}


def test_a_plan_is_not_made_anew_for_one_node_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """300 convolutions, each of a half, as one: no type of weight holds what becomes of most."""
    made: list[Any] = []
    make = rounding.make_plan

    def counted(*given: Any, **named: Any) -> Any:
        made.append(0)
        return make(*given, **named)

    monkeypatch.setattr(rounding, "make_plan", counted)
    links = [conv(i, f"v{i}" if i else "x", f"v{i + 1}") for i in range(300)]
    arrays = {name: array / 2 for _, numbers in links for name, array in numbers.items()}
    model = proto([node for nodes, _ in links for node in nodes], arrays, output="v300")
    _, plan = package.inspect(model)
    assert len(made) <= rounding.MOST_PLANS + 10
    assert len(plan.after.nodes) < len(plan.before.nodes)


@pytest.mark.parametrize("kind", ["Add", "Identity"])
def test_a_chain_of_constants(kind: str) -> None:
    """The weight of a convolution at the end of it."""
    weight, nodes = floats(3, 3, 1, 1), list[onnx.NodeProto]()
    for i in range(LENGTH):
        inputs = f"k{i} k0" if kind == "Add" else f"k{i}"
        nodes.append(node(kind, inputs, f"k{i + 1}"))
    own, numbers = norm("bn", "c", "y")
    layer = node("Conv", f"x k{LENGTH}", "c")
    result = package.fold(proto([*nodes, layer, *own], {"k0": weight, **numbers}))
    assert (result.plan.batchnorms.folded, result.passed) == (1, True)


def test_a_sum_that_doubles_sixty_times() -> None:
    nodes = [node("Add", f"d{i} d{i}" if i else "x x", f"d{i + 1}") for i in range(60)]
    assert package.fold(proto(nodes, {}, output="d60")).passed


def test_bodies_in_bodies() -> None:
    """As deep as protobuf reads messages; what is deeper is no model to it."""
    result = node("Relu", "z", "r0")
    for depth in range(1, 20):
        bodies = [
            helper.make_graph([inner], "b", [], [onnx.ValueInfoProto(name=inner.output[0])])
            for inner in (result, node("Identity", "z", f"e{depth}"))
        ]
        branches = dict(zip(("then_branch", "else_branch"), bodies, strict=True))
        result = node("If", "go", f"r{depth}", **branches)
    result.output[0] = "y"
    found = package.fold(after_conv(result, go=np.bool_(True)))
    assert (found.plan.batchnorms.folded, found.passed) == (1, True)


LONG = "Q" * 100_000


@pytest.mark.parametrize(
    "model",
    [
        after_conv(helper.make_node(LONG, ["z"], ["y"], domain="my")),
        after_conv(node("Relu", "z", LONG, name=LONG), node("Sigmoid", LONG)),
        proto(
            [helper.make_node("Sigmoid", ["x"], [LONG]), *norm("bn", LONG, "y")[0]],
            norm("bn", LONG, "y")[1],
        ),
    ],
    ids=["operator", "node and value", "beside what is kept"],
)
def test_names_of_a_hundred_thousand_letters(model: onnx.ModelProto) -> None:
    """The report stays a report, in text; and says where it left something out."""
    _, plan = package.inspect(model)
    graph = str(plan.before)
    assert len(graph) < 5000
    assert "Q" * 60 + "..." in graph


def test_long_names_stay_in_the_file() -> None:
    model = after_conv(node("Relu", "z", LONG, name=LONG), node("Sigmoid", LONG))
    folded = package.fold(model).model
    assert any(entry.name == LONG for entry in folded.graph.node)
