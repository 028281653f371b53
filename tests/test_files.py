"""A target is the old file or the whole new one, and nothing else stays behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from bnfold import staging
from bnfold.errors import BnfoldError, ExportError, UsageError
from bnfold.files import check_target, sha256, write_atomically
from tests.killing import NEEDS_FORK, run_and_kill, run_and_pause


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

    def test_a_folder_that_is_made(self, tmp_path: Path) -> None:
        place = tmp_path / "a" / "b" / "c.pt"
        check_target(place, overwrite=False)
        assert not list(tmp_path.iterdir())
        write_atomically(place, lambda path: path.write_text("made") and None)
        assert place.read_text() == "made"

    def test_no_folder_is_left_where_nothing_could_be_written(self, tmp_path: Path) -> None:
        def fail(path: Path) -> None:
            raise OSError("no")

        (tmp_path / "kept").mkdir()
        with pytest.raises(ExportError):
            write_atomically(tmp_path / "kept" / "a" / "b" / "c.pt", fail)
        assert [path.name for path in tmp_path.rglob("*")] == ["kept"]

    def test_a_file_where_a_folder_would_be(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("a file")
        with pytest.raises(UsageError, match="a is no folder"):
            check_target(tmp_path / "a" / "b" / "c.pt", overwrite=False)

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
    def test_not_writable(self) -> None:
        """Not even for root, whatever the permissions say."""
        with pytest.raises(UsageError, match="is not writable: No such file"):
            check_target(Path("/proc/self/fd/m.onnx"), overwrite=True)

    def test_a_check_leaves_nothing_behind(self, target: Path) -> None:
        check_target(target, overwrite=True)
        assert os.listdir(target.parent) == ["model.onnx"]

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


OLD, NEW, NEWER = "0123456789ab", "ba9876543210", "cccccccccccc"


def save_with_data(path: Path, name: str) -> None:
    """A model that consists of the name of its data, which are the name as well."""
    data = path.with_name(f"{path.name}.{name}.data")
    data.write_text(name)
    path.write_text(data.name)


def whole(folder: Path, *more: str) -> str:
    """Which model `folder` holds, after checks that it is complete and nothing else is there."""
    data = (folder / "m.onnx").read_text()
    assert sorted(os.listdir(folder)) == sorted(["m.onnx", data, *more])
    named = (folder / data).read_text()
    assert data == f"m.onnx.{named}.data"
    return named


def write(folder: Path, name: str) -> None:
    write_atomically(folder / "m.onnx", lambda path: save_with_data(path, name))


@NEEDS_FORK
def test_a_kill_at_any_moment_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    """And the next run, whatever it writes, removes what the dead one staged."""
    seen, left_over = set(), 0
    for steps in range(100):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write(tmp_path, OLD)
        done = run_and_kill(steps, lambda: write(tmp_path, NEW))
        data = (tmp_path / "m.onnx").read_text()
        assert data == f"m.onnx.{(tmp_path / data).read_text()}.data"
        seen.add(data)
        left_over += any(file.is_dir() for file in tmp_path.iterdir())
        write_atomically(tmp_path / "other", Path.touch)
        assert not any(file.is_dir() for file in tmp_path.iterdir())
        write(tmp_path, OLD)
        assert whole(tmp_path, "other") == OLD
        if done:
            break
    assert len(seen) == 2
    assert left_over > 5


@NEEDS_FORK
@pytest.mark.parametrize("second", [NEW, OLD, NEWER])
def test_two_writers_of_one_target_leave_the_model_of_one_of_them(
    second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pauses before each of its accesses to files while the other does all of its work.

    The other waits only for one who clears away, and then says so.
    """
    monkeypatch.setattr(staging, "PATIENCE", 0.02)
    monkeypatch.setattr(staging, "GRACE", 0.02)
    seen, waited = set(), 0

    def meanwhile() -> None:
        nonlocal waited
        try:
            write(tmp_path, second)
        except ExportError:
            assert NEW in (tmp_path / "m.onnx").read_text()
            waited += 1

    for steps in range(100):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write(tmp_path, OLD)
        if not run_and_pause(steps, lambda: write(tmp_path, NEW), meanwhile):
            break
        seen.add(whole(tmp_path))
    assert 20 < steps < 99
    assert {NEW, second} <= seen
    assert waited


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_writer_that_is_stopped_takes_back_what_nothing_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, OLD)
    replace = Path.replace

    def stopped(self: Path, to: Path) -> Path:
        if to.name == "m.onnx":
            raise KeyboardInterrupt
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, name)
    assert whole(tmp_path) == OLD


