"""Facts about torch, onnx and ONNX Runtime that have led other tools astray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

import bnfold
from bnfold.errors import ModelError
from bnfold.formats.onnx.model import OnnxModel
from bnfold.verbs.targets import Conversion
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net, fold, kinds

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

NEWEST_IR = 13
"""What ONNX Runtime 1.31 loads."""


def network() -> nn.Module:
    return trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))


@pytest.mark.parametrize("opset", [18, 20, 22])
def test_the_opset_asked_for_is_the_one_written(opset: int, tmp_path: Path) -> None:
    result = bnfold.export(network(), "2x3x9x7", to=["onnx"], how=Conversion(opset=opset))["onnx"]
    assert [o.version for o in result.model.opset_import if o.domain == ""] == [opset]
    assert result.model.ir_version <= NEWEST_IR
    result.save(tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]  # no file of weights beside
    onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])


def test_an_opset_that_the_exporter_silently_raises_is_written_by_the_other_one() -> None:
    """The newer exporter writes 18 where 13 was asked for."""
    made = bnfold.export(network(), "2x3x9x7", to=["onnx"], how=Conversion(opset=13))
    assert made.passed
    assert made["onnx"].model.opset_import[0].version == 13


def test_a_model_too_new_for_the_runtime_is_refused_in_a_sentence() -> None:
    net = Net(opset=28, ir=14)
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4))
    with pytest.raises(ModelError, match="does not load the model") as caught:
        bnfold.fold(net.proto())
    assert "\n" not in str(caught.value)


def test_a_training_export_folds_only_what_is_certain_and_cannot_be_verified() -> None:
    """Its BatchNorms may look like inference; its Dropout is active, and nothing passes it."""
    net = Net(opset=15)
    inner = net.conv(net.input("x", 2, 3, 9, 7), 3, 4)
    flag, ratio = net.weight(True, np.bool_), net.weight(0.5, np.float32)
    net.output(net.bn(net.node("Dropout", net.bn(inner, 4), ratio, flag), 4))
    after, plan = fold(net.proto())
    assert kinds(after) == ["Conv", "Dropout", "BatchNormalization"]
    assert plan.batchnorms.kept == 1
    with pytest.raises(ModelError, match=r"Dropout_2 .* gives other numbers each time"):
        bnfold.fold(net.proto())


def test_bfloat16_in_onnx_is_rounded_once() -> None:
    """ONNX Runtime's CPU provider has no bfloat16 convolution, so the numbers are looked at."""
    net = Net(opset=17, dtype=ml_dtypes.bfloat16)
    net.output(net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4, bias=False), 4))
    proto = net.proto()
    before = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weight, gamma, beta, mean, var = (v.astype(np.float64) for v in before.values())
    after, _ = fold(OnnxModel.from_proto(proto))
    tensors = {t.name: t for t in after.native.graph.initializer}
    assert {t.data_type for t in tensors.values()} == {TensorProto.BFLOAT16}
    scale = gamma / np.sqrt(var + np.float64(np.float32(1e-5)))
    new_weight, new_bias = (numpy_helper.to_array(t) for t in tensors.values())
    exact = (weight * scale[:, None, None, None]).astype(ml_dtypes.bfloat16)
    assert np.array_equal(new_weight.astype(np.float32), exact.astype(np.float32))
    shift = (beta - mean * scale).astype(ml_dtypes.bfloat16)
    assert np.array_equal(new_bias.astype(np.float32), shift.astype(np.float32))


def test_an_epsilon_of_zero_is_zero() -> None:
    """`eps or 1e-5` would give an amplification of 316, not of 10,000."""
    net: Any = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, eps=0.0)).eval()
    net[1].running_var[:] = torch.tensor([1e-8, 4e-8])
    for form in ("module", "graph"):
        result = bnfold.fold(net, "2x3x9x7", form=form)
        assert result.passed
        assert result.plan.sites[0].amplification == pytest.approx(1e4, rel=1e-6)
