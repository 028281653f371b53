"""TorchScript: what folds, what stays as it was, and that the numbers are those of the original."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnfold.algebra.graph import Opaque, Take
from bnfold.algebra.plan import Plan
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rounding import EPSILON, make_rounded_plan
from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.formats.torchscript.model import TorchScriptModel
from bnfold.formats.torchscript.reader import GraphReader
from bnfold.formats.torchscript.writer import GraphEditor
from bnfold.runtimes import Sample
from models import NETWORKS
from models.forms import load_trained
from tests.formats.networks import Basic, FrozenBatchNorm2d, noise, trained

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

IMAGE = (2, 3, 9, 7)
K = 8

Maker = Callable[[nn.Module, tuple[int, ...]], torch.jit.ScriptModule]


def scripted(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> torch.jit.ScriptModule:
    return torch.jit.script(module)


def traced(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> torch.jit.ScriptModule:
    return torch.jit.trace(module, torch.ones(2, *shape[1:]), check_trace=False)


both = pytest.mark.parametrize("make", [scripted, traced], ids=["scripted", "traced"])


@dataclass
class Folded:
    """A model, what was decided, and the model that came of it."""

    original: TorchScriptModel
    plan: Plan
    result: TorchScriptModel

    @property
    def outcomes(self) -> dict[str, str]:
        """Per site: "folded" or "merged", or the reason why it is kept."""
        return {site.name: str(site.reason or site.outcome) for site in self.plan.sites}

    def count(self, kind: str) -> int:
        return len(self.result.native.inlined_graph.findAllNodes(kind))


def fold(model: torch.jit.ScriptModule | TorchScriptModel, sample: Sample | None) -> Folded:
    """Fold, and compare with the original on the sample and on its negative."""
    original = model
    if not isinstance(original, TorchScriptModel):
        original = TorchScriptModel.from_module(original)
    plan, weights = make_rounded_plan(original.read(sample), original.locked(), original.veto)
    result = original.write(plan, weights)
    if sample is not None:
        compare(original, result, sample)
        compare(original, result, {k: -v if v.ndim else v for k, v in sample.items()})
    return Folded(original, plan, result)


def compare(original: TorchScriptModel, result: TorchScriptModel, sample: Sample) -> None:
    """The error against float64 is at most K times the original's own, or one ulp."""
    truth = original.truth()(sample)
    before, after = (model.runners()[0](sample) for model in (original, result))
    assert list(truth) == list(before) == list(after) != []
    for name, exact in truth.items():
        assert after[name].shape == exact.shape
        assert after[name].dtype == before[name].dtype
        scale = np.abs(exact).max()
        assert scale > 0, f"{name} is all zero and shows nothing"
        ulp = EPSILON.get(before[name].dtype.name, 0.0) * scale
        floor = max(float(np.abs(before[name].astype(np.float64) - exact).max()), ulp)
        error = float(np.abs(after[name].astype(np.float64) - exact).max())
        assert error <= K * floor, f"{name}: {error} is {error / floor:.1f} times the floor"


def image(name: str = "x", *, dtype: str = "float32") -> Sample:
    return {name: noise(*IMAGE, dtype=dtype)}


# --- the networks of this repository ---


@both
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_fold_and_survive_saving(name: str, make: Maker, tmp_path: Path) -> None:
    module, network = load_trained(name), NETWORKS[name]
    shape = (3, *network.input_shape)
    script = make(module, shape)
    found = TorchScriptModel.from_module(script).inputs[0].name
    folded = fold(script, {found: noise(*shape)})
    layers = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    kept = layers if name == "convolutional_batch_statistics" else 0
    assert folded.plan.batchnorms.found == layers
    assert folded.plan.batchnorms.kept == kept == folded.count("aten::batch_norm")
    folded.result.save(tmp_path / "folded.pt")
    tensor = torch.from_numpy(noise(*shape))
    loaded = torch.jit.load(tmp_path / "folded.pt")
    assert torch.equal(loaded(tensor), folded.result.native(tensor))


