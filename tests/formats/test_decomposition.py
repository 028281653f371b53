"""Operators that are known by their decompositions only, in programs and modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bnfold.formats.pytorch import aten, decomposition
from bnfold.formats.pytorch.calls import name_of
from bnfold.formats.pytorch.decomposition import decomposed
from tests.formats.networks import noise, trained
from tests.forms import fold_in

MATRIX = torch.from_numpy(noise(8, 6))
EIGHT = torch.linspace(0.5, 2.0, 8).view(8, 1, 1)

Op = Callable[[Tensor], Tensor]


def matrix(y: Tensor) -> Tensor:
    """[8, 6] in the type of y: the truth is computed in float64."""
    return MATRIX.to(y.dtype)


def last(y: Tensor) -> Tensor:
    return y.permute(0, 2, 3, 1)


def back(y: Tensor) -> Tensor:
    return y.permute(0, 3, 1, 2)


FOLD: dict[str, Op] = {
    "tensordot": lambda y: back(torch.tensordot(y, matrix(y), ([1], [0]))),
    "inner": lambda y: back(torch.inner(last(y), matrix(y).T)),
    "multi_dot": lambda y: torch.linalg.multi_dot((y.mean((2, 3)), matrix(y), matrix(y).T)),
    "addcdiv": lambda y: torch.addcdiv(y, EIGHT.to(y.dtype), EIGHT.to(y.dtype) + 1, value=3),
    "rad2deg": torch.rad2deg,
    "hstack of parts": lambda y: torch.hstack(y.split((3, 5), 1)),
    "sum_to_size": lambda y: y.sum_to_size(2, 8, 1, 1),
}
"""Of [2, 8, 7, 5]; a BatchNorm behind one folds into the convolution before it."""

WHOLE: dict[str, Op] = {
    "hardswish": F.hardswish,
    "relu6": F.relu6,
    "std": lambda y: y.std(2),
    "linalg_vector_norm": lambda y: torch.linalg.vector_norm(y, dim=2),
    "group_norm": lambda y: F.group_norm(y, 2),
    "gather": lambda y: torch.take_along_dim(y, torch.zeros(2, 8, 1, 5, dtype=torch.int64), 2),
    "floor_divide": lambda y: torch.floor_divide(y, 2),
    "addmv": lambda y: torch.addmv(torch.ones(2), y.mean((2, 3)), MATRIX[:, 0]),
}


class Between(nn.Module):
    """conv -> op -> BatchNorm."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.conv, self.op = nn.Conv2d(3, 8, 1), op
        made = op(torch.zeros(2, 8, 7, 5))
        kind = nn.BatchNorm2d if made.ndim == 4 else nn.BatchNorm1d
        self.bn = kind(made.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.bn(self.op(self.conv(x)))
        return made


class All(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(map(Between, FOLD.values()))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self.branches]


def program(op: Op, **free: int) -> ExportedProgram:
    class Alone(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return op(y)

    sizes = {"y": {int(axis): Dim.DYNAMIC for axis in free.values()}} if free else None
    y = torch.from_numpy(noise(2, 8, 7, 5))
    return torch.export.export(Alone(), (y,), dynamic_shapes=sizes).run_decompositions({})


def calls(made: ExportedProgram) -> list[str]:
    """The operators that are called, without those that look at types only."""
    targets = [node.target for node in made.graph.nodes if node.op == "call_function"]
    names = [name_of(t) for t in targets if isinstance(t, torch._ops.OpOverload)]
    return [name for name in names if not name.startswith("_assert")]


@pytest.mark.parametrize("form", ["module", "graph"])
def test_batchnorms_fold_past_them(form: str) -> None:
    folded = fold_in(form, trained(All()), torch.from_numpy(noise(2, 3, 7, 5)))
    assert folded.plan.batchnorms.folded == len(FOLD), folded.plan.batchnorms


@pytest.mark.parametrize("name", FOLD)
def test_the_parts_compute_the_same(name: str) -> None:
    whole = program(FOLD[name])
    parts = decomposed(whole)
    unknown = [call for call in calls(whole) if aten.entry(call) is None]
    assert unknown
    assert not [call for call in calls(parts) if aten.entry(call) is None]
    y = torch.from_numpy(noise(2, 8, 7, 5))
    one, other = whole.module()(y), parts.module()(y)
    rounding = 8 * torch.finfo(torch.float32).eps * one.abs().max()  # sums of 8, in another order
    assert (one - other).abs().max() <= rounding


@pytest.mark.parametrize("name", WHOLE)
def test_what_ends_in_something_unknown_stays_whole(name: str) -> None:
    whole = program(WHOLE[name])
    assert decomposed(whole) is whole


def test_sizes_may_be_free() -> None:
    assert "tensordot" not in calls(decomposed(program(FOLD["tensordot"], batch=0, width=3)))


def test_decompositions_nest_only_so_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decomposition, "ROUNDS", 1)
    assert "tensordot" in calls(decomposed(program(FOLD["inner"])))


def test_constants_are_computed_within_bounds() -> None:
    """A quarter of a petabyte, which is a sum of nothing that a fold needs."""
    huge = program(lambda y: torch.outer(y.flatten(), torch.ones(1 << 45)).sum(0))
    assert "ones" in calls(decomposed(huge))


def test_what_goes_step_by_step_through_a_sequence_stays_whole() -> None:
    """In steps, a file of a few kilobytes would have as many nodes as its input has entries."""
    net = nn.Sequential(nn.LSTM(3, 4)).eval()
    program = torch.export.export(net, (torch.ones(60, 1, 3),), strict=False)
    assert "lstm" in calls(decomposed(program.run_decompositions({})))
