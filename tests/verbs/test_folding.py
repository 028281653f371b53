"""What a fold says of the whole: ops before and after, and what the graph form would do beyond."""

from __future__ import annotations

import torch
from torch import nn

import bnfold
from bnfold.algebra.plan import Outcome
from bnfold.algebra.refusal import Reason
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net


class Branches(nn.Module):
    """conv + BatchNorm, as RepVGG has them, and two plain branches that merge without any."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.identity = nn.BatchNorm2d(4)
        self.wide = nn.Conv2d(4, 4, 3, padding=1)
        self.narrow = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x) + self.identity(x))
        return torch.relu(self.wide(x) + self.narrow(x))


class Hooked(nn.Module):
    """One BatchNorm that hooks watch, in front of which nothing could take it anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.bn.register_forward_hook(lambda *_: None)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.bn(x))  # type: ignore[no-any-return]


def test_a_module_says_what_its_graph_form_would_merge() -> None:
    result = bnfold.fold(trained(Branches()), "1x4x6x6", keep_classes=True, verify=False)
    (site,) = result.plan.sites
    assert site.outcome is Outcome.KEPT
    assert site.remedy == "the graph form merges it into conv: --form graph"
    assert result.notes == (
        "--form graph goes further: ops 8 -> 4 (Add 2 -> 0, BatchNorm 1 -> 0, Conv 3 -> 2)",
    )


def test_the_graph_form_keeps_that_promise() -> None:
    result = bnfold.fold(trained(Branches()), "1x4x6x6", form="graph")
    (site,) = result.plan.sites
    assert (site.outcome, site.into) == (Outcome.MERGED, ("conv",))
    ops = result.to_json()["ops"]
    assert (ops["before"], ops["after"]) == (8, 4)
    assert ops["kinds"]["Conv"] == {"before": 3, "after": 2}
    assert ops["kinds"]["BatchNorm"] == {"before": 1, "after": 0}
    assert result.notes == ()


def test_inspect_says_the_same() -> None:
    result = bnfold.fold(trained(Branches()), "1x4x6x6", verify=False)
    model, plan = bnfold.inspect(trained(Branches()), "1x4x6x6")
    assert plan.sites == result.plan.sites
    assert model.notes == result.notes


def test_what_the_graph_form_keeps_too_is_told_with_its_own_remedy() -> None:
    result = bnfold.fold(trained(Hooked()), "1x3x6x6", verify=False)
    (site,) = result.plan.sites
    assert site.graph_form is not None
    assert site.graph_form.reason is Reason.ZERO_PADDING
    assert site.remedy == site.graph_form.remedy
    assert result.notes == ()


def test_a_module_that_folds_whole_says_nothing_of_the_graph_form() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    result = bnfold.fold(trained(net), "1x3x6x6", verify=False)
    assert result.notes == ()
    assert str(result.plan.ops) == "3 -> 2 (BatchNorm 1 -> 0)"


def test_an_export_counts_like_a_fold() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    (made,) = bnfold.export(trained(net), "1x3x6x6").to_json()["results"]
    assert made["batchnorms"] == made["affines"] == {"found": 1, "folded": 1, "kept": 0}
    assert (made["ops"]["before"], made["ops"]["after"]) == (3, 2)


def test_a_size_that_nobody_says_is_not_needed_where_nothing_runs() -> None:
    """An empty list is what the command line gives where no --input is."""
    net = Net()
    net.output(net.bn(net.conv(net.input("x", "N", 3, "H", "W"), 3, 4), 4))
    assert bnfold.fold(net.proto(), [], verify=False).plan.batchnorms.kept == 0