def test_a_folded_model_can_be_read_again_and_has_nothing_left_to_fold() -> None:
    folded = fold(scripted(trained(Basic())), {"x": noise(2, 4, 9, 7)})
    again = fold(folded.result, {"x": noise(2, 4, 9, 7)})
    assert folded.plan.batchnorms.folded == 3
    assert again.plan.sites == ()


def test_sites_and_layers_have_the_names_of_their_modules() -> None:
    folded = fold(scripted(trained(Basic())), {"x": noise(2, 4, 9, 7)})
    assert {site.name: site.into for site in folded.plan.sites} == {
        "bn1": ("conv1",),
        "bn2": ("conv2",),
        "down.1": ("down.0",),
    }


class Alike(nn.Module):
    """BatchNorms with equal means and betas, which freezing makes one constant."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in "ab"
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [row(x) for row in self.rows]


@both
def test_equal_parameters_leave_layers_their_own_names(make: Maker) -> None:
    module = trained(Alike())
    for _, bn in module.rows:
        nn.init.zeros_(bn.bias)
        nn.init.zeros_(bn.running_mean)
    folded = fold(make(module), image())
    assert {site.name: site.into for site in folded.plan.sites} == {
        f"rows.{i}.1": (f"rows.{i}.0",) for i in range(2)
    }


# --- control flow ---


class Branching(nn.Module):
    """`if` on the data and a loop whose number of turns is an argument; both have layers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.left, self.left_bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.right, self.right_bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, turns: int) -> Tensor:
        for _ in range(turns):
            x = torch.tanh(self.bn(self.conv(x)))
        if bool(x.mean() > 0):
            return self.left_bn(self.left(x))
        return F.relu(self.right_bn(self.right(x)))


@pytest.mark.parametrize("mean", [-5.0, 5.0], ids=["read on the left", "read on the right"])
def test_control_flow_stays_and_both_branches_fold(mean: float) -> None:
    sample = {"x": noise(*IMAGE) + np.float32(mean), "turns": np.array(2)}
    folded = fold(scripted(trained(Branching())), sample)
    assert folded.outcomes == dict.fromkeys(["bn", "left_bn", "right_bn"], "folded")
    assert folded.count("prim::If") == folded.count("prim::Loop") == 1
    means = set()
    for shift in (-5, -1, 1, 5):
        for turns in (0, 1, 3):
            other = {"x": noise(*IMAGE, seed=shift + 9) + np.float32(shift), "turns": turns}
            other["turns"] = np.array(turns)
            compare(folded.original, folded.result, other)
            means.add(bool(other["x"].mean() > 0))
    assert means == {True, False}


class ReadInBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if bool(x.sum() > 0):
            return self.bn(y)
        return y


def test_a_convolution_that_the_other_branch_reads_is_left_alone() -> None:
    folded = fold(scripted(trained(ReadInBranch())), image())
    assert folded.outcomes == {"bn": Reason.OTHER_READERS}
    assert folded.count("aten::batch_norm") == 1


# --- who reads what ---


class Shared(nn.Module):
    """One convolution called twice, each call with a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(torch.tanh(self.bn1(self.conv(x)))))


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.tanh(self.bn1(y)) * torch.sigmoid(self.bn2(y))


class Twins(nn.Module):
    """Two branches with equal parameters, of which freezing keeps one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) * torch.relu(self.conv2(self.scaled(x)))

    def scaled(self, x: Tensor) -> Tensor:
        return x * 0.5


@both
def test_a_convolution_called_twice_gets_two_weights(make: Maker) -> None:
    script = make(trained(Shared()), IMAGE)
    folded = fold(script, image())
    assert set(folded.outcomes.values()) == {"folded"}
    weights = [
        node.inputsAt(1).toIValue()
        for node in folded.result.native.inlined_graph.nodes()
        if "conv" in node.kind()
    ]
    assert len(weights) == 2
    assert not torch.equal(*weights)


@both
def test_a_convolution_that_two_batchnorms_read_is_left_alone(make: Maker) -> None:
    folded = fold(make(trained(ReadTwice()), IMAGE), image())
    assert folded.outcomes == dict.fromkeys(["bn1", "bn2"], Reason.OTHER_READERS)


