"""Nothing in a pickle runs unless its user says so."""

from __future__ import annotations

import argparse
import collections
import functools
import os
import pickle
import sys
import tarfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import weight_norm

from bnfold.errors import ModelError, UntrustedError, UsageError
from bnfold.formats.pytorch.allowing import resolve
from bnfold.formats.pytorch.pickles import unpickle


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def plainly(entry: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(entry))


def in_the_older_format(entry: Any, path: Path) -> None:
    torch.save(entry, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "older format": in_the_older_format,
    "plain pickle": plainly,
    "protocol 2": lambda entry, path: path.write_bytes(pickle.dumps(entry, protocol=2)),
}


@pytest.fixture(params=WRITERS)
def write(request: Any) -> Callable[[Any, Path], None]:
    return WRITERS[request.param]


@pytest.mark.parametrize(
    "wrap",
    [lambda p: p, lambda p: {"w": torch.ones(2), "x": p}, lambda p: {"state_dict": {"w": p}}],
)
def test_nothing_runs_and_the_global_is_named(wrap: Any, write: Any, tmp_path: Path) -> None:
    write(wrap(Payload(tmp_path / "ran")), tmp_path / "m.pt")
    with pytest.raises(UntrustedError, match=r"mkdir") as caught:
        unpickle(tmp_path / "m.pt")
    assert f"{os.name}.mkdir" in caught.value.needed
    assert not (tmp_path / "ran").exists()


def test_trust_runs_it(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "ran"), tmp_path / "m.pt")
    unpickle(tmp_path / "m.pt", trust=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()),
        nn.ModuleList([nn.LSTM(3, 4), nn.MultiheadAttention(8, 2), nn.Upsample(scale_factor=2)]),
        nn.TransformerEncoderLayer(8, 2),
        nn.TransformerEncoderLayer(8, 2, activation="gelu"),
        weight_norm(nn.Conv2d(3, 4, 3)),
    ],
    ids=["Sequential", "LSTM and more", "relu", "gelu", "weight_norm"],
)
def test_torchs_own_layers_open_without_a_flag(layer: nn.Module, tmp_path: Path) -> None:
    torch.save(layer, tmp_path / "m.pt")
    assert type(unpickle(tmp_path / "m.pt")) is type(layer)


@pytest.mark.parametrize(
    "entry",
    [argparse.Namespace(lr=0.1), slice(1, 3), functools.partial(nn.BatchNorm2d, eps=1e-3)],
    ids=["Namespace", "slice", "partial"],
)
def test_plain_data_of_the_system_opens_without_a_flag(entry: Any, tmp_path: Path) -> None:
    torch.save({"x": entry, "path": Path("a/b")}, tmp_path / "m.pt")
    found = unpickle(tmp_path / "m.pt")
    assert repr(found) == repr({"x": entry, "path": Path("a/b")})


def test_numbers_of_numpy_open_without_a_flag(write: Any, tmp_path: Path) -> None:
    entry = {
        "scalars": [np.float64(0.5), np.int64(-3), np.bool_(True), np.complex64(1j)],
        "arrays": [np.arange(6.0).reshape(2, 3).T, np.zeros((0, 2)), np.arange(3, dtype=">i4")],
        "numbers": np.array(7),
    }
    write(entry, tmp_path / "m.pt")
    found = unpickle(tmp_path / "m.pt")
    assert found["scalars"] == entry["scalars"]
    assert [type(x) for x in found["scalars"]] == [type(x) for x in entry["scalars"]]
    for got, wanted in zip(found["arrays"], entry["arrays"], strict=True):
        assert np.array_equal(got, wanted)
        assert got.dtype.str[1:] == wanted.dtype.str[1:]
    torch.save(found, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=False)
    assert [type(x) for x in (*again["arrays"], again["numbers"])] == [np.ndarray] * 4


HOSTILE_NUMBERS = {
    "objects": np.array([None, "x"], dtype=object),
    "structures": np.zeros(2, dtype=[("a", "i4"), ("b", "O")]),
    "texts": np.array(["x"]),
}


@pytest.mark.parametrize("kind", HOSTILE_NUMBERS)
def test_other_things_in_an_array_are_refused(kind: str, tmp_path: Path) -> None:
    torch.save({"x": HOSTILE_NUMBERS[kind]}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="no type of plain numbers"):
        unpickle(tmp_path / "m.pt")


