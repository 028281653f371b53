"""Some outputs of an ONNX model stay, with what they need and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnfold
from bnfold.errors import BnfoldError
from tests.conftest import Ended
from tests.formats.onnx_nets import Net


def three_heads() -> onnx.ModelProto:
    """`boxes` and `scores` of the image, `mask` of another input; each behind a BatchNorm."""
    net = Net()
    trunk = net.bn(net.conv(net.input("x", 2, 3, 9, 7), 3, 4), 4)
    other = net.bn(net.conv(net.input("y", 2, 3, 5, 8), 3, 4), 4)
    for name, value in (("boxes", trunk), ("scores", trunk), ("mask", other)):
        net.output(net.node("Relu", net.bn(net.conv(value, 4, 5), 5), made=name))
    return net.proto()


def test_what_only_the_others_need_goes() -> None:
    result = bnfold.fold(three_heads(), outputs=["scores"])
    graph = result.model.graph
    assert result.verdict == "pass"
    assert [value.name for value in graph.output] == ["scores"]
    assert [value.name for value in graph.input] == ["x"]
    assert [node.op_type for node in graph.node] == ["Conv", "Conv", "Relu"]
    assert len(graph.initializer) == 4


def test_they_are_what_they_were_in_the_order_that_is_asked_for() -> None:
    proto = three_heads()
    rng = np.random.default_rng(0)
    sample = {
        "x": rng.normal(size=(2, 3, 9, 7)).astype(np.float32),
        "y": rng.normal(size=(2, 3, 5, 8)).astype(np.float32),
    }
    before = bnfold.fold(proto, verify=False).original.truth()(sample)
    result = bnfold.fold(proto, outputs=["mask", "boxes"])
    after = result.folded.truth()(sample)
    assert [*after] == ["mask", "boxes"]
    for name, value in after.items():
        np.testing.assert_allclose(value, before[name], rtol=1e-5, atol=1e-5)  # folded in float32


def test_an_input_that_nothing_ever_read_stays() -> None:
    """It is the callers', who pass it."""
    net = Net()
    net.input("unread", 1)
    net.output(net.node("Relu", net.input("x", 2, 3), made="a"), rank=2)
    net.output(net.node("Neg", "x", made="b"), rank=2)
    result = bnfold.fold(net.proto(), outputs=["a"])
    assert [value.name for value in result.model.graph.input] == ["unread", "x"]


def test_an_export_has_them_as_well() -> None:
    result = bnfold.export(three_heads(), outputs=["boxes"])
    assert result.passed
    assert [value.name for value in result["onnx"].model.graph.output] == ["boxes"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nothing", "the model has no output 'nothing'"),
        ("boxes,boxes", "an output is named twice"),
    ],
)
def test_wrong_names(given: str, said: str, tmp_path: Path, bnfold: Callable[..., Ended]) -> None:
    onnx.save(three_heads(), tmp_path / "net.onnx")
    ended = bnfold("fold", tmp_path / "net.onnx", "--outputs", given)
    assert ended.code == 2
    assert said in ended.err
    assert "boxes, scores and mask" in ended.err or "boxes, scores, mask" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_the_command(tmp_path: Path, bnfold: Callable[..., Ended]) -> None:
    onnx.save(three_heads(), tmp_path / "net.onnx")
    ended = bnfold("fold", tmp_path / "net.onnx", "--outputs", "boxes,scores")
    assert ended.code == 0, ended.err
    written = onnx.load(tmp_path / "net.folded.onnx")
    assert [value.name for value in written.graph.output] == ["boxes", "scores"]


def test_other_formats_say_what_to_do() -> None:
    with pytest.raises(BnfoldError, match="the outputs of a module cannot be chosen") as caught:
        bnfold.fold(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 5, 6), outputs=["a"])
    assert caught.value.hint == "export it to ONNX, and choose there"