def test_writers_in_threads(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(partial(write, tmp_path), [OLD, NEW, NEWER] * 10):
            pass
    assert whole(tmp_path) in (OLD, NEW, NEWER)


class TestWithoutLocks:
    """A file system without locks: nobody can tell a dead writer from a living one."""

    @pytest.fixture(autouse=True)
    def _no_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(handle: int, kind: int) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", refuse)

    def test_one_writer_clears_away(self, tmp_path: Path) -> None:
        write(tmp_path, OLD)
        write(tmp_path, NEW)
        assert whole(tmp_path) == NEW

    def test_nothing_is_cleared_while_another_may_be_at_work(self, tmp_path: Path) -> None:
        write(tmp_path, OLD)
        (tmp_path / f".m.onnx.abc{staging.SUFFIX}").mkdir()
        write(tmp_path, NEW)
        assert len(os.listdir(tmp_path)) == 4


def test_a_writer_that_lives_keeps_its_staging_folder(tmp_path: Path) -> None:
    def save(path: Path) -> None:
        write(tmp_path, OLD)
        save_with_data(path, NEW)

    write_atomically(tmp_path / "m.onnx", save)
    assert whole(tmp_path) == NEW


def test_what_only_looks_like_a_staging_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f".a{staging.SUFFIX}").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f".b{staging.SUFFIX}").touch()
    (tmp_path / f"c{staging.SUFFIX}").mkdir()
    before = sorted(os.listdir(tmp_path))
    write_atomically(tmp_path / "m", Path.touch)
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "m"])


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        done.append(("flush", os.fstat(handle).st_ino))
        fsync(handle)

    def moved(self: Path, to: Path) -> Path:
        done.append(("move", self.stat().st_ino))
        return replace(self, to)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", moved)
    write(tmp_path, NEW)
    data, model = ((tmp_path / n).stat().st_ino for n in (f"m.onnx.{NEW}.data", "m.onnx"))
    assert done == [
        *(("flush", data), ("flush", model)),
        *(("move", data), ("move", model)),
        ("flush", tmp_path.stat().st_ino),
    ]


class TestModes:
    @pytest.fixture(autouse=True)
    def _umask(self) -> Iterator[None]:
        before = os.umask(0o027)
        yield
        os.umask(before)

    def test_a_new_file_follows_the_umask(self, tmp_path: Path) -> None:
        def save(path: Path) -> None:
            save_with_data(path, NEW)
            path.chmod(0o600)  # as writers do that use files for their own eyes

        write_atomically(tmp_path / "m.onnx", save)
        assert {file.stat().st_mode & 0o7777 for file in tmp_path.iterdir()} == {0o640}

    @pytest.mark.parametrize("mode", [0o600, 0o664, 0o400])
    def test_a_target_keeps_its_mode_and_its_data_get_it(self, tmp_path: Path, mode: int) -> None:
        write(tmp_path, OLD)
        (tmp_path / "m.onnx").chmod(mode)
        write(tmp_path, NEW)
        assert whole(tmp_path) == NEW
        assert {file.stat().st_mode & 0o7777 for file in tmp_path.iterdir()} == {mode}


class TestLinks:
    @pytest.fixture
    def link(self, tmp_path: Path) -> Path:
        """To a file that is not there yet, over another link."""
        for folder in ("here", "there"):
            (tmp_path / folder).mkdir()
        (tmp_path / "here" / "m.onnx").symlink_to("../there/link")
        (tmp_path / "there" / "link").symlink_to(tmp_path / "there" / "real.onnx")
        return tmp_path / "here" / "m.onnx"

    def test_what_it_points_to_is_written(self, link: Path, tmp_path: Path) -> None:
        for name in (NEW, OLD):
            check_target(link, overwrite=False)
            write_atomically(link, lambda path, name=name: save_with_data(path, name))
            there = tmp_path / "there"
            data = f"real.onnx.{name}.data"
            assert sorted(os.listdir(there)) == ["link", "real.onnx", data]
            assert link.read_text() == data
        assert link.is_symlink()
        assert os.listdir(tmp_path / "here") == ["m.onnx"]

    def test_where_it_points_is_checked(self, tmp_path: Path) -> None:
        for name, to in (("loop", "loop"), ("nowhere", "no/m"), ("device", os.devnull)):
            (tmp_path / name).symlink_to(to)
        for name, said in (
            ("loop", "leads to itself"),
            ("nowhere", "no does not exist"),
            ("device", "is a device"),
        ):
            with pytest.raises(UsageError, match=said):
                check_target(tmp_path / name, overwrite=True)


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    """Its data have a name that a model can hold."""
    target = tmp_path / os.fsdecode(b"m\xff.onnx")
    for name in (OLD, NEW):
        write_atomically(target, lambda path, name=name: save_with_data(path, name))
        assert sorted(os.listdir(tmp_path)) == [f"m_.onnx.{name}.data", target.name]


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
