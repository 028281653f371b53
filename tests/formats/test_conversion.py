"""A conversion that torch cannot make says why, without torch's own decoration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.special import bessel_j1

import bnfold
from bnfold.errors import ExportError, ModelError
from tests.formats.networks import trained


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return bessel_j1(self.bn(self.conv(x)))


class Branching(Unknown):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y * 2 if y.sum() > 0 else y  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("network", "cause"),
    [
        (Unknown, "No ONNX function found for .*bessel_j1"),
        (Branching, r"test_conversion\.py:\d+ \(return y .*\): .* values of a tensor"),
    ],
)
def test_the_cause_is_told(network: type[nn.Module], cause: str) -> None:
    with pytest.raises(ExportError, match=f"cannot be exported to onnx: .*{cause}") as caught:
        bnfold.export(trained(network()), "2x3x8x8", to=["onnx"])
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_an_instance_norm_with_running_statistics_folds() -> None:
    norm = nn.InstanceNorm2d(5, affine=True, track_running_stats=True)
    network = trained(nn.Sequential(nn.Conv2d(3, 5, 3), norm))
    made = bnfold.export(network, "Nx3x8x8", to=["onnx"])["onnx"]
    assert made.verification.passed
    assert [node.op_type for node in made.model.graph.node] == ["Conv"]


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_complex_outputs_do_not_become_real_ones() -> None:
    with pytest.raises(ModelError, match=r"changes a shape: .*, 2\) on cpu") as caught:
        bnfold.export(Spectrum().eval(), "2x8", to=["onnx"])
    assert "real numbers" in str(caught.value.hint)


class Indexes(nn.Module):
    """Runs on no input at all."""

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        return found[7] + x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_an_original_that_does_not_run_is_no_failure_of_an_exporter() -> None:
    with pytest.raises(ModelError, match="list index out of range"):
        bnfold.export(torch.jit.script(Indexes()), "2x3x8x8", to=["onnx"])
