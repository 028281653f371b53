"""Whatever stands around the names of a network in a checkpoint, its weights are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bnfold
from bnfold import Opening
from bnfold.errors import ModelError, UsageError
from bnfold.formats.opening import open_model
from bnfold.formats.pytorch.locating import Found, locate
from tests.formats.networks import trained

State = dict[str, torch.Tensor]


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 5, (3, 1), bias=False), nn.BatchNorm2d(5))
    return trained(nn.ModuleDict({"stem": layers, "head": nn.Conv2d(5, 2, 1)}), seed=seed)


class Net(nn.Module):
    """As a factory of the command line."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, (3, 1), bias=False), nn.BatchNorm2d(5))
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.stem(x)))  # type: ignore[no-any-return]


WANTED = net(1).state_dict()
OTHER = net(2).state_dict()


def found(checkpoint: Mapping[str, Any], wanted: str | None = None) -> Found:
    return locate(Path("w.pt"), checkpoint, net(), wanted)


def is_taken(result: Found, state: State = WANTED) -> bool:
    return result.tensors.keys() == state.keys() and all(
        torch.equal(result.tensors[name], state[name]) for name in state
    )


def prefixed(prefix: str, state: State = WANTED) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def mangled(state: State) -> State:
    return {"ema_" + name.replace(".", "_"): tensor for name, tensor in state.items()}


def wrapped(name: str, wrapper: str) -> str:
    return name.replace("stem.", f"stem.{wrapper}.")


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