def test_equal_constants_of_two_layers_are_told_apart() -> None:
    twins = trained(Twins())
    twins.conv2.load_state_dict(twins.conv1.state_dict())
    twins.bn2.load_state_dict(twins.bn1.state_dict())
    folded = fold(scripted(twins), image())
    assert set(folded.outcomes.values()) == {"folded"}
    assert folded.plan.affines.folded == 2


@both
def test_residual_blocks_with_in_place_operators_fold(make: Maker) -> None:
    folded = fold(make(trained(Basic()), (2, 4, 9, 7)), {"x": noise(1, 4, 9, 7)})
    assert set(folded.outcomes.values()) == {"folded"}
    assert folded.count("aten::batch_norm") == 0
    assert folded.count("aten::clone") == 0


# --- in-place operators whose old value is read again ---


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.after, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)


class OldNameRead(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.relu_()
        return torch.tanh(self.bn(y)) + self.after(y)


class ViewWritten(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        y.view(y.size(0), -1).add_(1.0)
        return self.bn2(self.after(y))


class SliceWritten(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, 1:] = 0.5
        return self.bn(y)


class ReadThroughView(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        seen = y.permute(0, 1, 3, 2)
        y.sigmoid_()
        return self.bn(seen)


class HalfThenWritten(InPlace):
    """The product would vanish into the convolution; the write must not reach x then."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x * 0.5, inplace=True)
        return self.after(y) + torch.tanh(self.conv(x))


class SourceWritten(InPlace):
    """The product would vanish into the convolution, which then would read what x became."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        y = x * 0.5
        z = x.add_(1.0)
        return self.bn(self.conv(y)) + z


class WrittenInLoop(InPlace):
    """Every turn writes into what was made before the loop, and reads it first."""

    def forward(self, x: Tensor, turns: int) -> Tensor:
        y = self.conv(x)
        total = self.after(x)
        for _ in range(turns):
            total = total + torch.tanh(self.bn(y))
            y.add_(0.25)
        return total


class FreshInLoop(InPlace):
    """The product vanishes into the convolution; what the loop writes to must be fresh memory."""

    def forward(self, x: Tensor, turns: int) -> Tensor:
        y = torch.tanh(x)
        total = self.conv(x)
        for _ in range(turns):
            total = total + self.after(F.leaky_relu(y * 0.5, 0.1, inplace=True).add_(1.0))
        return self.bn(total)


class WrittenBetweenTurnsOfLoop(InPlace):
    """The sum of the two convolutions reads one name, but not one value: they must not merge."""

    def forward(self, x: Tensor, turns: int) -> Tensor:
        y = torch.tanh(x)
        first = self.conv(y)
        total = x
        for _ in range(turns):
            total = torch.sigmoid(total) + torch.tanh(first + self.after(y))
            y.add_(0.25)
        return total


class WrittenUnderAnotherNameInLoop(InPlace):
    def forward(self, x: Tensor, turns: int) -> Tensor:
        y = torch.tanh(x)
        first = self.conv(y)
        z = y
        for _ in range(turns):
            z = z.add_(0.25)
        return torch.tanh(first + self.after(y)) + z


class Statement(InPlace):
    """Writes whose result has no name of its own: whoever reads the old name reads the result."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.mul_(2.0)
        if bool(x.sum() > 0):
            y.add_(1.0)
        return self.bn(y)


class InputWritten(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.mul_(2.0)))


IN_PLACE: dict[type[InPlace], dict[str, str]] = {
    OldNameRead: {"bn": "other-readers"},
    ViewWritten: {"bn": "folded", "bn2": "folded"},
    SliceWritten: {"bn": "graph-output"},
    ReadThroughView: {"bn": "graph-output"},
    HalfThenWritten: {"mul": "folded"},
    SourceWritten: {"mul": "folded", "bn": "folded", "add": "folded"},
    WrittenInLoop: {"bn": "other-readers"},
    FreshInLoop: {"mul": "folded", "add": "folded", "bn": "graph-output"},
    WrittenBetweenTurnsOfLoop: {},
    WrittenUnderAnotherNameInLoop: {},
    Statement: {"mul": "folded", "bn": "graph-output"},
    InputWritten: {"bn": "folded"},
}


@pytest.mark.parametrize("network", IN_PLACE, ids=lambda network: network.__name__)
def test_writes_in_place_are_respected(network: type[InPlace]) -> None:
    torch.manual_seed(1)
    sample = image() | ({"turns": np.array(3)} if "Loop" in network.__name__ else {})
    folded = fold(scripted(trained(network())), sample)
    found = {name.split("_")[0]: fate for name, fate in folded.outcomes.items()}
    assert found == IN_PLACE[network]


def test_the_caller_still_sees_what_the_model_writes_into_its_input() -> None:
    folded = fold(scripted(trained(InputWritten())), image())
    given = torch.ones(IMAGE)
    folded.result.native(given)
    assert torch.equal(given, torch.full(IMAGE, 2.0))


# --- train mode and the options of BatchNorm ---


class Plain(nn.Module):
    def __init__(self, dropout: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options)
        self.drop, self.last, self.bn2 = nn.Dropout(dropout), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.last(self.drop(torch.relu(self.bn(self.conv(x))))))


def test_a_trace_made_in_train_mode_keeps_its_batchnorms_and_says_why() -> None:
    model = TorchScriptModel.from_module(traced(trained(Plain()).train()))
    before = {name: t.clone() for name, t in model.native.state_dict().items()}
    folded = fold(model, image())
    assert folded.outcomes == dict.fromkeys(["bn", "bn2"], Reason.BATCH_STATISTICS)
    trace = "the trace was recorded in train mode; export again after model.eval()"
    assert model.notes[:3] == (
        "was in train mode; put into eval mode",
        f"a BatchNorm uses the statistics of the batch: {trace}",
        f"dropout is active: {trace}",
    )
    after = model.native.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_nothing_folds_through_a_dropout_that_is_active() -> None:
    module = trained(Plain(0.5))
    module.drop.train()
    model = TorchScriptModel.from_module(traced(module))
    (dropout,) = (node for node in model.read(image()).nodes if node.kind == "dropout")
    assert isinstance(dropout.op, Opaque)
    assert any("dropout is active" in note for note in model.notes)


def test_a_script_in_train_mode_is_put_into_eval_mode() -> None:
    module = trained(Plain(0.5))
    expected = module(torch.from_numpy(noise(*IMAGE)))
    script = scripted(module.train())
    folded = fold(script, image())
    assert folded.original.notes[0] == "was in train mode; put into eval mode"
    assert folded.plan.batchnorms.folded == 2
    got = folded.result.native(torch.from_numpy(noise(*IMAGE)))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert script.training
    assert script.bn.training


@both
def test_batchnorm_without_parameters_folds(make: Maker) -> None:
    folded = fold(make(trained(Plain(affine=False)), IMAGE), image())
    assert folded.outcomes == dict.fromkeys(["bn", "bn2"], "folded")


@both
def test_batchnorm_without_statistics_is_kept(make: Maker) -> None:
    folded = fold(make(trained(Plain(track_running_stats=False)), IMAGE), image())
    assert folded.outcomes == {"bn": Reason.BATCH_STATISTICS, "bn2": "folded"}
    assert not any("statistics" in note for note in folded.original.notes)


class Features(nn.Module):
    def __init__(self, size: int = 5) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(6, size), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x))


@both
def test_batchnorm1d_after_linear_folds_on_two_axes_only(make: Maker) -> None:
    flat = fold(make(trained(Features()), (4, 6)), {"x": noise(4, 6)})
    assert flat.outcomes == {"bn": "folded"}
    square = fold(make(trained(Features()), (4, 5, 6)), {"x": noise(4, 5, 6)})
    assert square.outcomes == {"bn": Reason.WRONG_AXIS}


# --- what affines that stay become ---


class Kept(nn.Module):
    def __init__(self, run: int) -> None:
        super().__init__()
        self.run = run
        self.bn = nn.BatchNorm2d(3)
        self.register_buffer("by", torch.tensor([0.5, -2.0, 3.0]).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.run == 0:
            return torch.tanh(self.bn(x) * self.by - 1.0)
        if self.run == 1:
            return torch.tanh(x * self.by / (2 * self.by))
        if self.run == 2:
            return torch.tanh((x - self.by).add_(self.by * 3, alpha=2))
        return torch.tanh(self.by + x / 4.0 * self.by)


KEPT = {0: ("bn", 2), 1: ("mul", 1), 2: ("sub", 1), 3: ("div", 1)}


@both
@pytest.mark.parametrize("run", KEPT)
def test_an_affine_that_stays_gets_the_numbers_of_the_others(run: int, make: Maker) -> None:
    folded = fold(make(trained(Kept(run)), IMAGE), image())
    stays, count = KEPT[run]
    fates = folded.outcomes
    assert sum(fate == "folded" for fate in fates.values()) == count
    into = {name.split("_")[0] for site in folded.plan.sites for name in site.into}
    assert into == {stays}


@both
def test_batchnorms_made_of_arithmetic_fold(make: Maker) -> None:
    frozen = trained(nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU()))
    folded = fold(make(frozen, IMAGE), {name_of(make(frozen, IMAGE)): noise(*IMAGE)})
    assert set(folded.outcomes.values()) == {"folded"}
    assert folded.plan.affines.folded == 2


def name_of(script: torch.jit.ScriptModule) -> str:
    return TorchScriptModel.from_module(script).inputs[0].name


# --- inputs, outputs, types ---


class Several(nn.Module):
    """Two tensors and a number go in; a nest of containers comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.b, self.b_bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.c, self.d, self.joined = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 4, 1), nn.BatchNorm2d(8)

    def forward(
        self, x: Tensor, y: Tensor, turns: int, scale: float = 1.0
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        a, b = torch.relu(self.a_bn(self.a(x))), self.b_bn(self.b(y))
        for _ in range(turns):
            b = b * scale
        both = self.joined(torch.cat([self.c(x), self.d(y)], dim=1))
        return a, {"more": [b, both], "again": [a]}

    @torch.jit.export
    def features(self, x: Tensor) -> Tensor:
        return self.a_bn(self.a(x))


def test_several_inputs_containers_of_outputs_and_other_methods(tmp_path: Path) -> None:
    module = trained(Several())
    folded = fold(
        scripted(module), {"x": noise(*IMAGE), "y": noise(2, 2, 9, 7), "turns": np.array(1)}
    )
    assert [str(spec) for spec in folded.original.inputs] == [
        "x=?:float32",
        "y=?:float32",
        "turns=:int64",
    ]
    assert folded.outcomes == dict.fromkeys(["a_bn", "b_bn", "joined"], "folded")
    x = torch.from_numpy(noise(*IMAGE))
    folded.result.save(tmp_path / "folded.pt")
    again = torch.jit.load(tmp_path / "folded.pt")
    assert torch.equal(again.features(x), module.features(x))


class Windows(nn.Module):
    """A shifted window of two axes, and streams that are stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.conv2 = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(torch.roll(self.conv(x), [1, 2], [2, 3]))
        return self.bn2(torch.stack([y, self.conv2(x)], 2))  # type: ignore[no-any-return]


@both
def test_shifts_of_several_axes_and_stacks_are_read(make: Maker) -> None:
    folded = fold(make(trained(Windows()), IMAGE), image())
    assert folded.outcomes == {"bn": "folded", "bn2": "folded"}


class TakesList(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0] + xs[1]


def test_a_missing_input_is_named() -> None:
    model = TorchScriptModel.from_module(scripted(trained(Several())))
    with pytest.raises(UsageError, match="no value for the input 'turns'"):
        model.read({"x": noise(*IMAGE), "y": noise(2, 2, 9, 7)})


def test_inputs_that_no_sample_can_give_are_refused() -> None:
    model = TorchScriptModel.from_module(scripted(TakesList()))
    with pytest.raises(UsageError, match=r"forward takes 'xs', a List\[Tensor\], which no sample"):
        _ = model.inputs


@both
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(dtype: str, make: Maker) -> None:
    module = trained(Plain()).to(getattr(torch, dtype))
    trace = torch.jit.trace(module, torch.ones(IMAGE, dtype=getattr(torch, dtype)))
    script = trace if make is traced else scripted(module)
    folded = fold(script, image(dtype=dtype))
    assert folded.plan.batchnorms.folded == 2
    assert [spec.dtype for spec in folded.original.inputs] == [dtype]
    assert [spec.dtype for spec in folded.result.inputs] == [dtype]


# --- shapes: with a run, without one, with a batch of one ---


def test_without_an_input_what_is_certain_folds_and_the_rest_says_what_is_missing() -> None:
    folded = fold(scripted(trained(Plain())), None)
    assert folded.plan.batchnorms.folded == 2
    compare(folded.original, folded.result, image())
    features = fold(scripted(trained(Features())), None)
    assert features.outcomes == {"bn": Reason.UNKNOWN_SHAPE}


class Crowd(nn.Module):
    """Multiplies by one number per element of the batch, and by one per feature."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.register_buffer("by", torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) * self.by)


@both
def test_a_batch_of_one_is_read_with_two_where_the_model_takes_two(make: Maker) -> None:
    model = TorchScriptModel.from_module(make(trained(Crowd()), (2, 6)))
    graph = model.read({"x": noise(1, 6)})
    (linear,) = (node for node in graph.nodes if node.name == "linear")
    assert graph.shapes[linear.outputs[0]] == (2, 5)
    assert set(fold(model, {"x": noise(1, 6)}).outcomes.values()) == {"folded"}


class OnlyOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x).view(1, 5) * 2.0)


def test_a_model_that_takes_only_a_batch_of_one_is_read_with_one() -> None:
    folded = fold(scripted(trained(OnlyOne())), {"x": noise(1, 6)})
    assert set(folded.outcomes.values()) == {"folded"}


@both
def test_an_input_shape_is_suggested_from_the_first_layer(make: Maker) -> None:
    network = load_trained("cnn_with_batchnorm")
    assert TorchScriptModel.from_module(make(network, (2, 3, 32, 32))).suggest() == (1, 3, 32, 32)
    linear = TorchScriptModel.from_module(make(trained(Features()), (4, 6)))
    assert linear.suggest() == (1, 6)


def test_an_input_that_does_not_fit_is_explained() -> None:
    model = TorchScriptModel.from_module(scripted(load_trained("cnn_with_batchnorm")))
    with pytest.raises(UsageError) as error:
        model.read({"x": noise(1, 5, 32, 32)})
    assert "does not run on an input of 1x5x32x32: Given groups=1" in str(error.value)
    assert error.value.hint == "try --input 1x3x32x32"


# --- files, and what is not changed ---


def test_extra_files_survive(tmp_path: Path) -> None:
    extra = {"labels.txt": "cat\ndog", "nested/raw.bin": bytes(range(256))}
    torch.jit.save(scripted(trained(Plain())), tmp_path / "model.pt", _extra_files=extra)
    folded = fold(TorchScriptModel.load(tmp_path / "model.pt"), image())
    folded.result.save(tmp_path / "folded.pt")
    found: dict[str, Any] = dict.fromkeys(extra, "")
    torch.jit.load(tmp_path / "folded.pt", _extra_files=found)
    assert found == {"labels.txt": b"cat\ndog", "nested/raw.bin": bytes(range(256))}


def test_the_same_model_gives_the_same_bytes_under_any_name(tmp_path: Path) -> None:
    torch.jit.save(scripted(trained(Plain())), tmp_path / "model.pt")
    for name in ("one.pt", "other.tmp"):
        model = TorchScriptModel.load(tmp_path / "model.pt")
        fold(model, image()).result.save(tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "other.tmp").read_bytes()


@both
def test_the_original_is_left_alone(make: Maker) -> None:
    script = make(trained(Plain()), IMAGE)
    script.train()
    x = torch.from_numpy(noise(*IMAGE))
    code, state = script.code, {name: t.clone() for name, t in script.state_dict().items()}
    folded = fold(script, image())
    assert script.training
    assert script.code == code
    assert state.keys() == script.state_dict().keys()
    assert all(torch.equal(tensor, script.state_dict()[name]) for name, tensor in state.items())
    assert torch.equal(folded.original.native(x), script.eval()(x))


def test_files_that_are_no_torchscript_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(scripted(trained(Plain())), buffer)
    broken = tmp_path / "broken.pt"
    for content in (b"", b"nonsense", buffer.getvalue()[:-200]):
        broken.write_bytes(content)
        with pytest.raises(ModelError, match=r"broken\.pt looks like TorchScript but cannot be"):
            TorchScriptModel.load(broken)


class Small(nn.Module):
    def __init__(self, way: int = 0) -> None:
        super().__init__()
        self.c, self.b, self.way = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), way


