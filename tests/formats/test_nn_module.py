"""The module form: what it folds, that it is right, and that the caller's module stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import bnfold
from bnfold.algebra.plan import Outcome, Plan
from bnfold.algebra.refusal import Reason
from bnfold.algebra.rounding import make_rounded_plan
from bnfold.errors import ModelError, UsageError
from bnfold.formats.pytorch.nn_module import ModuleModel
from models import NETWORKS
from models.forms import load_trained
from tests.formats.examples import EXAMPLES, Example, conv, norm, pair
from tests.formats.networks import Basic, Function, K, excess, first, noise, trained


def fold(model: ModuleModel, sample: Any) -> tuple[Plan, ModuleModel]:
    plan, weights = make_rounded_plan(model.read(sample), model.locked(), model.veto)
    return plan, model.write(plan, weights)


def folded_sites(plan: Plan) -> tuple[str, ...]:
    return tuple(site.name for site in plan.sites if site.outcome is Outcome.FOLDED)


def reasons(module: nn.Module, shape: tuple[int, ...] = (2, 3, 9, 7)) -> dict[str, Reason | None]:
    model = ModuleModel(trained(module))
    model.keep_classes = True
    plan, _ = fold(model, {model.inputs[0].name: noise(*shape)})
    return {site.name: site.reason for site in plan.sites if site.outcome is Outcome.KEPT}


def state(module: nn.Module) -> tuple[Any, ...]:
    """All that must not change: tensors bit for bit, structure, modes, classes."""
    tensors = {name: t.detach().clone() for name, t in module.state_dict().items()}
    modes = {name: (type(m), m.training) for name, m in module.named_modules()}
    return tensors, modes


def assert_same_state(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert before[1] == after[1]
    assert before[0].keys() == after[0].keys()
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_each_network_folds_as_far_as_its_modules_allow(example: Example) -> None:
    module = example.make()
    before = state(module)
    model = ModuleModel(module)
    model.keep_classes = True
    sample = example.sample(model.inputs[0].name)
    outputs = first(model, sample)
    plan, folded = fold(model, sample)
    assert folded_sites(plan) == example.module
    assert excess(model, outputs, first(folded, sample), sample) <= K
    assert_same_state(before, state(module))
    again = first(ModuleModel(module), sample)
    for name, output in outputs.items():
        np.testing.assert_array_equal(again[name], output)


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_networks(name: str) -> None:
    model = ModuleModel(load_trained(name))
    sample = {model.inputs[0].name: noise(2, *NETWORKS[name].input_shape)}
    plan, folded = fold(model, sample)
    foldable = "batch_statistics" not in name
    assert plan.batchnorms.folded == (plan.batchnorms.found if foldable else 0)
    left = [m for m in folded.native.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    assert len(left) == plan.batchnorms.kept
    assert excess(model, first(model, sample), first(folded, sample), sample) <= K


def test_a_forgotten_shift_is_far_outside_of_what_rounding_does() -> None:
    model = ModuleModel(trained(pair(conv(), norm())))
    sample = {"input": noise(2, 3, 9, 7)}
    plan, weights = make_rounded_plan(model.read(sample), {}, model.veto)
    broken = {node: {**new, "bias": 0 * new["bias"]} for node, new in weights.items()}
    damaged = model.write(plan, broken)
    assert excess(model, first(model, sample), first(damaged, sample), sample) > 1000 * K


@pytest.mark.parametrize("form", ["module", "graph"])
def test_the_gate_sees_damage_and_the_result_is_withheld(
    form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnfold.verbs import folding

    def unscaled(*arguments: Any, **named: Any) -> Any:
        plan, weights = make_rounded_plan(*arguments, **named)
        return plan, {n: {**new, "weight": new["weight"] * 1.0001} for n, new in weights.items()}

    monkeypatch.setattr(folding, "make_rounded_plan", unscaled)
    result = bnfold.fold(trained(pair(conv(), norm())), "2x3x9x7", form=form)
    assert not result.passed
    with pytest.raises(folding.VerificationError, match="differs from its original"):
        _ = result.model


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        (lambda: pair(conv(), norm(track_running_stats=False)), {"1": Reason.BATCH_STATISTICS}),
        (
            lambda: Function(lambda m, x: m.b(m.c(m.c(x))), c=conv(3, 3), b=norm(3)),
            {"b": Reason.SHARED_MODULE},
        ),
        (lambda: pair(norm(3), conv(padding=1)), {"0": Reason.ZERO_PADDING}),
        (
            lambda: Function(lambda m, x: m.c(x) * 2, c=conv()),
            {"mul": Reason.NOT_A_PLAIN_MODULE},
        ),
    ],
    ids=["batch statistics", "conv called twice", "zero padding", "no module of its own"],
)
def test_the_reason_of_what_is_kept(build: Any, kept: dict[str, Reason]) -> None:
    assert reasons(build()) == kept


def test_a_module_in_train_mode_is_copied_into_eval_mode_and_that_is_said() -> None:
    module = nn.Sequential(conv(), norm(), nn.Dropout(0.5)).train()
    result = bnfold.fold(module, "2x3x9x7")
    assert result.passed
    assert any("train mode" in note for note in result.notes)
    assert module.training
    assert module[1].training
    assert not result.model.training


def test_a_baked_parametrization_is_said_and_stays_in_the_callers_module() -> None:
    module = trained(pair(parametrizations.weight_norm(conv()), norm()))
    model = ModuleModel(module)
    assert model.notes == ("the parametrization of 0.weight was made permanent",)
    assert nn.utils.parametrize.is_parametrized(module[0])
    assert module(torch.zeros(1, 3, 5, 5)).shape == (1, 6, 3, 3)
    assert not nn.utils.parametrize.is_parametrized(model.native[0])


def test_a_batchnorm_that_does_not_run_is_named() -> None:
    model = ModuleModel(trained(Function(lambda m, x: m.c(x), c=conv(), b=norm())))
    model.read({"x": noise(2, 3, 9, 7)})
    model.read({"x": noise(2, 3, 9, 7)})
    assert model.notes == ("the BatchNorm b does not run on this input; it is left as it is",)


def test_tied_convolutions_are_untied_only_in_the_result() -> None:
    example = next(e for e in EXAMPLES if e.name == "one Parameter in two convs")
    module = example.make()
    model = ModuleModel(module)
    _, folded = fold(model, example.sample("input"))
    assert module[0].weight is module[3].weight
    assert not torch.equal(folded.native[0].weight, folded.native[3].weight)
    assert torch.equal(folded.native[3].weight, module[3].weight)


def test_structure_class_and_frozen_parameters_stay() -> None:
    module = trained(Basic())
    module.conv1.weight.requires_grad_(False)
    model = ModuleModel(module)
    _, folded = fold(model, {"x": noise(2, 4, 9, 7)})
    assert type(folded.native) is Basic
    assert [name for name, _ in folded.native.named_modules()] == [
        name for name, _ in module.named_modules()
    ]
    assert isinstance(folded.native.bn1, nn.Identity)
    assert not folded.native.conv1.weight.requires_grad
    assert folded.native.conv2.weight.requires_grad


def test_the_folded_module_saves_and_loads_with_plain_torch(tmp_path: Path) -> None:
    model = ModuleModel(trained(pair(conv(), norm())))
    sample = {"input": noise(2, 3, 9, 7)}
    _, folded = fold(model, sample)
    folded.save(tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=False)
    with torch.no_grad():
        output = loaded(torch.from_numpy(sample["input"]))
    np.testing.assert_array_equal(output.numpy(), first(folded, sample)["output"])


class TestInputs:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b = conv(), norm()

        def forward(
            self, x: torch.Tensor, scale: torch.Tensor, mask: Any = None, *, shift: torch.Tensor
        ) -> dict[str, Any]:
            y = self.b(self.c(x)) * scale + shift
            return {"y": y if mask is None else y * mask, "pair": (y.mean(), [y.amax()])}

    needed = {"x": noise(2, 3, 9, 7), "scale": noise(1), "shift": noise(1, seed=2)}  # noqa: RUF012

    @pytest.mark.parametrize("form", ["module", "graph"])
    @pytest.mark.parametrize("extra", [{}, {"mask": noise(5)}], ids=["default", "mask"])
    def test_several_keyword_only_and_optional(self, form: Any, extra: Any) -> None:
        given = {**self.needed, **extra}
        result = bnfold.fold(trained(self.Several()), dict(reversed(given.items())), form=form)
        assert result.passed
        assert result.plan.batchnorms.folded == 1
        assert {row.place.output for row in result.verification.rows} == {
            "y",
            "pair.output.0",
            "pair.output.1.output.0",
        }

    def test_what_is_needed_is_asked_for(self) -> None:
        model = ModuleModel(self.Several())
        assert [spec.name for spec in model.inputs] == ["x", "scale", "shift"]

    def test_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(UsageError, match="no input 'mask2'"):
            bnfold.fold(self.Several(), {**self.needed, "mask2": noise(5)})

    @pytest.mark.parametrize("form", ["module", "graph"])
    def test_any_keyword(self, form: Any) -> None:
        result = bnfold.fold(trained(_AnyKeyword()), {"x": "2x3x9x7"}, form=form)
        assert result.passed
        assert result.plan.batchnorms.folded == 1

    def test_any_keyword_cannot_be_of_free_size_in_a_program(self) -> None:
        with pytest.raises(UsageError, match="cannot vary the sizes of 'x'"):
            bnfold.fold(trained(_AnyKeyword()), {"x": "Nx3x9x7"}, form="graph")

    def test_integers(self) -> None:
        module = trained(_Tokens())
        result = bnfold.fold(module, "Nx7:int64")
        assert result.passed
        assert folded_sites(result.plan) == ("b",)
        with pytest.raises(UsageError, match="Long, Int") as caught:
            bnfold.fold(module, "3x7")
        assert "int64" in caught.value.hint

    def test_free_sizes(self) -> None:
        result = bnfold.fold(trained(Basic()), "Nx4xHxW")
        assert result.passed
        assert {"batch 1", "odd sizes"} <= {row.place.case for row in result.verification.rows}

    def test_a_wrong_shape_names_the_line_and_one_that_runs(self) -> None:
        with pytest.raises(UsageError, match="input of 1x5x9x7") as caught:
            bnfold.fold(trained(Basic()), "1x5x9x7")
        assert "networks.py" in str(caught.value)
        assert caught.value.hint == "try --input 1x4x224x224"


class _AnyKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = conv(), norm()

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.b(self.c(inputs["x"]))


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.l, self.b = nn.Embedding(10, 5), nn.Linear(5, 6), nn.BatchNorm1d(6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.b(self.l(self.e(tokens)).mean(1))


def test_a_size_that_cannot_vary_is_refused_with_what_to_do() -> None:
    module = pair(conv(), nn.Sequential(nn.Flatten(), nn.Linear(6 * 30 * 30, 2)))
    with pytest.raises(ModelError) as caught:
        bnfold.fold(trained(module), "Nx3x32xW", form="graph")
    assert caught.value.hint == "give the size that cannot vary as a number"


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    module = pair(conv(), norm())
    module.generator = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be copied"):
        ModuleModel(module)


def test_copies_share_nothing_that_the_caller_could_see() -> None:
    module = trained(pair(conv(), norm()))
    model = ModuleModel(module)
    for mine, theirs in zip(model.native.parameters(), module.parameters(), strict=True):
        assert mine.data_ptr() != theirs.data_ptr()
    assert copy.deepcopy(module)[0].weight.data_ptr() != module[0].weight.data_ptr()
