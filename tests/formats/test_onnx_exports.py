"""Models as torch's exporter writes them, nothing optimised: what users have."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from torch import nn

from bnfold.formats.onnx.model import OnnxModel
from bnfold.inputs import FREE_BATCH
from bnfold.verbs.input_resolution import resolve_inputs
from tests.formats.onnx_nets import check_fold, kinds


class Residual(nn.Module):
    """Bias-free convolutions, a shortcut with its own BatchNorm, pooling, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6))
        self.body = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.short = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 3, 2, 1, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(4, 5), nn.BatchNorm1d(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.body(x) + self.short(x))
        x = nn.functional.max_pool2d(self.up(x), 2).mean((2, 3))
        result: torch.Tensor = self.head(x)
        return result


class Tokens(nn.Module):
    """Linear layers on [N, L, C], BatchNorm over C by way of a transpose, a learnt scale."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(6, 10, bias=False)
        self.norm = nn.BatchNorm1d(10)
        self.narrow = nn.Linear(10, 6)
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.wide(x).transpose(1, 2)).transpose(1, 2)
        result: torch.Tensor = x + self.narrow(torch.relu(y)) * self.scale
        return result


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm3d(2),
            nn.Conv3d(2, 4, (3, 1, 2)),
            nn.BatchNorm3d(4),
            nn.AvgPool3d(2),
            nn.BatchNorm3d(4),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


def randomised(module: nn.Module) -> nn.Module:
    """Statistics and parameters of BatchNorms that hide no mistake."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.3, 3)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return module.eval()


def exported(module: nn.Module, *sizes: int, **options: Any) -> onnx.ModelProto:
    program = torch.onnx.export(
        randomised(module),
        (torch.randn(*sizes),),
        dynamo=True,
        optimize=False,
        external_data=False,
        verbose=False,
        **options,
    )
    assert program is not None
    return program.model_proto


CASES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 3, 17, 15)),
    "tokens": (Tokens, (2, 7, 6)),
    "volume": (Volume, (2, 2, 9, 7, 8)),
}


@pytest.mark.parametrize("free", [False, True], ids=["static", "free-batch"])
@pytest.mark.parametrize("case", CASES)
def test_every_batchnorm_of_an_export_folds(case: str, free: bool) -> None:
    torch.manual_seed(0)
    factory, sizes = CASES[case]
    options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if free else {}
    model = OnnxModel.from_proto(exported(factory(), *sizes, **options))
    assert "BatchNormalization" in kinds(model)
    after, plan = check_fold(model)
    assert "BatchNormalization" not in kinds(after), str(plan)
    assert plan.batchnorms.kept == 0
    assert len(list(after.ir.graph)) < len(list(model.ir.graph))


def test_free_sides_get_sizes_that_it_runs_on_and_that_is_said() -> None:
    torch.manual_seed(0)
    batch, height, width = (torch.export.Dim(name) for name in ("n", "h", "w"))
    shapes = ({0: batch, 2: height, 3: width},)
    model = OnnxModel.from_proto(exported(Residual(), 2, 3, 17, 15, dynamic_shapes=shapes))
    found = resolve_inputs(model)
    assert [array.shape for array in found.sample.values()] == [(FREE_BATCH, 3, 224, 224)]
    assert [len(axes) for axes in found.dynamic.values()] == [3]
    assert "it was run with" in model.notes[-1]
    check_fold(model)
