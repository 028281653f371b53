"""Small ONNX models for the tests, and the proof that a folded one computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnfold.algebra.plan import Plan
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.formats.onnx.model import OnnxModel

Sizes = Sequence[int | str]
FACTOR = 8
"""How much more than the original's own error a folded model may be off."""


class Net:
    """Builds a graph node by node; random weights are seeded, statistics are never the default."""

    def __init__(self, opset: int = 17, ir: int = 8, dtype: Any = np.float32, seed: int = 0):
        self.opset, self.ir, self.dtype = opset, ir, np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.weights: list[TensorProto] = []

    @property
    def elem(self) -> int:
        return helper.np_dtype_to_tensor_dtype(self.dtype)

    def input(self, name: str, *sizes: int | str, elem: int | None = None) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem or self.elem, sizes))
        return name

    def output(self, name: str, rank: int | None = 4, elem: int | None = None) -> str:
        sizes = None if rank is None else [None] * rank
        self.outputs.append(helper.make_tensor_value_info(name, elem or self.elem, sizes))
        return name

    def weight(self, values: Any, dtype: Any = None, name: str | None = None) -> str:
        name = name or f"w{len(self.weights)}"
        array = np.asarray(values).astype(dtype or self.dtype)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, *sizes: int, **how: Any) -> str:
        return self.weight(self.rng.normal(size=sizes) * 0.5, **how)

    def node(
        self, kind: str, *inputs: str, made: str | Sequence[str] = (), **attributes: Any
    ) -> str:
        names = [made] if isinstance(made, str) else list(made) or [f"v{len(self.nodes)}"]
        node = helper.make_node(kind, inputs, names, name=f"{kind}_{len(self.nodes)}", **attributes)
        self.nodes.append(node)
        return names[0]

    def conv(
        self, x: str, cin: int, cout: int, kernel: Sequence[int] = (3, 3), **attributes: Any
    ) -> str:
        biased = attributes.pop("bias", True)
        weight = self.normal(cout, cin // attributes.get("group", 1), *kernel)
        bias = [self.normal(cout)] if biased else []
        return self.node("Conv", x, weight, *bias, **attributes)

    def statistics(self, channels: int, dtype: Any = None) -> list[str]:
        """scale (of both signs), B, mean and var of a BatchNormalization."""
        rng = self.rng
        signs = np.where(np.arange(channels) % 3 == 1, -1, 1)
        values = (
            signs * rng.uniform(0.5, 2, channels),
            rng.normal(size=channels),
            rng.normal(size=channels),
            rng.uniform(0.2, 3, channels),
        )
        return [self.weight(v, dtype) for v in values]

    def bn(self, x: str, channels: int, made: str | Sequence[str] = (), **attributes: Any) -> str:
        dtype = attributes.pop("dtype", None)
        parameters = self.statistics(channels, dtype)
        return self.node("BatchNormalization", x, *parameters, made=made, **attributes)

    def proto(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir)


def fold(source: onnx.ModelProto | OnnxModel) -> tuple[OnnxModel, Plan]:
    model = source if isinstance(source, OnnxModel) else OnnxModel.from_proto(source)
    graph = model.read(None)
    plan, weights = make_rounded_plan(graph, model.locked(), model.veto)
    return model.write(plan, weights), plan


def sample_of(model: OnnxModel, seed: int = 0, size: int = 3) -> dict[str, NDArray[Any]]:
    """Normal noise; a boolean input is false if the seed is 0, else true."""
    rng = np.random.default_rng(seed)
    sample: dict[str, NDArray[Any]] = {}
    for spec in model.inputs:
        shape = [s if isinstance(s, int) else size for s in spec.shape or ()]
        dtype = ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype)
        values = np.asarray(rng.normal(size=shape) * 2)
        bools = np.full(shape, bool(seed))
        sample[spec.name] = bools if spec.dtype == "bool" else values.astype(dtype)
    return sample


def assert_same(before: OnnxModel, after: OnnxModel, seed: int = 0) -> None:
    """`after` is as near to the truth of `before` as `before` is itself, outputs alike."""
    sample = sample_of(before, seed)
    truth = before.truth()(sample)
    pairs = zip(before.runners(), after.runners(), strict=True)
    for original, candidate in pairs:
        was, now = original(sample), candidate(sample)
        assert list(was) == list(now) == list(truth)
        for name, exact in truth.items():
            assert was[name].dtype == now[name].dtype
            assert was[name].shape == now[name].shape == exact.shape
            if exact.dtype.kind != "f":
                assert np.array_equal(was[name], now[name]), f"{candidate.name} {name}"
                continue
            ulp = float(np.finfo(was[name].dtype).eps) * float(np.abs(exact).max())
            floor = float(np.abs(was[name].astype(np.float64) - exact).max())
            error = float(np.abs(now[name].astype(np.float64) - exact).max())
            assert error <= FACTOR * max(floor, ulp), f"{candidate.name} {name}"


def check_fold(source: onnx.ModelProto | OnnxModel) -> tuple[OnnxModel, Plan]:
    """Fold, and prove that the result is a valid model that computes the same."""
    before = source if isinstance(source, OnnxModel) else OnnxModel.from_proto(source)
    original = before.native.SerializeToString()
    after, plan = fold(before)
    onnx.checker.check_model(after.native, full_check=True)
    assert before.native.SerializeToString() == original
    for seed in (0, 1):
        assert_same(before, after, seed)
    assert [v.name for v in after.ir.graph.outputs] == [v.name for v in before.ir.graph.outputs]
    assert after.inputs == before.inputs
    after.read(None)
    return after, plan


def kinds(model: OnnxModel) -> list[str]:
    return [node.op_type for node in model.ir.graph]
