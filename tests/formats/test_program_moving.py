"""Maps that are carried to other places in a functional program, .pt2 or the graph of a module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold.algebra import cost
from bnfold.algebra.graph import Conv
from bnfold.formats.pytorch.exported_program import ExportedProgramModel
from bnfold.formats.pytorch.program_making import free_nodes
from bnfold.formats.pytorch.program_reader import ProgramReader
from tests.formats.networks import trained

LARGEST_RATIO = 2.0
"""How much more than the original's own error one with moved maps may be off."""


@pytest.fixture(autouse=True)
def multiply_adds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks are worth moving only where nothing else than multiply-adds counts."""
    monkeypatch.setattr(cost, "MOVED", 0)
    monkeypatch.setattr(cost, "STARTED", 0)


class Tokens(nn.Module):
    """The head of SegFormer (Xie et al. 2021, arXiv:2105.15203, 3.2) behind a pyramid."""

    def __init__(self, mode: str = "bilinear") -> None:
        super().__init__()
        self.mode = mode
        self.steps = nn.ModuleList(nn.Conv2d(3, c, s, s) for c, s in ((5, 1), (7, 2), (9, 4)))
        self.layers = nn.ModuleList(nn.Linear(c, 8) for c in (5, 7, 9))
        self.fuse, self.norm = nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.classifier = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        images = []
        for step, layer in zip(self.steps, self.layers, strict=True):
            y = torch.relu(step(x))
            tokens = layer(y.flatten(2).transpose(1, 2))
            image = tokens.permute(0, 2, 1).reshape(y.shape[0], -1, y.shape[2], y.shape[3])
            images.append(functional.interpolate(image, size=x.shape[2:], mode=self.mode))
        joined = torch.cat(images, 1)
        logits: Tensor = self.classifier(torch.relu(self.norm(self.fuse(joined))))
        return logits


class Pyramid(nn.Module):
    """Resolutions enlarged by a factor and joined; a pooled pixel among them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(3, c, s, s) for c, s in ((4, 1), (6, 2), (10, 4)))
        self.point = nn.Conv2d(10, 6, 1)
        self.fuse, self.norm = nn.Conv2d(26, 12, 1), nn.BatchNorm2d(12)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (4, 6, 10))

    def forward(self, x: Tensor) -> Tensor:
        steps = zip(self.steps, self.norms, strict=True)
        a, b, c = (torch.relu(norm(step(x))) for step, norm in steps)
        whole = torch.relu(self.point(functional.adaptive_avg_pool2d(c, 1)))
        whole = whole.expand(-1, -1, *x.shape[2:])
        ups = [functional.interpolate(y, scale_factor=s) for y, s in ((b, 2), (c, 4))]
        return torch.relu(self.norm(self.fuse(torch.cat((a, *ups, whole), 1))))


class Pooled(nn.Module):
    """A map before a global mean and a layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.head = nn.Conv2d(6, 9, 1), nn.Linear(9, 4)
        self.first = nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.point(torch.relu(self.first(x)))
        return torch.tanh(self.head(y.mean((2, 3))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tokens, bilinear": Tokens,
    "tokens, nearest": lambda: Tokens("nearest"),
    "tokens, bicubic": lambda: Tokens("bicubic"),
    "pyramid": Pyramid,
    "pooled": Pooled,
}


CASES = [*((name, "2x3x8x12") for name in NETWORKS), ("pyramid", "Nx3x8x12")]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_maps_move_in_a_program(name: str, shape: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = trained(NETWORKS[name]())
    result = bnfold.fold(module, shape, form="graph")
    assert result.plan.made
    before, after = (cost.cost(graph) for graph in (result.plan.before, result.plan.after))
    assert (after.multiply_adds or 0) < (before.multiply_adds or 0)
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.smallest_k <= LARGEST_RATIO
    result.save(tmp_path / "moved.pt2")
    loaded = torch.export.load(tmp_path / "moved.pt2").module()
    for batch in (2, 3, 5) if shape.startswith("N") else (2,):
        x = torch.randn(batch, 3, 8, 12)
        assert torch.allclose(loaded(x), module(x), rtol=1e-4, atol=1e-5)  # some ulp of float32
    again = bnfold.fold(tmp_path / "moved.pt2", verify=False).plan
    assert not again.made


def test_what_was_read_alone_goes_from_the_file() -> None:
    module = trained(Tokens())
    program = bnfold.fold(module, "2x3x8x12", form="graph", verify=False).model
    targets = Counter(str(node.target) for node in program.graph.nodes)
    assert targets["aten.cat.default"] == 0
    assert targets["aten.conv2d.default"] == 4
    assert not any(name.startswith(("fuse", "norm")) for name in program.state_dict)


def test_a_call_whose_sizes_are_asked_for_is_not_free() -> None:
    """UNSEEN."""
    program = torch.export.export(trained(Tokens()), (torch.randn(2, 3, 8, 12),))
    reader = ProgramReader(program)
    graph = reader.graph()
    before = free_nodes(reader, graph, program.graph)
    (call,) = (node for node in program.graph.nodes if node.target is torch.ops.aten.cat.default)
    with program.graph.inserting_after(call):
        asked = program.graph.call_function(torch.ops.aten.sym_size.int, (call, 1))
    asked.meta["val"] = 24
    assert before - free_nodes(reader, graph, program.graph) == {call.name}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_convolution_that_pads_one_side_more_is_not_free() -> None:
    """KNOWN."""
    module = nn.Sequential(nn.Conv2d(3, 4, 2, padding="same"), nn.Conv2d(4, 5, 2)).eval()
    model = ExportedProgramModel(torch.export.export(module, (torch.randn(2, 3, 8, 8),)))
    assert {node.name for node in model.read().nodes if isinstance(node.op, Conv)} == {"0", "1"}
    assert model.free() == {"1"}


def test_a_module_keeps_its_maps() -> None:
    result = bnfold.fold(trained(Tokens()), "2x3x8x12")
    assert not result.plan.made
    assert result.model.fuse.weight.shape == (8, 24, 1, 1)
