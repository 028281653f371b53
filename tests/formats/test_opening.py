"""A file is recognised by what is in it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bnfold
from bnfold import Opening
from bnfold.errors import ModelError, UntrustedError, UsageError
from bnfold.formats.model import Format
from bnfold.formats.opening import open_model, recognise
from bnfold.formats.pytorch.nn_module import ModuleModel
from tests.formats.factories import small

NET = nn.Sequential(nn.Linear(3, 4))
X = torch.zeros(2, 3)


def an_onnx(path: Path) -> None:
    helper = onnx.helper
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    path.write_bytes(helper.make_model(graph).SerializeToString())


def a_program(path: Path) -> None:
    ModuleModel(NET).capture({"input": X.numpy()}).save(path)


WRITERS: list[tuple[Format, Callable[[Path], Any]]] = [
    (Format.MODULE, lambda path: torch.save(NET, path)),
    (Format.MODULE, lambda path: torch.save(NET.state_dict(), path)),
    (
        Format.MODULE,
        lambda path: torch.save(NET.state_dict(), path, _use_new_zipfile_serialization=False),
    ),
    (Format.SAFETENSORS, lambda path: save_file(NET.state_dict(), path)),
    (Format.TORCHSCRIPT, lambda path: torch.jit.trace(NET, X).save(str(path))),
    (
        Format.EXPORTED_PROGRAM,
        lambda path: ModuleModel(NET).capture({"input": X.numpy()}).save(path),
    ),
    (Format.ONNX, an_onnx),
]


@pytest.mark.parametrize(("kind", "write"), WRITERS)
@pytest.mark.parametrize("suffix", [".pt", ".onnx", ""])
def test_the_suffix_says_nothing(
    kind: Format, write: Callable[[Path], Any], suffix: str, tmp_path: Path
) -> None:
    write(tmp_path / f"model{suffix}")
    assert recognise(tmp_path / f"model{suffix}") is kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello\nworld\n", "is a text file"),
        ("gr\u00fc\u00df dich ".encode() * 60, "is a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "is a text file"),
        (b"PK\x03\x04 cut off", "damaged or truncated zip"),
        (b"\xff\xfe\x00\x01" * 9, "in no format that bnfold knows"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(60), "in no format that bnfold knows"),
    ],
    ids=["empty", "text", "text, cut inside a letter", "git lfs", "zip", "binary", "program"],
)
def test_what_is_no_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        open_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_git_lfs_pointer_says_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    with pytest.raises(ModelError) as caught:
        recognise(path)
    assert "git lfs pull" in str(caught.value.hint)


def test_a_web_page_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("\n<!DOCTYPE html>\n<html><body>Sign in</body></html>\n")
    with pytest.raises(ModelError, match="is a text file") as caught:
        open_model(path)
    assert "web page" in str(caught.value.hint)


@pytest.mark.parametrize(
    "head",
    [
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
        b"GIF89a\x01\x00\x80\xff",
        b"\x1f\x8b\x08\x00\x00\x00\xfe",
        b"\x89HDF\r\n\x1a\n",
    ],
    ids=["png", "jpeg", "gif", "gzip", "hdf5"],
)
def test_other_binary_files(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(head + bytes(range(256)))
    with pytest.raises(ModelError, match="in no format that bnfold knows"):
        open_model(path)


def test_a_zip_without_a_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("photo.jpg", b"1")
    with pytest.raises(ModelError, match="without a model"):
        recognise(tmp_path / "a.zip")


def test_a_folder_a_missing_file_and_one_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recognise(tmp_path) is Format.FOLDER
    with pytest.raises(ModelError, match="is a folder without weights"):
        open_model(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        recognise(tmp_path / "nothing")

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        recognise(tmp_path / "model.pt")


@pytest.mark.parametrize(("kind", "write"), WRITERS)
def test_truncated_files_are_refused(
    kind: Format, write: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    write(path)
    whole = path.read_bytes()
    for share in (0.3, 0.7):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ModelError):
            open_model(path, Opening(factory="torch.nn:Linear", factory_args=[3, 4]))


def test_a_module_in_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": NET}, tmp_path / "c.pt")
    model = open_model(tmp_path / "c.pt")
    assert isinstance(model, ModuleModel)
    assert model.format is Format.MODULE


@pytest.mark.parametrize("keys", [("ema", "model"), ("model", "ema")])
def test_the_first_of_several_modules_by_documented_order(
    keys: tuple[str, str], tmp_path: Path
) -> None:
    torch.save({key: nn.Linear(3, len(key)).eval() for key in keys}, tmp_path / "c.pt")
    model = open_model(tmp_path / "c.pt")
    assert model.native.out_features == len("ema")
    assert model.notes == ("the module under 'ema' was taken; --weights takes that under 'model'",)
    chosen = open_model(tmp_path / "c.pt", Opening(weights="model"))
    assert chosen.native.out_features == len("model")


def test_what_lies_around_a_module_stays(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": small(), "ema": small()}, tmp_path / "c.pt")
    bnfold.fold(tmp_path / "c.pt", "2x3x4x5").save(tmp_path / "f.pt")
    found = torch.load(tmp_path / "f.pt", weights_only=False)
    assert list(found) == ["epoch", "model", "ema"]
    assert found["epoch"] == 3
    assert isinstance(found["ema"][1], nn.Identity)
    assert isinstance(found["model"][1], nn.BatchNorm2d)


def test_no_memory_is_one_sentence_that_names_the_model(
    bnfold: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **named: Any) -> None:
        raise MemoryError

    torch.save(small(), tmp_path / "m.pt")
    monkeypatch.setattr("bnfold.verbs.folding.make_rounded_plan", fails)
    ended = bnfold("fold", tmp_path / "m.pt", "--input", "2x3x4x5")
    assert ended.code == 3
    assert f"not enough memory for {tmp_path / 'm.pt'}" in "".join(ended.err.splitlines())
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pt"]


def test_weights_of_what_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match="holds one module"):
        open_model(tmp_path / "m.pt", Opening(weights="ema"))
    torch.jit.script(small()).save(str(tmp_path / "s.pt"))
    with pytest.raises(UsageError, match=r"is for checkpoints, and .* is torchscript"):
        open_model(tmp_path / "s.pt", Opening(weights="ema"))


@pytest.mark.parametrize("attribute", ["_modules", "_parameters", "_backward_hooks", "training"])
def test_a_module_that_another_torch_made(attribute: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    del net[0].__dict__[attribute]
    torch.save(net, tmp_path / "m.pt")
    with pytest.raises(ModelError, match=f"of another torch: 0 has no {attribute}") as caught:
        open_model(tmp_path / "m.pt")
    assert "state_dict" in str(caught.value.hint)


@pytest.mark.parametrize("attribute", ["stride", "groups", "transposed"])
def test_a_convolution_that_is_not_whole(attribute: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    del net[0].__dict__[attribute]
    torch.save(net, tmp_path / "m.pt")
    with pytest.raises(ModelError, match=f"0 has no {attribute}"):
        open_model(tmp_path / "m.pt")


def test_modules_that_are_no_modules(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    net.__dict__["_modules"]["0"] = 3
    torch.save(net, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="damaged or of another torch"):
        open_model(tmp_path / "m.pt")


def test_a_batchnorm_from_before_it_counted_batches(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    del net[1]._buffers["num_batches_tracked"]
    del net[1].__dict__["track_running_stats"]
    torch.save(net, tmp_path / "m.pt")
    assert bnfold.fold(tmp_path / "m.pt", "2x3x5x4").plan.batchnorms.folded == 1


def test_something_else_in_a_file(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "c.pt")
    with pytest.raises(ModelError, match="holds a list"):
        open_model(tmp_path / "c.pt")


def test_a_module_of_the_users_own_class(tmp_path: Path) -> None:
    from tests.formats.factories import Net

    torch.save(Net(), tmp_path / "m.pt")
    with pytest.raises(UntrustedError, match=r"tests\.formats\.factories\.Net"):
        open_model(tmp_path / "m.pt")
    allowed = open_model(tmp_path / "m.pt", Opening(allow=("tests.formats.factories.Net",)))
    assert type(allowed.native) is Net


@pytest.mark.parametrize("source", [3, object(), [NET], None])
def test_objects_that_are_no_models(source: Any) -> None:
    with pytest.raises(UsageError, match="is not a model that bnfold knows"):
        open_model(source)


def test_a_model_that_is_open_already() -> None:
    model = ModuleModel(NET)
    assert open_model(model) is model
    assert os.path.exists(__file__)
