"""Weights without a network: state_dicts, checkpoints and safetensors, and zip archives around."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.hostile.case import HARMLESS, OPENED, REFUSED, TORCH, Corpus
from tests.hostile.payload import NAMES
from tests.hostile.pickles import LAUGHS, call, number, several, tensor, text, zipped

FACTORY = ("--model", "tests.hostile.factories:small", "--input", "1x3x8x8")
CORPUS = Corpus("weights", TORCH, FACTORY)


def state() -> OrderedDict[str, torch.Tensor]:
    from tests.hostile.factories import small

    return OrderedDict(small().state_dict())


def saved(found: Any, folder: Path) -> Path:
    torch.save(found, folder / "m.pt")
    return folder / "m.pt"


def with_entries(**entries: Any) -> Callable[[Path], Path]:
    return lambda folder: saved(OrderedDict({**state(), **entries}), folder)


def said(**changes: Any) -> dict[str, Callable[[Path], Path]]:
    """A file that says it was folded so, in both formats."""
    return {"pt": partial(_said_in_pt, changes), "safetensors": partial(_said_in_header, changes)}


def _said_in_pt(changes: Mapping[str, Any], folder: Path) -> Path:
    found = state()
    found.bnfold = changes  # type: ignore[attr-defined]
    return saved(found, folder)


def _said_in_header(changes: Mapping[str, Any], folder: Path) -> Path:
    tensors = {name: value.contiguous() for name, value in state().items()}
    save_file(tensors, folder / "m.safetensors", {"bnfold": json.dumps(changes)})
    return folder / "m.safetensors"


SAID: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "a method is a parameter": ({"parameters": ["a.forward"]}, REFUSED),
    "a dunder is a parameter": ({"parameters": ["a.__class__"]}, REFUSED),
    "the tables of a module are a parameter": ({"parameters": ["a._parameters"]}, REFUSED),
    "a module is a parameter": ({"parameters": ["a"]}, REFUSED),
    "forward is an identity": ({"identity": ["forward"]}, REFUSED),
    "a method is an identity": ({"identity": ["a.forward"]}, REFUSED),
    "a dunder is an identity": ({"identity": ["__class__"]}, REFUSED),
    "everything is an identity": ({"identity": [""]}, REFUSED),
    "a weight is an identity": ({"identity": ["a.weight"]}, REFUSED),
    "nothing is an identity": ({"identity": ["nowhere.at.all"]}, REFUSED),
    "numbers for names": ({"identity": [3], "parameters": [None]}, REFUSED),
    "a text for names": ({"identity": "ab", "parameters": "ab"}, REFUSED),
    "a number for names": ({"identity": 7, "parameters": 7}, REFUSED),
    "a table for names": ({"plain": {}, "identity": {"a": 1}}, HARMLESS),
    "a million names": ({"parameters": [f"a.p{i}" for i in range(300_000)]}, REFUSED),
    "a name in a million parts": ({"identity": ["a" + ".a" * 500_000]}, REFUSED),
    "other things": ({"factory": "os:system", "run": "touch mark"}, HARMLESS),
    "everything is plain": ({"plain": ["a.weight", "__class__"]}, HARMLESS),
}
for what, (changes, codes) in SAID.items():
    for form, make in said(**changes).items():
        CORPUS.add(f"it says that {what}, {form}", make, codes=codes, commands=OPENED)

for what, name in NAMES.items():
    if what != "half a surrogate":
        extra = {f"a.{name}": torch.zeros(4)}
        CORPUS.add(f"a weight's name: {what}", with_entries(**extra), commands=OPENED)
for what in ("closing double quotes", "new lines", "escapes", "a method"):
    for form, make in said(parameters=[f"a.{NAMES[what]}"], identity=[]).items():
        CORPUS.add(
            f"a parameter that it adds: {what}, {form}",
            make,
            commands=(*OPENED, "fold graph", "export pt2", "verify candidate"),
        )


def itself(folder: Path) -> Path:
    found: dict[str, Any] = {}
    found["state_dict"] = found["model"] = found
    return saved(found, folder)


def nested(depth: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        found: Any = state()
        for _ in range(depth):
            found = {"state_dict": found, "model": found}
        return saved(found, folder)

    return make


def quantised(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has other ways to quantise by now
        weight = torch.quantize_per_tensor(torch.ones(4, 3, 3, 3), 0.1, 0, torch.qint8)
    return with_entries(**{"a.weight": weight})(folder)


CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], tuple[int, ...]]] = {
    "a checkpoint in itself": (itself, REFUSED),
    "a checkpoint in a checkpoint, 200 times": (nested(200), HARMLESS),
    "300,000 names": (with_entries(**{f"n{i}": 1 for i in range(300_000)}), HARMLESS),
    "weights that are texts": (with_entries(**{"a.weight": "x"}), REFUSED),
    "weights that are None": (with_entries(**{"a.weight": None}), REFUSED),
    "weights of no dimensions": (with_entries(**{"a.weight": torch.ones(())}), REFUSED),
    "weights of complex numbers": (
        with_entries(**{"a.weight": torch.ones(4, 3, 3, 3, dtype=torch.complex64)}), HARMLESS),
    "weights of bits": (
        with_entries(**{"a.weight": torch.ones(4, 3, 3, 3, dtype=torch.bool)}), HARMLESS),
    "sparse weights": (
        with_entries(**{"a.weight": torch.ones(4, 3, 3, 3).to_sparse()}), HARMLESS),
    "quantised weights": (quantised, HARMLESS),
    "a variance of -1": (with_entries(**{"b.running_var": -torch.ones(4)}), HARMLESS),
    "a variance of NaN": (with_entries(**{"b.running_var": torch.full((4,), torch.nan)}), HARMLESS),
    "weights without end": (
        with_entries(**{"a.weight": torch.full((4, 3, 3, 3), torch.inf)}), HARMLESS),
    "names that are numbers": (lambda d: saved({7: torch.ones(1), **state()}, d), REFUSED),
    "names that are tuples": (lambda d: saved({("a", "b"): torch.ones(1)}, d), REFUSED),
    "an empty table": (lambda d: saved({}, d), REFUSED),
    "a list": (lambda d: saved([1, 2], d), REFUSED),
    "a number": (lambda d: saved(3, d), REFUSED),
    "a tensor": (lambda d: saved(torch.ones(3), d), REFUSED),
}  # fmt: skip
for what, (make, codes) in CHECKPOINTS.items():
    CORPUS.add(what, make, codes=codes, commands=OPENED)
PICKLED = {
    "a weight of 2^60, strides of 0": b"}" + text("a.weight")
    + tensor(several(1 << 60), several(0)) + b"s",
    "a weight with an offset of 2^60": b"}" + text("a.weight")
    + tensor(several(4), several(1), number(1 << 60)) + b"s",
    "a laugh as a name": b"}" + LAUGHS + b"Ns",
    "a laugh as a value": b"}" + text("a.weight") + LAUGHS + b"s",
    "attributes of the table that are methods": call("collections.OrderedDict") + b"}("
    + text("keys") + b"N" + text("items") + b"N" + text("_metadata") + b"K\x03ub",
}  # fmt: skip
for what, code in PICKLED.items():
    CORPUS.add(what, lambda d, c=code: zipped(c, d / "m.pt"), commands=OPENED)


def header(
    content: Any, data: bytes = bytes(64), length: int | None = None
) -> Callable[[Path], Path]:
    """A safetensors file by its header: JSON, or bytes as they are."""

    def make(folder: Path) -> Path:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        size = len(text) if length is None else length
        path = folder / "m.safetensors"
        path.write_bytes(struct.pack("<Q", size) + text + data)
        return path

    return make


def entry(shape: Any = (4,), offsets: Any = (0, 16), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, Callable[[Path], Path]] = {
    "a header of 2^60": header({"a": 1}, length=1 << 60),
    "a header of 4 GB": header({"a": 1}, length=(1 << 32) - 1),
    "a header of 0": header({"a": entry()}, length=0),
    "a header that ends in the middle": header({"a": entry()}, length=7),
    "weights that overlap": header({"a": entry(), "b": entry(offsets=(8, 24))}),
    "weights past the end": header({"a": entry((1000,), (0, 4000))}),
    "weights of 2^62": header({"a": entry((1 << 62,), (0, 16))}),
    "sizes that overflow": header({"a": entry((1 << 32, 1 << 32), (0, 0))}),
    "offsets that overflow": header({"a": entry(offsets=((1 << 64) - 4, 12))}),
    "offsets of -1": header({"a": entry(offsets=(-4, 12))}),
    "offsets backwards": header({"a": entry(offsets=(16, 0))}),
    "offsets that are texts": header({"a": entry(offsets=("0", "16"))}),
    "sizes of -1": header({"a": entry((-4,))}),
    "a size of 1.5": header({"a": entry((1.5,))}),
    "a type of its own": header({"a": entry(dtype="F9999")}),
    "a type that is a table": header({"a": entry(dtype={})}),
    "one name twice": header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
                             b'"a":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}'),
    "a header 100,000 deep": header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "metadata 100,000 deep": header(
        {"__metadata__": {"bnfold": "[" * 100_000 + "]" * 100_000}}, b""),
    "metadata that are a number": header({"__metadata__": {"bnfold": "7"}}, b""),
    "metadata that are a list": header({"__metadata__": {"bnfold": "[1, 2]"}}, b""),
    "a number of 100,000 digits in metadata": header(
        {"__metadata__": {"bnfold": '{"plain": ' + "9" * 100_000 + "}"}}, b""),
    "metadata that are no texts": header({"__metadata__": {"bnfold": 7}}, b""),
    "200,000 weights": header(
        {f"w{i}": entry((0,), (0, 0)) for i in range(200_000)}, b""),
    "a name of a million characters": header({"n" * 1_000_000: entry()}, bytes(16)),
    "half a surrogate in a name": header(
        b'{"a\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(16)),
    "a terminal's commands in a name": header({"\x1b[2J\x07": entry()}, bytes(16)),
    "spaces without end": header(b"{" + b" " * 5_000_000 + b"}", b""),
    "a header in UTF-16": header('{"a": 1}'.encode("utf-16")),
    "numbers that are none": header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
}  # fmt: skip
for what, make in HEADERS.items():
    CORPUS.add(f"safetensors: {what}", make, commands=TORCH if "overlap" in what else OPENED)


def archive(change: Callable[[zipfile.ZipFile], Any]) -> Callable[[Path], Path]:
    """What torch.save wrote, with more in it."""

    def make(folder: Path) -> Path:
        path = saved(state(), folder)
        with zipfile.ZipFile(path, "a") as members:
            change(members)
        return path

    return make


def patched(change: Callable[[bytearray], Any]) -> Callable[[Path], Path]:
    """What torch.save wrote, with its bytes changed."""

    def make(folder: Path) -> Path:
        path = saved(state(), folder)
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)
        return path

    return make


def member(name: str, content: bytes = b"x") -> Callable[[zipfile.ZipFile], Any]:
    def add(members: zipfile.ZipFile) -> None:
        entry = zipfile.ZipInfo("x")
        entry.filename = name
        members.writestr(entry, content)

    return add


def bomb(size: int) -> Callable[[zipfile.ZipFile], Any]:
    def add(members: zipfile.ZipFile) -> None:
        with members.open(zipfile.ZipInfo("m/data/bomb"), "w") as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))

    return add


def zipped_bomb(folder: Path) -> Path:
    """A pickle of a gigabyte that packs a thousandfold."""
    path = folder / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as members:
        with members.open("m/data.pkl", "w") as file:
            file.write(b"\x80\x02")
            for _ in range(1024):
                file.write(b"N0" * (1 << 19))
            file.write(b"}.")
        members.writestr("m/version", "3\n")
    return path


def overlapping(folder: Path) -> Path:
    """A thousand members that are all the same bytes."""
    path = folder / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("m/data.pkl", b"\x80\x02}.")
        members.writestr("m/data/0", bytes(1 << 22))
        template = members.infolist()[1]
        for i in range(1000):
            other = zipfile.ZipInfo(f"m/data/{i + 1}")
            for what in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(other, what, getattr(template, what))
            members.filelist.append(other)
            members.NameToInfo[other.filename] = other
        members._didModify = True  # type: ignore[attr-defined]
    return path


def nested_archives(folder: Path) -> Path:
    content = b"\x80\x02}."
    for _ in range(50):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as members:
            members.writestr("m/data.pkl", content)
        content = stream.getvalue()
    (folder / "m.pt").write_bytes(content)
    return folder / "m.pt"


def flag(marker: bytes, offset: int, value: int, last: bool = True) -> Callable[[bytearray], Any]:
    """A byte beyond a marker set to a value."""

    def change(content: bytearray) -> None:
        where = content.rindex(marker) if last else content.index(marker)
        content[where + offset] = value

    return change


CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
ARCHIVES: dict[str, tuple[Callable[[Path], Path], tuple[int, ...]]] = {
    "a member above its folder": (archive(member("archive/../../mark")), REFUSED),
    "a member at an absolute path": (archive(member("/tmp/mark")), REFUSED),
    "a member with a backslash": (archive(member("archive\\..\\mark")), REFUSED),
    "a member of no name": (archive(member("")), HARMLESS),
    "a member of 60,000 characters": (archive(member("m/" + "n" * 60_000)), HARMLESS),
    "a member with a terminal's commands": (archive(member("m/\x1b[2J\x07")), REFUSED),
    "a member written right to left": (archive(member("m/a\u202egpj.exe")), HARMLESS),
    "a second pickle in capitals": (archive(member("m/DATA.PKL", b"\x80\x02N.")), HARMLESS),
    "a second pickle elsewhere": (archive(member("z/data.pkl", b"\x80\x02N.")), HARMLESS),
    "100,000 members": (
        archive(lambda z: [z.writestr(f"m/{i}", b"") for i in range(100_000)]), HARMLESS),
    "a member of 300 MB in 300 KB": (
        lambda d: zip_with(bomb(300 << 20), d), REFUSED),
    "a pickle of 1 GB in 1 MB": (zipped_bomb, REFUSED),
    "1,000 members that are one": (overlapping, REFUSED),
    "archives in archives": (nested_archives, REFUSED),
    "an encrypted member": (patched(flag(CENTRAL, 8, 1)), REFUSED),
    "a compression of its own": (patched(flag(CENTRAL, 10, 99)), HARMLESS),
    "a wrong checksum": (patched(flag(CENTRAL, 16, 0x5A, last=False)), HARMLESS),
    "a size that is not so": (patched(flag(CENTRAL, 26, 0x7F, last=False)), REFUSED),
    "an offset past the end": (patched(flag(CENTRAL, 45, 0x7F, last=False)), REFUSED),
    "a directory of 65,535": (patched(flag(END, 10, 0xFF)), HARMLESS),
    "a directory past the end": (patched(flag(END, 19, 0x7F)), HARMLESS),
    "a version of 10^30": (archive(member("m/version", b"9" * 30)), HARMLESS),
    "a local name of another": (patched(flag(LOCAL, 31, 0x58, last=False)), HARMLESS),
    "two directories": (patched(lambda c: c.extend(bytes(c))), HARMLESS),
    "an end of the directory in a comment": (
        patched(lambda c: c.extend(END + bytes(18))), HARMLESS),
}  # fmt: skip


def zip_with(change: Callable[[zipfile.ZipFile], Any], folder: Path) -> Path:
    path = folder / "m.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as members:
        members.writestr("m/data.pkl", b"\x80\x02}.")
        change(members)
    return path


for what, (make, codes) in ARCHIVES.items():
    CORPUS.add(f"zip: {what}", make, codes=codes, commands=OPENED)
