"""Files and folders whose names are no UTF-8: every format, command and rendering."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from bnfold.formats.pytorch.nn_module import ModuleModel
from tests.conftest import Ended
from tests.formats.networks import trained
from tests.formats.onnx_nets import Net

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

Run = Callable[..., Ended]
INPUT = ("--input", "2x3x9x7")
MODEL = ("--model", f"{__name__}:network", *INPUT)


def network() -> nn.Module:
    return trained(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()))


def onnx_file(path: Path) -> None:
    net = Net()
    net.output(net.bn(net.conv(net.input("x", "N", 3, 9, 7), 3, 16), 16))
    path.write_bytes(net.proto().SerializeToString())


def external(path: Path) -> None:
    """Under another name first: onnx itself takes only those that are UTF-8."""
    plain = path.parent.parent / "m.onnx"
    onnx_file(plain)
    how = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(onnx.load(plain), plain, **how)
    for file, place in ((plain, path), (plain.with_name("weights"), path.with_name("weights"))):
        file.rename(place)


def safetensors(path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save(network().state_dict()))


def torchscript(path: Path) -> None:
    with path.open("wb") as file:
        torch.jit.save(torch.jit.trace(network(), torch.zeros(2, 3, 9, 7)), file)


def module(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(network(), file)


def older_module(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(network(), file, _use_new_zipfile_serialization=False)


def state_dict(path: Path) -> None:
    with path.open("wb") as file:
        torch.save(network().state_dict(), file)


def program(path: Path) -> None:
    ModuleModel(network()).capture({"input": torch.zeros(2, 3, 9, 7).numpy()}).save(path)


FORMS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "module": (module, INPUT),
    "older module": (older_module, INPUT),
    "state_dict": (state_dict, MODEL),
    "safetensors": (safetensors, MODEL),
    "torchscript": (torchscript, INPUT),
    "program": (program, ()),
    "program, trusted": (program, ("--trust",)),
    "module, trusted": (module, ("--trust", *INPUT)),
    "onnx": (onnx_file, ()),
    "onnx, external": (external, ()),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / os.fsdecode(b"f\xfe")
    found.mkdir()
    return found


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_and_passes_is_exit_0(form: str, folder: Path, bnfold: Run) -> None:
    write, options = FORMS[form]
    path, result, bundle = (folder / os.fsdecode(name) for name in (b"m\xff", b"r\xff", b"g\xff"))
    write(path)
    assert bnfold("inspect", path, *options).code == 0
    ended = bnfold("fold", path, "-o", result, *options, "--format", "json")
    assert ended.code == 0, ended
    assert json.loads(ended.out)["result"]["path"] == str(result)
    data = [file.name[:3] for file in folder.iterdir() if file not in (path, result)]
    assert sorted(data) == (["r_.", "wei"] if form == "onnx, external" else [])
    assert bnfold("golden", path, "-o", bundle, *options).code == 0
    arguments = (
        [] if options is INPUT else options[: -len(INPUT)] if INPUT[0] in options else options
    )
    assert bnfold("verify", "--golden", bundle, result, *arguments).code == 0
    assert bnfold("verify", path, result, *options).code == 0


@pytest.mark.parametrize("style", ["text", "junit", "markdown", "github"])
def test_every_rendering_shows_the_bytes(
    style: str, folder: Path, bnfold: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, result = folder / os.fsdecode(b"m\xff"), folder / os.fsdecode(b"r\xff")
    external(path)
    summary = folder / "summary"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    reports = [folder / os.fsdecode(b"r\xff" + end) for end in (b".html", b".md", b".xml", b".txt")]
    flags = [flag for report in reports for flag in ("--report", report)]
    ended = bnfold("fold", path, "-o", result, "--format", style, *flags)
    assert ended.code == 0, ended
    assert "\\xff" in ended.out
    for report in reports:
        assert "xff" in report.read_text(encoding="utf-8")
    assert style != "github" or "xff" in summary.read_text(encoding="utf-8")
    missing = bnfold("fold", folder / os.fsdecode(b"n\xff"), "--format", style)
    assert missing.code == 3
    assert "n\\xff does not exist" in missing.err