class Described:
    """An array with a shape, type and content of one's own, as NumPy would write it."""

    def __init__(self, shape: Any, content: bytes, kind: Any = None) -> None:
        self.state = (1, shape, kind or np.dtype("f4"), False, content)

    def __reduce__(self) -> Any:
        make, arguments, _ = np.zeros(1).__reduce__()  # type: ignore[misc]
        return make, arguments, self.state


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (Described((1 << 40,), b"abcd"), "more or fewer numbers than its shape says"),
        (Described((-1,), b"abcd"), "no proper shape"),
        (Described((1,), b"abcd", 3), "other things than plain numbers"),
        (Described((1,), [1.0]), "other things than plain numbers"),
    ],
)
def test_arrays_that_lie_are_damaged(entry: Any, said: str, tmp_path: Path) -> None:
    torch.save({"x": entry}, tmp_path / "m.pt")
    with pytest.raises(ModelError, match=said):
        unpickle(tmp_path / "m.pt")


SHARED = ["module", {"module": 1}]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(protocol: int, tmp_path: Path) -> None:
    entry = {
        "texts": ["", "é", "x" * 300, "\ud800"],
        "bytes": [b"", b"\x00\xff" * 300],
        "bytearray": bytearray(b"abc"),
        "sets": [set(), {1, 2, 3}, {"a"}],
        "numbers": [True, False, None, 0, -1, 255, 1 << 20, 1 << 40, -(1 << 70), 0.5],
        "many": [{"a": (i, str(i))} for i in range(600)],
        "shared": [SHARED, SHARED, (1, 2, 3, SHARED, 5)],
        "size": torch.Size([1, 2]),
        "w": torch.arange(3.0),
    }
    torch.save(entry, tmp_path / "m.pt", pickle_protocol=protocol)
    found = unpickle(tmp_path / "m.pt")
    assert torch.equal(found.pop("w"), entry.pop("w"))
    assert found == entry
    assert found["shared"][0] is found["shared"][1]


def test_containers_of_the_system_can_be_allowed(tmp_path: Path) -> None:
    torch.save({"x": collections.defaultdict(list)}, tmp_path / "m.pt")
    with pytest.raises(UntrustedError) as caught:
        unpickle(tmp_path / "m.pt")
    assert "--allow builtins.list --allow collections.defaultdict" in str(caught.value.hint)
    assert unpickle(tmp_path / "m.pt", caught.value.needed) == {"x": {}}


