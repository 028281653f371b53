"""What the user recorded becomes a case each, or a sentence that says why not."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bnfold.errors import EnvironmentLacksError, UsageError
from bnfold.runtimes import TensorSpec
from bnfold.verification.input_files import recorded

ONE = [TensorSpec("x", "float32", ("N", 3, 4, 5))]
TWO = [TensorSpec("x", "float32", ("N", 2)), TensorSpec("ids", "int64", ("N", 3))]
X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
PAIR = {"x": X[0, :2, 0, :2], "ids": np.arange(6).reshape(2, 3)}
PIXELS = np.random.default_rng(1).integers(0, 256, (4, 5, 3)).astype(np.uint8)


def test_one_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (case,) = recorded([tmp_path / "x.npy"], ONE)
    assert (case.name, case.given) == ("x.npy", True)
    np.testing.assert_array_equal(case.sample["x"], X)


def test_several_arrays_by_name_or_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=PAIR["ids"], x=PAIR["x"])
    np.savez(tmp_path / "b.npz", PAIR["x"], PAIR["ids"])
    for case in recorded([tmp_path / "a.npz", tmp_path / "b.npz"], TWO):
        assert list(case.sample) == ["x", "ids"]
        for name, array in PAIR.items():
            np.testing.assert_array_equal(case.sample[name], array)


def test_a_folder_gives_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        np.save(tmp_path / f"{name}.npy", X)
    (tmp_path / "notes.txt").write_text("not an input")
    assert [case.name for case in recorded([tmp_path], ONE)] == ["a.npy", "b.npy"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ONE[0], np.moveaxis(PIXELS / 255, -1, 0)[None].astype(np.float32)),
        (TensorSpec("x", "uint8", (2, 4, 5, 3)), np.stack([PIXELS] * 2)),
    ],
)
def test_an_image(tmp_path: Path, spec: TensorSpec, expected: Any) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "cat.png")
    (case,) = recorded([tmp_path / "cat.png"], [spec])
    np.testing.assert_array_equal(case.sample["x"], expected)
    assert case.sample["x"].dtype == expected.dtype


def test_an_image_gets_the_size_and_the_channels_of_the_input(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "cat.png")
    spec = TensorSpec("x", "float32", (1, 1, 8, 6))
    (case,) = recorded([tmp_path / "cat.png"], [spec])
    assert case.sample["x"].shape == (1, 1, 8, 6)
    assert 0 <= case.sample["x"].min() < case.sample["x"].max() <= 1


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _pickled(path: Path) -> None:
    np.save(path, np.array([Bomb(path.with_name("ran"))], object), allow_pickle=True)


def _bare_pickle(path: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps(Bomb(path.with_name("ran"))))


def _saved(array: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, array)


def _zipped(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def _header(path: Path) -> None:
    text = b"{'descr': '<f4', 'shape': (1,\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4))


def _member(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"no array")


def _huge(path: Path) -> None:
    np.save(path, X)
    content = path.read_bytes().replace(b"(2, 3, 4, 5)", b"(9999999999,)")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "specs", "said"),
    [
        ("x.npy", _pickled, ONE, "x.npy: it holds pickled objects, which bnfold never loads"),
        ("x.npy", _bare_pickle, ONE, "it is no array that numpy can read"),
        ("x.npy", lambda p: p.write_bytes(b""), ONE, "it is no array that numpy can read"),
        ("x.npz", lambda p: p.write_bytes(b"PK\x03\x04 no zip"), ONE, "it is no array"),
        ("x.npy", _huge, ONE, "it is no array that numpy can read"),
        ("x.npy", _saved(X[:, :2]), ONE, "the input 'x' is 2x2x4x5:float32, wanted x=Nx3x4x5"),
        ("x.npy", _saved(X.astype(float)), ONE, "the input 'x' is 2x3x4x5:float64, wanted"),
        ("x.npy", _saved(X), TWO, "it is one array, the model takes 2: x, ids"),
        ("x.npz", _zipped(x=PAIR["x"]), TWO, "it lacks the input 'ids'"),
        ("x.npz", _zipped(**PAIR, z=X), TWO, "it has 'z', which is no input of the model"),
        ("x.npy", _header, ONE, "it is no array that numpy can read"),
        ("x.npz", _member, ONE, "it is no array that numpy can read"),
        ("cat.png", lambda p: p.write_bytes(b"\x89PNG no"), ONE, "it is no image that Pillow"),
        ("cat.png", Image.fromarray(PIXELS).save, TWO, "it is an image, the model takes 2"),
        ("cat.png", Image.fromarray(PIXELS).save, TWO[:1], "does not suit the input x=Nx2"),
        ("gone.npy", lambda p: None, ONE, "gone.npy: it cannot be read: No such file"),
    ],
)
def test_what_does_not_suit_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path], Any], specs: list[TensorSpec], said: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(UsageError, match=re.escape(said)):
        list(recorded([tmp_path / name], specs))
    assert not (tmp_path / "ran").exists()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no inputs in it"):
        list(recorded([tmp_path], ONE))


def test_no_image_is_drawn_by_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""

    def forbidden(*arguments: Any, **how: Any) -> None:
        raise AssertionError(f"it starts {arguments}")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    (tmp_path / "cat.png").write_bytes(page)
    with Image.open(tmp_path / "cat.png") as opened:
        assert opened.format == "EPS"
    with pytest.raises(UsageError, match="it is no image that Pillow can read"):
        list(recorded([tmp_path / "cat.png"], ONE))


def test_without_pillow_an_image_needs_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    (tmp_path / "cat.png").touch()
    with pytest.raises(EnvironmentLacksError, match="needs Pillow"):
        list(recorded([tmp_path / "cat.png"], ONE))


def vast_array(path: Path) -> None:
    """A header that speaks of 8 TB, and 24 bytes."""
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(24))


def vast_image(path: Path) -> None:
    """432 MB as pixels, 20 kB as it is stored."""
    Image.new("1", (12000, 12000)).save(path)


def vaster_image(path: Path) -> None:
    """More than Pillow opens."""
    Image.new("1", (40000, 5000)).save(path)


def bomb(path: Path) -> None:
    """200 MB of zeros in 200 kB."""
    np.savez_compressed(path, x=np.zeros(200_000_000, np.uint8))


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("x.npy", vast_array, "it is no array that numpy can read"),
        ("x.npz", bomb, "it would unpack to 0.2 GB, more than its own size explains"),
        ("x.png", vast_image, "it is an image of 12000x12000 pixels"),
        ("x.png", vaster_image, "it is too large an image"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(
    name: str, write: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(UsageError, match=re.escape(said)):
        next(recorded([tmp_path / name], ONE))
