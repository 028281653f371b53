"""A file that is read is a plain one: to open a pipe is to wait, and a device has no end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bnfold.errors import ModelError, UsageError
from bnfold.files import special
from bnfold.formats.opening import open_model
from bnfold.runtimes import TensorSpec
from bnfold.verbs.pipeline import read_pipeline
from bnfold.verification.golden import is_golden, read_golden
from bnfold.verification.input_files import recorded

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="of POSIX")


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def bound(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return path


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


Make = Callable[[Path], Path]
KINDS: dict[str, Make] = {
    "a pipe": pipe,
    "a socket": bound,
    "a device": device,
    "a folder": folder,
}
EACH = pytest.mark.parametrize(("kind", "make"), KINDS.items(), ids=KINDS)


@pytest.fixture(autouse=True)
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a socket has 108 characters."""
    monkeypatch.chdir(tmp_path)


@EACH
def test_as_a_model(kind: str, make: Make) -> None:
    wrong = " without weights" if kind == "a folder" else ", not a file"
    with pytest.raises(ModelError, match=f"m.onnx is {kind}{wrong}"):
        open_model(make(Path("m.onnx")))


@EACH
def test_as_a_bundle(kind: str, make: Make) -> None:
    path = make(Path("g.npz"))
    assert not is_golden(path)
    with pytest.raises(ModelError, match=f"g.npz is {kind}, not a golden bundle"):
        read_golden(path)


@EACH
@pytest.mark.parametrize("name", ["x.npy", "x.png"])
def test_as_inputs(kind: str, make: Make, name: str) -> None:
    inner = folder(Path("inputs")) / name
    make(inner)
    with pytest.raises(UsageError, match=f"{name}: it is {kind}, not a file"):
        list(recorded([inner.parent], [TensorSpec("x", "float32", (1, 3, 4, 4))]))


@EACH
def test_as_a_pipeline(kind: str, make: Make) -> None:
    with pytest.raises(UsageError, match=f"p.toml is {kind}, not a file"):
        read_pipeline(make(Path("p.toml")))


def test_what_is_plain_or_absent_is_not_special() -> None:
    Path("x").touch()
    Path("link").symlink_to("x")
    assert [special(Path(name)) for name in ("x", "link", "absent", "a\0b")] == [None] * 4
