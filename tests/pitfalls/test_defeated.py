"""What defeats tools that look for exact types, or that hold a model several times in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.formats.networks import trained
from tests.formats.onnx_nets import Net
from tests.forms import FORMS, fold_in

MEGABYTE = 1 << 20


class OwnConv(nn.Conv3d):
    pass


class OwnNorm(nn.BatchNorm3d):
    """Computes its activation as well, as those of several model zoos do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", [nn.BatchNorm3d, OwnNorm], ids=["plain norm", "own norm"])
def test_subclasses_fold(form: str, norm: type[nn.BatchNorm3d]) -> None:
    """Also where a class computes more than a BatchNorm, for which a module is generated."""
    torch.manual_seed(0)
    net = trained(nn.Sequential(OwnConv(2, 4, 3, groups=2), norm(4)))
    found = fold_in(form, net, torch.randn(2, 2, 5, 6, 7))
    assert found.plan.batchnorms.found == 1
    assert found.plan.batchnorms.kept == 0


FOLDED_PEAK = """
import sys
import bnfold
result = bnfold.fold(sys.argv[1], verify=False)
assert result.plan.batchnorms.kept == 0
result.save(sys.argv[2])
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak memory")
def test_folding_100_megabytes_takes_a_small_multiple_of_them(tmp_path: Path) -> None:
    """The file, its weights as numbers and the new ones are three times the weights; the imports
    take 200 MB. Six times and 300 MB leave room for one float64 layer at a time and for another
    allocator, and are far from the sixty times that made this a test.
    """
    net = Net()
    x = net.input("x", 1, 512, 7, 7)
    for _ in range(11):
        x = net.bn(net.conv(x, 512, 512, pads=[1, 1, 1, 1], bias=False), 512)
        x = net.node("Relu", x)
    net.output(x)
    path = tmp_path / "large.onnx"
    onnx.save(net.proto(), path)
    size = path.stat().st_size
    assert size > 95 * MEGABYTE
    script = [sys.executable, "-c", FOLDED_PEAK, str(path), str(tmp_path / "folded.onnx")]
    ended = subprocess.run(script, capture_output=True, text=True, check=True)
    peak = int(ended.stdout) * 1024
    assert peak < 6 * size + 300 * MEGABYTE, f"{peak / MEGABYTE:.0f} MB"
    folded = onnx.load(tmp_path / "folded.onnx")
    assert {node.op_type for node in folded.graph.node} == {"Conv", "Relu"}
    assert np.isfinite(onnx.numpy_helper.to_array(folded.graph.initializer[0])).all()