class Wrapped(nn.Module):
    """A class with source code, two layers of one class, and a child called "module"."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.DataParallel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.GELU()))
        self.tied = self.module.module[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.module(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "write",
    [*WRITERS.values(), functools.partial(torch.save, pickle_protocol=4)],
    ids=[*WRITERS, "protocol 4"],
)
def test_modules_of_any_age_open_without_trust(write: Any, tmp_path: Path) -> None:
    module = Wrapped()
    write(module, tmp_path / "m.pt")
    with pytest.raises(UntrustedError) as caught:
        unpickle(tmp_path / "m.pt")
    found = unpickle(tmp_path / "m.pt", caught.value.needed)
    assert repr(found) == repr(module)
    assert found.tied is found.module.module[1]
    for name, tensor in module.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_a_storage_of_a_plain_pickle_is_only_a_storage(tmp_path: Path) -> None:
    inner = tmp_path / "inner.pt"
    in_the_older_format(Payload(tmp_path / "ran"), inner)

    class Storage:
        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (inner.read_bytes(),)

    plainly({"w": Storage()}, tmp_path / "m.pt")
    with pytest.raises(UntrustedError, match="a storage is something else"):
        unpickle(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


def test_a_tar_archive_in_disguise_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    head = (tmp_path / "m.pt").read_bytes()[:15]
    with tarfile.open(tmp_path / "m.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    content = bytearray((tmp_path / "m.pt").read_bytes())
    pickles = head + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + b"\x80\x02}."
    content[: len(pickles)] = pickles
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    (tmp_path / "m.pt").write_bytes(content)
    assert tarfile.is_tarfile(tmp_path / "m.pt")
    with pytest.raises(ModelError, match="it is a tar archive as well"):
        unpickle(tmp_path / "m.pt")


@pytest.mark.parametrize("write", [torch.save, in_the_older_format], ids=["zip", "older"])
def test_a_layer_that_this_torch_does_not_have(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = type("FutureNorm", (nn.Module,), {"__module__": "torch.nn.modules.batchnorm"})
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.modules.batchnorm.FutureNorm", future, raising=False)
        write(nn.Sequential(future()), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"FutureNorm, which torch .* does not have") as caught:
        unpickle(tmp_path / "m.pt")
    assert "--model" in str(caught.value.hint)


def test_weights_without_values(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4, device="meta"), tmp_path / "m.pt")
    with pytest.raises(ModelError, match=r"has no values for .*weight|bias"):
        unpickle(tmp_path / "m.pt")


@pytest.fixture
def stranger(tmp_path: Path) -> Any:
    """An object of a class in a module that leaves a marker when it is imported."""
    module = types.ModuleType("stranger_module")

    class Stranger:
        pass

    Stranger.__module__, Stranger.__qualname__ = "stranger_module", "Stranger"
    module.Stranger = Stranger  # type: ignore[attr-defined]
    sys.modules["stranger_module"] = module
    yield Stranger()
    sys.modules.pop("stranger_module", None)


class TestAllowing:
    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "stranger_module.py").write_text(
            f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Stranger: pass\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))

    def test_a_name_is_not_imported(self, stranger: Any, write: Any, tmp_path: Path) -> None:
        write(stranger, tmp_path / "m.pt")
        del sys.modules["stranger_module"]
        with pytest.raises(UntrustedError) as caught:
            unpickle(tmp_path / "m.pt")
        assert caught.value.needed == ("stranger_module.Stranger",)
        assert "--allow stranger_module.Stranger" in str(caught.value.hint)
        assert "stranger_module" not in sys.modules
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("name", ["stranger_module.Stranger", "stranger_module:Stranger"])
    def test_an_allowed_class_is_built(self, stranger: Any, tmp_path: Path, name: str) -> None:
        torch.save({"a": stranger}, tmp_path / "m.pt")
        found = unpickle(tmp_path / "m.pt", [name])
        assert type(found["a"]) is type(stranger)

    def test_trust_needs_the_code(self, stranger: Any, tmp_path: Path) -> None:
        torch.save(stranger, tmp_path / "m.pt")
        del sys.modules["stranger_module"]
        (tmp_path / "stranger_module.py").unlink()
        with pytest.raises(ModelError, match="needs code that is not here"):
            unpickle(tmp_path / "m.pt", trust=True)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("writer", [torch.save, in_the_older_format], ids=["zip", "older"])
def test_truncated_files_are_damaged(
    writer: Any, share: float, trust: bool, tmp_path: Path
) -> None:
    writer({"weight": torch.randn(300)}, tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(whole[: 4 + int(share * (len(whole) - 4))])
    with pytest.raises(ModelError, match=r"damaged or no PyTorch file") as caught:
        unpickle(tmp_path / "m.pt", trust=trust)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UntrustedError)


@pytest.mark.parametrize("content", [b"\x80\x02garbage", bytes(range(256)), b"\x80\x04K\x01"])
def test_garbage_is_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ModelError, match="damaged or no PyTorch file"):
        unpickle(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os", "does not name anything"),
        ("os:", "does not name anything"),
        ("nowhere.at.all", "cannot import"),
        ("os.nothing", "has no nothing"),
    ],
)
def test_what_does_not_resolve(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(name)


def test_a_module_that_fails_on_import_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_module.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UsageError, match="division by zero"):
        resolve("failing_module:make")


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_whose_methods_are_something_else(nested: bool, tmp_path: Path) -> None:
    """What reads it would call them."""
    table: Any = collections.OrderedDict(w=torch.ones(2))
    table._metadata = {"": {"version": 1}}
    torch.save({"inner": table} if nested else table, tmp_path / "m.pt")
    unpickle(tmp_path / "m.pt")
    table.update = 3
    torch.save({"inner": table} if nested else table, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="a value called 'update' in the place of a method"):
        unpickle(tmp_path / "m.pt")
