"""Weights without a network: where they lie in a file, and the network that they are put into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


def opened(path: Path, factory: str = "Net", arguments: Any = None) -> Model:
    return open_model(path, Opening(factory=f"{HERE}:{factory}", factory_args=arguments))


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
def test_a_folded_file_opens_again_with_the_same_factory(
    factory: str, kind: type[StateDictModel], tmp_path: Path
) -> None:
    module = trained(getattr(factories, factory)())
    before = open_model(kind(module))
    result = bnfold.fold(before, "2x3x9x7")
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


def test_plain_torch_reads_a_folded_file(tmp_path: Path) -> None:
    result = bnfold.fold(StateDictModel(trained(factories.Net())), "2x3x9x7")
    result.save(tmp_path / "w.pt")
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert list(state) == ["conv.weight", "conv.bias", "head.1.weight", "head.1.bias"]


def test_a_folded_file_with_another_factory_is_refused(tmp_path: Path) -> None:
    result = bnfold.fold(StateDictModel(trained(factories.Net())), "2x3x9x7")
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


def test_damaged_safetensors(tmp_path: Path) -> None:
    save_file(factories.Net().state_dict(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="safetensors but cannot be read"):
        opened(tmp_path / "w.safetensors")


def test_saved_safetensors_are_read_by_their_own_library(tmp_path: Path) -> None:
    result = bnfold.fold(SafetensorsModel(trained(factories.tied())), "2x3x9x7")
    result.save(tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {"0.weight", "0.bias", "3.weight"}
