"""A target is the old file or the whole new one, and nothing else stays behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bnfold.errors import BnfoldError, ExportError, UsageError
from bnfold.files import check_target, sha256, write_atomically
from tests.killing import NEEDS_FORK, run_and_kill


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


def test_sha256(tmp_path: Path) -> None:
    """Of the standard's own example: FIPS 180-2, B.1."""
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == expected


OLD, NEW = "0123456789ab", "ba9876543210"


def save_with_data(path: Path, name: str) -> None:
    """A model that consists of the name of its data, which are the name as well."""
    data = path.with_name(f"{path.name}.{name}.data")
    data.write_text(name)
    path.write_text(data.name)


@NEEDS_FORK
def test_a_kill_at_any_moment_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    target, seen = tmp_path / "m.onnx", set()
    for steps in range(100):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write_atomically(target, lambda path: save_with_data(path, OLD))
        done = run_and_kill(
            steps, lambda: write_atomically(target, lambda path: save_with_data(path, NEW))
        )
        named = (tmp_path / target.read_text()).read_text()
        assert target.read_text() == f"m.onnx.{named}.data"
        seen.add(named)
        if done:
            break
    assert seen == {OLD, NEW}
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", f"m.onnx.{NEW}.data"]


def test_a_folder_is_not_cleared_of_what_is_called_otherwise(tmp_path: Path) -> None:
    others = ["m.onnx.data", "n.onnx.0123456789ab.data", "m.onnx.0123.data", "m_onnx.x.data"]
    for name in others:
        (tmp_path / name).touch()
    write_atomically(tmp_path / "m.onnx", lambda path: save_with_data(path, NEW))
    assert set(others) <= set(os.listdir(tmp_path))


def test_a_name_that_leaves_no_room_for_side_files(tmp_path: Path) -> None:
    check_target(tmp_path / ("m" * 230), overwrite=False)
    with pytest.raises(UsageError, match="too long"):
        check_target(tmp_path / ("m" * 231), overwrite=False)


def test_a_device_is_no_target() -> None:
    """A rename would put a plain file in its place."""
    with pytest.raises(UsageError, match="is a device or a pipe"):
        check_target(Path(os.devnull), overwrite=True)
