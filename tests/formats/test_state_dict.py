"""Weights without a network: where they lie in a file, and the network that they are put into."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import bnfold
from bnfold import Opening
from bnfold.errors import ModelError, UsageError
from bnfold.formats.model import Model
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch.state_dict import SafetensorsModel, StateDictModel
from tests.formats import factories
from tests.formats.networks import first, noise, trained

HERE = "tests.formats.factories"
SAMPLE = noise(2, 3, 9, 7)


def opened(
    path: Path, factory: str = "Net", arguments: Any = None, weights: str | None = None
) -> Model:
    opening = Opening(factory=f"{HERE}:{factory}", factory_args=arguments, weights=weights)
    return open_model(path, opening)


def output(model: Model) -> Any:
    return first(model, {model.inputs[0].name: SAMPLE})["output"]


def expected(module: nn.Module) -> Any:
    with torch.no_grad():
        return module.eval()(torch.from_numpy(SAMPLE)).numpy()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
        lambda state: {"epoch": torch.tensor(3), "model_state_dict": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": t for name, t in state.items()},
        lambda state: {f"_orig_mod.module.{name}": t for name, t in state.items()},
        lambda state: {"state_dict": {f"model.{name}": t for name, t in state.items()}},
    ],
    ids=[
        "bare",
        "state_dict",
        "beside a tensor",
        "twice",
        "module.",
        "_orig_mod.module.",
        "model.",
    ],
)
def test_weights_are_found(wrap: Any, tmp_path: Path) -> None:
    module = trained(factories.Net())
    torch.save(wrap(module.state_dict()), tmp_path / "w.pt")
    model = opened(tmp_path / "w.pt")
    assert isinstance(model, StateDictModel)
    np.testing.assert_array_equal(output(model), expected(module))


@pytest.mark.parametrize("arguments", [[8], {"channels": 8}])
def test_arguments_of_the_factory(arguments: Any, tmp_path: Path) -> None:
    module = trained(factories.Net(8))
    torch.save(module.state_dict(), tmp_path / "w.pt")
    np.testing.assert_array_equal(
        output(opened(tmp_path / "w.pt", arguments=arguments)), expected(module)
    )


class TestWhatDoesNotFit:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        torch.save(factories.Net().state_dict(), tmp_path / "w.pt")
        return tmp_path / "w.pt"

    def test_without_a_factory(self, path: Path) -> None:
        with pytest.raises(UsageError, match="holds weights only") as caught:
            open_model(path)
        assert "--model pkg.mod:factory" in str(caught.value.hint)

    def test_keys_are_listed(self, tmp_path: Path) -> None:
        state = factories.Net().state_dict()
        state["extra.weight"] = state.pop("conv.weight")
        state["head.1.bias"] = torch.zeros(5)
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(ModelError) as caught:
            opened(tmp_path / "w.pt")
        for part in (
            "missing in the file: conv.weight",
            "unknown to the network: extra.weight",
            "of another shape: head.1.bias [5] instead of [4]",
        ):
            assert part in str(caught.value)

    def test_no_weights_at_all(self, tmp_path: Path) -> None:
        torch.save({"epoch": 3, "args": {"lr": 0.1}}, tmp_path / "w.pt")
        with pytest.raises(ModelError, match="holds no weights: its keys are epoch, args"):
            opened(tmp_path / "w.pt")

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            ("nothing", "has no nothing"),
            ("number", "cannot be called"),
            ("broken", "cannot be called: no weights here"),
            ("not_a_module", "gives a int, not an nn.Module"),
        ],
    )
    def test_factories(self, factory: str, message: str, path: Path) -> None:
        with pytest.raises(UsageError, match=message):
            opened(path, factory)

    @pytest.mark.parametrize("arguments", [[1, 2, 3], {"width": 3}])
    def test_wrong_arguments(self, arguments: Any, path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be called") as caught:
            opened(path, arguments=arguments)
        assert "--model-args" in str(caught.value.hint)

    @pytest.mark.parametrize("address", ["nomodule.here:make", "plain", "a:", ":b"])
    def test_addresses(self, address: str, path: Path) -> None:
        with pytest.raises(UsageError):
            open_model(path, Opening(factory=address))


def test_half_weights_make_a_half_network(tmp_path: Path) -> None:
    module = trained(factories.Net()).half()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    model = opened(tmp_path / "w.pt")
    assert {p.dtype for p in model.native.parameters()} == {torch.float16}


@pytest.mark.parametrize("kind", [StateDictModel, SafetensorsModel])
@pytest.mark.parametrize("factory", ["Net", "tied", "normed", "two_norms"])
def test_a_compact_file_opens_again_with_the_same_factory(
    factory: str, kind: type[StateDictModel], tmp_path: Path
) -> None:
    module = trained(getattr(factories, factory)())
    before = open_model(kind(module))
    result = bnfold.fold(before, "2x3x9x7", compact=True)
    assert result.passed
    assert result.plan.batchnorms.folded == 1
    path = tmp_path / "folded"
    result.save(path)
    again = opened(path, factory)
    assert type(again) is kind
    np.testing.assert_array_equal(output(again), output(result.folded))
    twice = bnfold.fold(again, "2x3x9x7")
    twice.save(path)
    np.testing.assert_array_equal(output(opened(path, factory)), output(twice.folded))
    kept = 1 if factory == "two_norms" else 0
    assert twice.plan.batchnorms.found == kept


@pytest.mark.parametrize("compact", [False, True])
def test_plain_torch_reads_a_folded_file(compact: bool, tmp_path: Path) -> None:
    module = trained(factories.Net())
    result = bnfold.fold(StateDictModel(module), "2x3x9x7", compact=compact)
    result.save(tmp_path / "w.pt")
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    ends = ["head.1.weight", "head.1.bias"]
    made = ["conv.weight", "conv.bias", *ends, "bn.weight"] if compact else module.state_dict()
    assert list(state) == list(made)


def test_a_compact_file_with_another_factory_is_refused(tmp_path: Path) -> None:
    result = bnfold.fold(StateDictModel(trained(factories.Net())), "2x3x9x7", compact=True)
    result.save(tmp_path / "w.pt")
    with pytest.raises(ModelError, match="another network"):
        opened(tmp_path / "w.pt", "tied")


def test_safetensors_of_a_plain_writer(tmp_path: Path) -> None:
    module = trained(factories.Net())
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    np.testing.assert_array_equal(output(opened(tmp_path / "w.safetensors")), expected(module))


def test_safetensors_that_leave_out_tied_names(tmp_path: Path) -> None:
    module = trained(factories.tied())
    state = module.state_dict()
    del state["3.weight"]
    save_file(state, tmp_path / "w.safetensors")
    model = opened(tmp_path / "w.safetensors", "tied")
    np.testing.assert_array_equal(output(model), expected(module))


class TestSurroundings:
    """What a checkpoint holds beside the weights stays in its folded file."""

    @pytest.fixture
    def module(self) -> nn.Module:
        return trained(factories.Net())

    def folded(self, checkpoint: Any, folder: Path) -> Any:
        torch.save(checkpoint, folder / "w.pt")
        result = bnfold.fold(opened(folder / "w.pt"), "2x3x9x7")
        result.save(folder / "folded.pt")
        np.testing.assert_array_equal(output(opened(folder / "folded.pt")), output(result.folded))
        assert bnfold.fold(opened(folder / "folded.pt"), "2x3x9x7").plan.batchnorms.found == 0
        return torch.load(folder / "folded.pt", weights_only=True)

    def test_other_entries_are_kept(self, module: nn.Module, tmp_path: Path) -> None:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9).state_dict()
        beside = {"epoch": 3, "optimizer": optimizer, "best": torch.tensor(0.7)}
        saved = self.folded({**beside, "state_dict": module.state_dict()}, tmp_path)
        assert list(saved) == [*beside, "state_dict"]
        assert {key: saved[key] for key in beside} == beside
        assert saved["state_dict"].keys() == module.state_dict().keys()

    def test_entries_among_the_weights_are_kept(self, module: nn.Module, tmp_path: Path) -> None:
        saved = self.folded({**module.state_dict(), "epoch": 3}, tmp_path)
        assert saved["epoch"] == 3

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod."])
    def test_names_keep_their_prefix(self, prefix: str, module: nn.Module, tmp_path: Path) -> None:
        state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
        saved = self.folded({"model": {"state_dict": state}}, tmp_path)
        assert set(saved["model"]["state_dict"]) == {*state}

    @pytest.mark.parametrize("other", ["ema", "model_ema", "params_ema", "teacher"])
    def test_the_weights_taken_are_named(
        self, other: str, module: nn.Module, tmp_path: Path
    ) -> None:
        second = trained(factories.Net(), seed=5)
        torch.save({other: second.state_dict(), "model": module.state_dict()}, tmp_path / "w.pt")
        model = opened(tmp_path / "w.pt")
        np.testing.assert_array_equal(output(model), expected(second))
        (note,) = model.notes
        assert f"{other!r} were taken, as its library does" in note
        assert "--weights takes those under 'model'" in note

    @pytest.mark.parametrize("key", ["ema", "other", "nest.ema", "dotted.key", "nest"])
    def test_other_weights_are_taken_by_their_key(
        self, key: str, module: nn.Module, tmp_path: Path
    ) -> None:
        second = trained(factories.Net(), seed=5)
        weights = second.state_dict()
        nest = {"ema": weights}
        checkpoint = {"ema": weights, "other": nest, "nest": nest, "dotted.key": weights}
        torch.save({"epoch": 3, "model": module.state_dict(), **checkpoint}, tmp_path / "w.pt")
        model = opened(tmp_path / "w.pt", weights=key)
        np.testing.assert_array_equal(output(model), expected(second))
        assert any("'model'" in note for note in model.notes)
        bnfold.fold(model, "2x3x9x7").save(tmp_path / "f.pt")
        found = torch.load(tmp_path / "f.pt", weights_only=True)
        assert found["model"].keys() == module.state_dict().keys()

    @pytest.mark.parametrize(
        ("key", "said", "hint"),
        [
            ("tea", "has no weights under 'tea'", "--weights model or --weights ema"),
            (
                "epoch",
                "has no weights under 'epoch'",
                "--weights model or --weights ema",
            ),
            (
                "model.x",
                "has no weights under 'model.x'",
                "--weights model or --weights ema",
            ),
            ("log", "no weights under 'log': its keys are a", "--weights model or"),
        ],
    )
    def test_a_key_without_weights(
        self, key: str, said: str, hint: str, module: nn.Module, tmp_path: Path
    ) -> None:
        state = module.state_dict()
        checkpoint = {"model": state, "ema": dict(state), "epoch": 3, "log": {"a": 1}}
        torch.save(checkpoint, tmp_path / "w.pt")
        with pytest.raises((ModelError, UsageError), match=said) as caught:
            opened(tmp_path / "w.pt", weights=key)
        assert hint in str(caught.value.hint)

    def test_one_set_of_weights_needs_no_note(self, module: nn.Module, tmp_path: Path) -> None:
        torch.save({"model": {"state_dict": module.state_dict()}}, tmp_path / "w.pt")
        assert opened(tmp_path / "w.pt").notes == ()

    def test_metadata_of_safetensors(self, module: nn.Module, tmp_path: Path) -> None:
        state = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
        save_file(state, tmp_path / "w", metadata={"format": "pt", "licence": "mine"})
        bnfold.fold(opened(tmp_path / "w"), "2x3x9x7").save(tmp_path / "folded")
        with safe_open(tmp_path / "folded", "pt") as file:
            assert file.metadata()["format"] == "pt"
            assert file.metadata()["licence"] == "mine"
            assert set(file.keys()) == {*state}

    def test_a_checkpoint_that_holds_itself(self, tmp_path: Path) -> None:
        entries: dict[str, Any] = {"w": torch.ones(2)}
        entries["model"] = entries["net"] = entries
        torch.save(entries, tmp_path / "w.pt")
        with pytest.raises(ModelError, match="does not fit"):
            opened(tmp_path / "w.pt")


def test_many_keys_are_counted(tmp_path: Path) -> None:
    torch.save({f"x{number}": torch.ones(1) for number in range(9)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"x4, x5, … \(9 in all\)"):
        opened(tmp_path / "w.pt")


def test_damaged_safetensors(tmp_path: Path) -> None:
    save_file(factories.Net().state_dict(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="safetensors but cannot be read"):
        opened(tmp_path / "w.safetensors")


def test_saved_safetensors_are_read_by_their_own_library(tmp_path: Path) -> None:
    module = trained(factories.tied())
    result = bnfold.fold(SafetensorsModel(module), "2x3x9x7", compact=True)
    result.save(tmp_path / "w.safetensors")
    names = {"0.weight", "0.bias", "3.weight", "1.weight"}
    assert set(load_file(tmp_path / "w.safetensors")) == names


def sparse(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_sparse()


def quantised(weight: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("made", "said"),
    [(sparse, "has sparse numbers in {}"), (quantised, "is quantized: {} is of the type qint8")],
)
def test_numbers_that_are_stored_in_another_way_are_refused(
    made: Any, said: str, tmp_path: Path
) -> None:
    state = factories.small().state_dict()
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    torch.save({**state, name: made(state[name])}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path / 'm.pt'} {said.format(name)}")):
        open_model(tmp_path / "m.pt", Opening(factory="tests.formats.factories:small"))