PREFIXES = [
    *("net.", "model.net.", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."),
    *("model.", "model._orig_mod.module.", "student.backbone.0.", "a.b.c.d."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("nest", [lambda s: s, lambda s: {"x": {"state_dict": s}, "epoch": 1}])
def test_any_prefix(prefix: str, nest: Callable[[State], Any]) -> None:
    foreign = {"criterion.weight": torch.ones(4), "val_acc.tp": torch.tensor(3)}
    result = found(nest({**prefixed(prefix), **foreign}))
    assert is_taken(result)
    (note,) = result.surroundings.notes
    assert "left as they are" in note
    assert "criterion.weight, val_acc.tp" in note
    assert result.surroundings.rest.keys() == foreign.keys()


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module"])
def test_wrappers_of_single_layers(wrapper: str) -> None:
    state = {f"net.{wrapped(name, wrapper)}": tensor for name, tensor in WANTED.items()}
    result = found(state)
    assert is_taken(result)
    named = result.surroundings.named({**WANTED, "stem.0.bias": torch.ones(5)})
    assert named.keys() == {*state, f"net.stem.{wrapper}.0.bias"}


def test_a_child_that_is_called_like_a_wrapper_is_none() -> None:
    own = nn.ModuleDict({"module": net(1)})
    state = own.state_dict()
    result = locate(Path("w.pt"), state, own)
    assert result.tensors.keys() == state.keys()
    assert result.surroundings.prefix == ""


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
def test_new_tensors_get_the_names_of_their_layers(prefix: str) -> None:
    surroundings = found(prefixed(prefix)).surroundings
    named = surroundings.named({"stem.0.bias": torch.ones(5), "scale": torch.ones(1)})
    assert list(named) == [f"{prefix}stem.0.bias", f"{prefix}scale"]


PAIRS = [
    *(("ema", "model"), ("model_ema", "model"), ("state_dict_ema", "state_dict")),
    *(("params_ema", "params"), ("teacher", "student"), ("state_dict", "ema_state_dict")),
]


@pytest.mark.parametrize(("taken", "beside"), PAIRS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_average_that_its_library_takes(taken: str, beside: str, prefix: str) -> None:
    checkpoint = {beside: prefixed(prefix, OTHER), taken: prefixed(prefix)}
    result = found(checkpoint)
    assert is_taken(result)
    (note,) = result.surroundings.notes
    assert note.startswith(f"the weights under '{taken}")
    assert f"--weights takes those under '{beside}" in note
    assert is_taken(found(checkpoint, beside), OTHER)


def test_averages_with_names_of_their_own() -> None:
    checkpoint = {"meta": {"epoch": 1}, "state_dict": {**mangled(OTHER), **WANTED}}
    result = found(checkpoint)
    assert is_taken(result)
    assert "--weights takes those under 'state_dict.ema_'" in result.surroundings.notes[0]
    averaged = found(checkpoint, "ema_")
    assert is_taken(averaged, OTHER)
    bias = {"stem.0.bias": torch.ones(5)}
    assert list(averaged.surroundings.named(bias)) == ["ema_stem_0_bias"]


def test_averaged_model_of_torch() -> None:
    module = torch.optim.swa_utils.AveragedModel(net(1))
    result = found({"swa": module.state_dict(), "epoch": 3})
    assert is_taken(result)
    assert result.surroundings.rest.keys() == {"n_averaged"}


AMBIGUOUS = {
    "keys that nobody knows": {"actor": WANTED, "critic": OTHER},
    "a known one beside it": {"model": OTHER, "best": WANTED},
    "two of a kind": {"ema": OTHER, "teacher": WANTED},
    "prefixes": {"state_dict": {**prefixed("a."), **prefixed("b.", OTHER)}},
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_is_ambiguous_is_asked_with_the_line_to_type(kind: str) -> None:
    checkpoint = AMBIGUOUS[kind]
    with pytest.raises(UsageError, match="several sets of weights that fit") as caught:
        found(checkpoint)
    lines = str(caught.value.hint).removeprefix("say which: ").split(" or ")
    assert len(lines) == 2
    states = [found(checkpoint, line.removeprefix("--weights ")) for line in lines]
    assert sorted(is_taken(each) for each in states) == [False, True]
    assert sorted(is_taken(each, OTHER) for each in states) == [False, True]


def test_the_same_numbers_twice_are_no_question() -> None:
    again = {name: tensor.clone() for name, tensor in WANTED.items()}
    assert is_taken(found({"actor": WANTED, "critic": again}))


def test_names_without_a_prefix_go_first() -> None:
    assert is_taken(found({**prefixed("twin.", OTHER), **WANTED}))


def test_shapes_tell_places_apart() -> None:
    narrow = {name: tensor[:1] if tensor.ndim else tensor for name, tensor in OTHER.items()}
    assert is_taken(found({"small": narrow, "large": WANTED}))


@pytest.mark.parametrize("wanted", ["net", "net.", "state_dict.net", "state_dict"])
def test_a_prefix_or_a_key_selects(wanted: str) -> None:
    checkpoint = {"state_dict": prefixed("net."), "old": prefixed("old.", OTHER)}
    assert is_taken(found(checkpoint, wanted))


def test_a_prefix_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="has no weights under 'nets'") as caught:
        found({"state_dict": prefixed("net.")}, "nets")
    assert "--weights state_dict.net" in str(caught.value.hint)


DEEPER = {
    "a further layer": "stem.3.weight",
    "a bias": "head.bias2",
    "within a layer": "head.lora.weight",
}


@pytest.mark.parametrize("kind", DEEPER)
@pytest.mark.parametrize("prefix", ["", "net.", "module.", "a.module._orig_mod."])
def test_what_makes_another_network_is_for_the_caller_to_refuse(kind: str, prefix: str) -> None:
    result = found(prefixed(prefix, {**WANTED, DEEPER[kind]: torch.ones(2)}))
    assert DEEPER[kind] in result.tensors


def test_a_longer_row_of_layers_is_another_network() -> None:
    row = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    longer = nn.Sequential(*row, nn.Conv2d(4, 4, 1))
    result = locate(Path("w.pt"), longer.state_dict(), row)
    assert "2.weight" in result.tensors


def test_what_is_computed_today_is_left_alone() -> None:
    own = net(1)
    own["stem"].register_buffer("window", torch.ones(3), persistent=False)
    state = {**own.state_dict(), "stem.window": torch.ones(3)}
    result = locate(Path("w.pt"), state, own)
    assert result.tensors.keys() == own.state_dict().keys()
    assert "stem.window" in result.surroundings.notes[0]


def test_files_of_before_batches_were_counted() -> None:
    counter = "stem.1.num_batches_tracked"
    state = without(WANTED, counter)
    assert is_taken(found(prefixed("net.", state)), state)
    more = {**WANTED, "head.num_batches_tracked": torch.tensor(1)}
    assert is_taken(found(more))


def test_missing_statistics_are_named(tmp_path: Path) -> None:
    state = without(WANTED, "stem.1.running_var")
    torch.save(prefixed("net.", state), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"missing in the file: stem\.1\.running_var$"):
        open_model(tmp_path / "w.pt", Opening(factory=f"{__name__}:Net"))


def test_a_file_of_many_mappings_is_looked_at_once() -> None:
    level: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(6):
        level = {f"k{number}": level for number in range(300)}
    with pytest.raises(ModelError, match="holds no weights"):
        found(level)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_foreign_tensors_are_written_where_they_were(suffix: str, tmp_path: Path) -> None:
    foreign = {"criterion.weight": torch.randn(4), "net.aux.weight": torch.randn(2)}
    path, folded = tmp_path / f"w.{suffix}", tmp_path / f"folded.{suffix}"
    write: Any = torch.save if suffix == "pt" else save_file
    read: Any = torch.load if suffix == "pt" else load_file
    write({**prefixed("net."), **foreign}, path)
    opening = Opening(factory=f"{__name__}:Net", weights="net")
    result = bnfold.fold(path, "2x3x9x7", opening=opening)
    assert result.plan.batchnorms.folded == 1
    result.save(folded)
    written = read(folded)
    assert all(torch.equal(written[name], foreign[name]) for name in foreign)
    assert written.keys() == {*prefixed("net."), *foreign}
    assert not torch.equal(written["net.stem.0.weight"], WANTED["stem.0.weight"])
    again = bnfold.fold(folded, "2x3x9x7", opening=opening)
    assert again.passed


@pytest.mark.parametrize("place", ["cuda:0", "cuda:3", "mps:0", "xpu:1", "npu:0"])
@pytest.mark.parametrize("newer", [True, False])
def test_weights_of_a_machine_with_another_device(
    place: str, newer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: place)
        torch.save(WANTED, tmp_path / "w.pt", _use_new_zipfile_serialization=newer)
    model = open_model(tmp_path / "w.pt", Opening(factory=f"{__name__}:Net"))
    state = model.native.state_dict()
    assert all(torch.equal(state[name], WANTED[name]) for name in WANTED)