class Positive(Small):
    """Returns early, or raises: each leaves values that were never made."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.c(x))
        if bool(x[0, 0, 0, 0] > 0):
            return y.relu()
        if bool(x[0, 0, 0, 0] < -1e6):
            raise ValueError("far too small")
        return self.c(y - 1)


def test_a_model_that_returns_early_or_raises() -> None:
    script = scripted(trained(Positive()))
    assert fold(script, image()).plan.batchnorms.found == 1
    with pytest.raises(UsageError, match="far too small"):
        fold(script, {"x": np.full(IMAGE, -1e7, np.float32)})


class Divided(Small):
    def forward(self, x: Tensor) -> Tensor:
        parts = self.b(self.c(x)).split([1, 2], 1)
        if self.way == 0:
            first, second = parts
            return self.c(torch.cat([second, first], 1))
        if self.way == 1:
            y = torch.cat(parts, 1)
            first, second = parts
            return self.c(torch.cat([second, first], 1)) + y
        return self.c(torch.cat(parts, 1))


@pytest.mark.parametrize("way", [0, 1, 2])
def test_a_list_that_is_taken_apart_at_once_is_a_division(way: int) -> None:
    folded = fold(scripted(trained(Divided(way))), image())
    divided = [n.kind for n in folded.plan.before.nodes if isinstance(n.op, Take)]
    assert divided == (["split"] if way == 0 else [])


class WrittenBeforeTakenApart(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        parts = y.split([1, 2], 1)
        y.relu_()
        first, second = parts
        return self.c(self.b(torch.cat([second, first], 1)))


def test_a_list_that_is_overwritten_before_it_is_taken_apart_is_left_alone() -> None:
    folded = fold(scripted(trained(WrittenBeforeTakenApart())), image())
    assert not any(isinstance(node.op, Take) for node in folded.plan.before.nodes)


class Collected(Small):
    """Lists of tensors are added, and indexed: the operators of tensors have the same names."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = [self.b(self.c(x))], [x]
        both = first + second
        return both[0] + self.c(both[1])


def test_operators_of_lists_are_not_those_of_tensors() -> None:
    folded = fold(scripted(trained(Collected())), image())
    assert folded.plan.batchnorms.found == 1


class OnlyMethod(nn.Module):
    @torch.jit.export
    def other(self, x: Tensor) -> Tensor:
        return x + 1


def test_a_module_without_forward_is_refused() -> None:
    with pytest.raises(ModelError, match="no method called forward"):
        TorchScriptModel.from_module(scripted(OnlyMethod()))


def test_a_plan_for_another_graph_is_refused() -> None:
    one = TorchScriptModel.from_module(scripted(trained(Plain())))
    plan, weights = make_rounded_plan(one.read(image()), {})
    reader = GraphReader(scripted(nn.ReLU()).graph, {})
    reader.read()
    with pytest.raises(BnfoldError, match="conv is not where it was read"):
        GraphEditor(scripted(nn.ReLU()).graph, reader).carry_out(plan, weights)
