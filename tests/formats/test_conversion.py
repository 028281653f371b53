"""A conversion that torch cannot make says why, without torch's own decoration."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.special import bessel_j1

import bnfold
from bnfold.errors import ExportError
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
