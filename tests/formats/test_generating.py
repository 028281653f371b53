"""Submodules that are generated: what folds so, at which sizes, and what is refused."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from bnfold.formats.pytorch import generating
from bnfold.formats.pytorch.recording import record
from bnfold.formats.pytorch.variation import calls_of_other_sizes
from bnfold.verbs.folding import FoldResult
from tests.formats.networks import BatchNormAct2d, trained

SIZES = [(1, 5, 5), (3, 7, 12), (2, 16, 12), (1, 33, 18)]


class Branches(nn.Module):
    """Three branches that become one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.one = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
        self.same, self.act = nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.dense(x) + self.one(x) + self.same(x))
        return y


class Part(nn.Module):
    """A functional BatchNorm, and what `then` does."""

    def __init__(self, then: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.bn, self.then = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), then
        self.stride = 4

    def forward(self, x: Tensor, flag: bool = False, *, mask: Tensor | None = None) -> Any:
        b = self.bn
        y = F.batch_norm(self.conv(x), b.running_mean, b.running_var, b.weight, b.bias)
        return self.then(self, torch.tanh(y) if mask is None else y * mask)


class Net(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.tail = part, nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.part(x)
        return self.tail(y) if isinstance(y, Tensor) else y


def _flat(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def fold(net: nn.Module, **options: Any) -> FoldResult:
    result = bnfold.fold(trained(net), "1x3x16x12", **options)
    assert result.passed
    return result


def assert_same_at_every_size(net: nn.Module, folded: nn.Module) -> None:
    """Outputs of about 1; rounding to float32 leaves some 1e-6, a mistake far more than 1e-4."""
    for n, h, w in SIZES:
        x = torch.randn(n, 3, h, w)
        with torch.no_grad():
            pairs = zip(_flat(net(x)), _flat(folded(x)), strict=True)
        for expected, got in pairs:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


PARTS: dict[str, Callable[[], nn.Module]] = {
    "activation": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), BatchNormAct2d(3)),
    "branches": Branches,
    "sizes": lambda: Part(
        lambda m, y: y.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).reshape(y.shape)
    ),
    "gate": lambda: Part(
        lambda m, y: (
            y[:, :3, :, :] * F.interpolate(torch.sigmoid(F.avg_pool2d(y, 2)), size=y.shape[-2:])
        )
    ),
    "same padding": lambda: Part(lambda m, y: F.pad(y, (0, max(-y.shape[3] % 4, 1)))),
    "nests": lambda: Part(lambda m, y: {"a": y, "b": [y.mean((2, 3)), (y.amax(), None)]}),
    "conv twice": lambda: Part(lambda m, y: m.conv(y)),
}


@pytest.mark.parametrize("name", PARTS)
def test_everything_folds_and_holds_at_every_size(name: str) -> None:
    net = Net(PARTS[name]())
    result = fold(net)
    assert result.plan.batchnorms.kept == 0
    assert type(result.model) is Net
    assert any(note.startswith("generated in place of") for note in result.notes)
    assert_same_at_every_size(net, result.model)
    assert not any(m.training for m in result.model.modules())
    file = io.BytesIO()
    torch.save(result.model, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert_same_at_every_size(net, loaded)
    assert_same_at_every_size(net, copy.deepcopy(result.model))
    kinds = {type(m).__module__.partition(".")[0] for m in result.model.part.modules()}
    assert kinds <= {"torch"} or name == "activation"
    wide = copy.deepcopy(result.model).double()
    assert all(t.dtype is torch.float64 for t in _flat(wide(torch.randn(1, 3, 8, 8).double())))


@pytest.mark.parametrize(
    ("then", "why"),
    [
        (lambda m, y: y * 2 if y.shape[2] < 8 else y, "branches on"),
        (lambda m, y: y * 2 if y.shape[2] % 2 else y, "branches on"),
        (lambda m, y: y + torch.arange(y.shape[3]), "operators"),
        (lambda m, y: y[:, :, :16, :12], "operators"),
    ],
    ids=["small", "odd", "device", "crop"],
)
def test_what_sizes_or_devices_decide_keeps_its_class(then: Any, why: str) -> None:
    net = Net(Part(then))
    result = fold(net)
    (site,) = [site for site in result.plan.sites if site.batchnorm]
    assert result.plan.batchnorms.kept == 1
    assert why in (site.why or "")
    assert type(result.model.part) is Part


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x)) / x.shape[2]
        return y


