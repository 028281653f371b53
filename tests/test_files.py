"""A target is the old file or the whole new one, and nothing else stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnfold.errors import BnfoldError, ExportError, UsageError
from bnfold.files import check_target, sha256, write_atomically


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    return path


def test_the_file_is_replaced_and_nothing_stays_behind(target: Path) -> None:
    write_atomically(target, lambda path: path.write_bytes(b"new") and None)
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["model.onnx"]


def test_the_model_is_moved_last(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace

    def recorded(self: Path, to: Path) -> Path:
        moved.append(self.name)
        return replace(self, to)

    def save(path: Path) -> None:
        path.write_bytes(b"new")
        path.with_name("model.onnx.data").write_bytes(b"data")
        path.with_name("a").write_bytes(b"more")

    monkeypatch.setattr(Path, "replace", recorded)
    write_atomically(target, save)
    assert moved[-1] == "model.onnx"
    assert sorted(os.listdir(target.parent)) == ["a", "model.onnx", "model.onnx.data"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), ExportError),
        (UsageError("bad"), UsageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_on_failure_the_old_file_is_kept(
    target: Path, error: BaseException, raised: type[BaseException]
) -> None:
    def save(path: Path) -> None:
        path.write_bytes(b"half")
        path.with_name("model.onnx.data").write_bytes(b"half")
        raise error

    with pytest.raises(raised):
        write_atomically(target, save)
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["model.onnx"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BnfoldError):
        write_atomically(tmp_path / "no" / "m.pt", lambda path: None)


class TestTargets:
    def test_a_new_file_and_an_old_one_are_fine(self, target: Path) -> None:
        check_target(target, overwrite=False)
        check_target(target.with_name("new"), overwrite=False)

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is a folder"):
            check_target(tmp_path, overwrite=True)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="does not exist") as caught:
            check_target(tmp_path / "a" / "b.pt", overwrite=False)
        assert str(caught.value.hint).startswith("mkdir -p")

    def test_not_writable(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(UsageError, match="not writable"):
            check_target(target, overwrite=True)

    def test_the_input_itself_also_by_another_name(self, target: Path) -> None:
        link = target.with_name("link")
        link.symlink_to(target)
        for path in (target, link):
            with pytest.raises(UsageError, match="is the input itself"):
                check_target(path, overwrite=False, source=target)
            check_target(path, overwrite=True, source=target)


def test_sha256(target: Path) -> None:
    assert sha256(target).startswith("7f9f1dd2a7a2d3b1") or len(sha256(target)) == 64
