"""Folders of a library: built by it, folded, and written as a folder that it loads."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bnfold
from bnfold import Opening
from bnfold.errors import EnvironmentLacksError, ModelError, UsageError
from bnfold.formats.opening import open_model
from tests.formats import factories
from tests.formats.networks import trained

HERE = "tests.formats.factories"
SPEC = "2x3x9x7"


def same(after: torch.Tensor, before: torch.Tensor) -> None:
    """To float32's rounding of some ten layers."""
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5


def shards(state: dict[str, torch.Tensor], folder: Path, suffix: str) -> None:
    """Two files and an index, as the libraries write them."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    write: Any = save_file if suffix == "safetensors" else torch.save
    files = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    names = {name: files["head" in name] for name in state}
    for file in files:
        write({name: t for name, t in state.items() if names[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def single(state: dict[str, torch.Tensor], folder: Path, suffix: str) -> None:
    if suffix == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(state, folder / "pytorch_model.bin")


def read(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for file in folder.iterdir():
        if file.suffix in (".safetensors", ".bin"):
            state |= load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    return state


@pytest.fixture
def module() -> nn.Module:
    return trained(factories.Net()).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "net"
    made.mkdir()
    (made / "config.json").write_text('{"architecture": "net"}')
    (made / "README.md").write_text("trained on birds")
    (made / "tf_model.h5").write_text("other weights")
    return made


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("write", [single, shards])
def test_files_are_written_as_they_were(
    write: Callable[..., None], suffix: str, module: nn.Module, folder: Path
) -> None:
    write({f"net.{name}": t for name, t in module.state_dict().items()}, folder, suffix)
    result = bnfold.fold(folder, SPEC, opening=Opening(factory=f"{HERE}:Net"))
    assert result.plan.batchnorms.folded == 1
    target = folder.parent / "folded"
    result.save(target)
    before, after = ({file.name for file in at.iterdir()} for at in (folder, target))
    assert after == before - {"tf_model.h5"}
    assert (target / "README.md").read_text() == "trained on birds"
    state = {name.removeprefix("net."): tensor for name, tensor in read(target).items()}
    made = factories.Net().eval()
    made.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 9, 7)
    with torch.no_grad():
        same(made(x), module(x))
    for index in target.glob("*.index.json"):
        places = json.loads(index.read_text())["weight_map"]
        assert places == json.loads((folder / index.name).read_text())["weight_map"]
    again = bnfold.fold(target, SPEC, opening=Opening(factory=f"{HERE}:Net"))
    assert again.passed
    assert again.plan.batchnorms.found == 0


class TestLibraries:
    """The library is a stand-in: it builds the network that config.json names."""

    @pytest.fixture
    def built(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        called: list[Any] = []

        def make(*arguments: Any, **named: Any) -> nn.Module:
            called.append((arguments, named))
            return factories.Net()

        for name in ("timm", "segmentation_models_pytorch"):
            library = ModuleType(name)
            library.create_model = library.Unet = make  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, library)
        return called

    def test_timm(self, built: list[Any], module: nn.Module, folder: Path) -> None:
        single(module.state_dict(), folder, "safetensors")
        assert bnfold.fold(folder, SPEC).plan.batchnorms.folded == 1
        assert built == [((f"local-dir:{folder}",), {"pretrained": False})]

    def test_segmentation_models(self, built: list[Any], module: nn.Module, folder: Path) -> None:
        config = {"_model_class": "Unet", "classes": 2, "encoder_weights": "imagenet"}
        (folder / "config.json").write_text(json.dumps(config))
        single(module.state_dict(), folder, "bin")
        assert bnfold.inspect(folder, SPEC)[1].batchnorms.folded == 1
        assert built == [((), {"classes": 2, "encoder_weights": None})]

    def test_a_library_that_is_not_here(
        self, module: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        single(module.state_dict(), folder, "bin")
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(EnvironmentLacksError, match="is a folder of timm") as caught:
            open_model(folder)
        assert caught.value.hint == "pip install timm"

    def test_a_library_that_cannot_build_it(
        self, module: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        single(module.state_dict(), folder, "bin")
        monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
        with pytest.raises(ModelError, match="timm cannot build the network of"):
            open_model(folder)


REFUSED: dict[str, tuple[dict[str, str], str, str]] = {
    "no weights": ({"config.json": "{}"}, "is a folder without weights", "name a model file in it"),
    "no config": ({"model.safetensors": ""}, r"has no config\.json", "--model pkg.mod:factory"),
    "another config": (
        {"model.safetensors": "", "config.json": '{"depth": 3}'},
        "names no network of transformers, timm or segmentation_models_pytorch",
        "--model pkg.mod:factory",
    ),
    "a list": (
        {"model.safetensors": "", "config.json": "[]"},
        "holds no settings of a network",
        "download it again",
    ),
    "no JSON": (
        {"model.safetensors": "", "config.json": "{"},
        r"config\.json cannot be read",
        "download it again",
    ),
    "several": ({"a.pt": "", "b.pt": ""}, r"several files of weights: a\.pt, b\.pt", "--model"),
    "a shard that lacks": (
        {"model.safetensors.index.json": '{"weight_map": {"w": "a.safetensors"}}'},
        r"names a\.safetensors, which is not there",
        "download it",
    ),
    "a shard elsewhere": (
        {"model.safetensors.index.json": '{"weight_map": {"w": "../a.safetensors"}}'},
        "is no index of weights: it names no files of its own folder",
        "download it again",
    ),
    "an index of nothing": (
        {"model.safetensors.index.json": "{}"},
        "is no index of weights",
        "download it again",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_folder_of_a_library(kind: str, tmp_path: Path) -> None:
    files, said, hint = REFUSED[kind]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises((ModelError, UsageError), match=said) as caught:
        open_model(tmp_path)
    assert hint in str(caught.value.hint)


def test_the_code_of_a_folder_is_not_run(module: nn.Module, folder: Path) -> None:
    pytest.importorskip("transformers")
    config = {"architectures": ["Net"], "auto_map": {"AutoModel": "net.Net"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "net.py").write_text("1 / 0")
    single(module.state_dict(), folder, "bin")
    with pytest.raises(UsageError, match="brings the code of its network along"):
        open_model(folder)


def test_an_index_names_its_folder(module: nn.Module, folder: Path) -> None:
    shards(module.state_dict(), folder, "safetensors")
    with pytest.raises(ModelError, match="is a text file") as caught:
        open_model(folder / "model.safetensors.index.json")
    assert "name the folder" in str(caught.value.hint)


def test_from_the_command_line(bnfold: Callable[..., Any], module: nn.Module, folder: Path) -> None:
    single(module.state_dict(), folder, "safetensors")
    ended = bnfold("fold", folder, "--input", SPEC, "--model", f"{HERE}:Net")
    assert ended.code == 0, ended.err
    target = folder.parent / "net.folded"
    assert {file.name for file in target.iterdir()} >= {"config.json", "model.safetensors"}
    again = bnfold("fold", folder, "--input", SPEC, "--model", f"{HERE}:Net")
    assert again.code == 2
    assert "is a folder" in again.err
    assert bnfold("verify", folder, target, "--input", SPEC, "--model", f"{HERE}:Net").code == 0


def test_transformers_loads_what_is_written(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=3, layer_type="basic"
    )
    before = trained(transformers.ResNetForImageClassification(config)).eval()
    before.save_pretrained(tmp_path / "net")
    result = bnfold.fold(tmp_path / "net", "1x3x64x48")
    assert result.passed
    assert result.plan.batchnorms.kept == 0
    result.save(tmp_path / "folded")
    after = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "folded").eval()
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        same(after(x).logits, before(x).logits)


@pytest.mark.parametrize("library", ["timm", "segmentation_models_pytorch"])
def test_libraries_of_image_models_load_what_is_written(library: str, tmp_path: Path) -> None:
    package: Any = pytest.importorskip(library, reason=f"pip install 'bnfold[zoo]' has {library}")
    if library == "timm":
        before = trained(package.create_model("resnet10t", num_classes=7)).eval()
        package.models.save_for_hf(before, tmp_path / "net", safe_serialization=True)
    else:
        before = trained(package.Unet("resnet18", encoder_weights=None, classes=2)).eval()
        before.save_pretrained(tmp_path / "net")
    result = bnfold.fold(tmp_path / "net", "1x3x64x64")
    assert result.passed
    result.save(tmp_path / "folded")
    if library == "timm":
        after = package.create_model(f"local-dir:{tmp_path / 'folded'}", pretrained=True)
    else:
        after = package.from_pretrained(tmp_path / "folded")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        same(after.eval()(x), before(x))