def test_a_scale_that_comes_from_a_size_is_not_folded() -> None:
    net = Net(Scaled())
    assert_same_at_every_size(trained(net), fold(net).model)


def test_a_value_that_was_a_constant_is_insisted_on() -> None:
    part = fold(Net(PARTS["nests"]())).model.part
    x = torch.randn(1, 3, 8, 8)
    part(x, False, mask=None)
    assert part.stride == 4
    with pytest.raises(AssertionError, match="flag is False"):
        part(x, flag=True)
    with pytest.raises(AssertionError, match="mask is None"):
        part(x, mask=x)


def test_branches_become_plain_layers_under_their_names() -> None:
    model = fold(Net(Branches())).model
    assert list(model.state_dict()) == [
        *("part.dense.0.weight", "part.dense.0.bias", "tail.weight", "tail.bias")
    ]
    torch.jit.script(model)


def test_classes_are_kept_on_request() -> None:
    result = fold(Net(Branches()), keep_classes=True)
    assert type(result.model.part) is Branches
    assert result.plan.batchnorms.kept == 1


def test_the_model_itself_is_generated_for_a_batchnorm_alone() -> None:
    assert isinstance(fold(Branches()).model, nn.Sequential)
    scaled = fold(Doubled())
    assert type(scaled.model) is Doubled
    assert scaled.plan.affines.kept == 1


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x)) * 2
        return y


def test_hooks_inside_keep_a_class() -> None:
    net = Net(Branches())
    net.part.act.register_forward_hook(lambda *seen: None)
    result = fold(net)
    assert type(result.model.part) is Branches
    assert result.plan.batchnorms.kept == 1


class Biased(nn.Module):
    """It runs with one size alone, for which it has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias = nn.Conv2d(3, 4, 1), nn.Parameter(torch.zeros(9, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.bias


def test_sizes_that_are_tried_in_vain_are_not_logged() -> None:
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        batches = calls_of_other_sizes(Biased(), (torch.randn(2, 3, 9, 7),), {})
        assert {call["conv"][0].leaves[0].shape[0] for call in batches} == {4}
    finally:
        logger.removeHandler(handler)
    assert not heard


class Shared(nn.Module):
    """Branches whose activation is the one object that all blocks have."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.stem, self.one, self.other = (Branches() for _ in range(3))
        for block in (self.stem, self.one, self.other):
            block.act = self.act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.other(self.one(self.stem(x))) * 2)


def test_a_shared_activation_does_not_keep_a_class() -> None:
    net = Shared()
    folded = fold(net).model
    assert not any(isinstance(module, Branches) for module in folded.modules())
    assert sum(isinstance(module, nn.Conv2d) for module in folded.modules()) == 3
    assert_same_at_every_size(net, folded)


class Through(nn.Module):
    """Calls a layer of a block past the block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Branches()

    def forward(self, x: Tensor) -> Tensor:
        inner: Any = list(self.block.children())[-1]
        return inner(self.block(x) - 1)  # type: ignore[no-any-return]


def test_a_layer_that_is_called_through_its_block_is_generated_with_what_calls_it() -> None:
    net = Through()
    folded = fold(net).model
    assert isinstance(folded, torch.fx.GraphModule)
    assert_same_at_every_size(net, folded)


def test_a_call_past_a_block_is_no_call_of_what_is_shared() -> None:
    x = torch.randn(1, 3, 6, 5)
    shared, through = Shared().eval(), Through().eval()
    assert not list(record(shared, (x,), {}).visitors(shared.one))
    assert list(record(through, (x,), {}).visitors(through.block)) == [through.block.act]


class Several(nn.Module):
    """Parts that ask for sizes, one of which computes with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (Part(then) for then in (_reshaped, _numbered, _reshaped))

    def forward(self, x: Tensor) -> Any:
        return self.c(self.b(self.a(x)))


def _reshaped(m: Any, y: Tensor) -> Tensor:
    return y.reshape(y.shape[0], 3, -1).reshape(y.shape)


def _numbered(m: Any, y: Tensor) -> Tensor:
    return y + torch.arange(y.shape[3])


def test_a_part_that_cannot_be_generated_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups: list[int] = []
    original = generating.program_of

    def counted(module: nn.Module, calls: Any, **options: Any) -> Any:
        groups.append(len(calls))
        return original(module, calls, **options)

    monkeypatch.setattr(generating, "program_of", counted)
    result = fold(Several(), keep_classes=False)
    assert result.plan.batchnorms.folded == 2
    assert groups[0] == 3
    assert sum(groups) < 3 + 3
