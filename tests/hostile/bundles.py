"""Golden bundles: an archive whose manifest and arrays say other things than they are."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.case import HARMLESS, REFUSED, Corpus
from tests.hostile.payload import EXPRESSION, joined

CORPUS = Corpus("golden", ("verify golden", "verify reference", "inspect", "fold"))
READ = ("verify golden", "verify reference")

Members = dict[str, bytes]
MANIFEST = "golden.json"


@functools.cache
def bundle() -> Members:
    """A bundle of the good model."""
    from bnfold import golden
    from tests.hostile.meeting import good

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.npz"
        golden(good(Path(folder) / "good.onnx")).save(path)
        with zipfile.ZipFile(path) as members:
            return {name: members.read(name) for name in members.namelist()}


def sealed(manifest: Any) -> bytes:
    """The manifest with a digest that is right."""
    manifest.pop("digest", None)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "digest": digest}).encode()


def changed(change: Callable[[Any, Members], Any]) -> Callable[[Path], Path]:
    """The bundle with its manifest or members changed, and a digest that fits."""

    def make(folder: Path) -> Path:
        members = dict(bundle())
        manifest = json.loads(members.pop(MANIFEST))
        change(manifest, members)
        return joined({MANIFEST: sealed(manifest), **members}, folder / "m.golden.npz")

    return make


def at(*path: Any, value: Any) -> Callable[[Path], Path]:
    def change(manifest: Any, members: Members) -> None:
        *way, last = path
        place = manifest
        for key in way:
            place = place[key]
        place[last] = value

    return changed(change)


def array(content: bytes) -> Callable[[Path], Path]:
    """The bundle with another first input, whose hash fits."""

    def change(manifest: Any, members: Members) -> None:
        record = next(iter(manifest["cases"][0]["input"].values()))
        members[record["member"]] = content
        record["sha256"] = hashlib.sha256(content).hexdigest()

    return changed(change)


def npy(description: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An .npy by the text of its header."""
    text = description.encode() + b"\n"
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + text + data


def described(dtype: str, shape: str, order: str = "False") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"


ARRAYS = {
    "of 2^62 numbers": npy(described("'<f4'", f"({1 << 62},)")),
    "of sizes that overflow": npy(described("'<f4'", f"({1 << 32}, {1 << 32})")),
    "of -1 numbers": npy(described("'<f4'", "(-1,)")),
    "of objects": npy(described("'|O'", "(1,)"), b"\x80\x02cposix\nmkdir\nX\x04\0\0\0mark\x85R."),
    "of fields": npy(described("[('a', '|O'), ('b', '<f4')]", "(1,)")),
    "by an expression": npy(described(EXPRESSION, "(1,)")),
    "by a header 10,000 deep": npy("(" * 10_000 + ")" * 10_000),
    "of version 3": npy(described("'<f4'", "(1,)"), bytes(4), b"\x03\x00"),
    "of texts": npy(described("'<U1000000'", "(1,)"), bytes(4)),
    "of dates": npy(described("'<M8[s]'", "(1,)"), bytes(8)),
    "of none": npy(described("'|V0'", f"({1 << 62},)")),
    "that is empty": b"",
    "that is no array": b"hello",
}
for what, content in ARRAYS.items():
    CORPUS.add(f"an array {what}", array(content), commands=READ)

CASE = ("cases", 0)
MANIFESTS: dict[str, tuple[Callable[[Path], Path], tuple[int, ...]]] = {
    "a version of 10^30": (at("schema_version", value=10**30), REFUSED),
    "no cases": (at("cases", value=[]), REFUSED),
    "cases that are a number": (at("cases", value=7), REFUSED),
    "a member outside": (at(*CASE, "input", "input", "member", value="../../etc/passwd"), REFUSED),
    "a member that is itself": (at(*CASE, "input", "input", "member", value=MANIFEST), REFUSED),
    "a type of its own": (at(*CASE, "input", "input", "dtype", value=EXPRESSION), REFUSED),
    "a type of objects": (at(*CASE, "input", "input", "dtype", value="object"), REFUSED),
    "a case of a strange name": (at(*CASE, "name", value="\x1b[2J\u202ex"), HARMLESS),
    "a case of a long name": (at(*CASE, "name", value="n" * 100_000), HARMLESS),
    "places that are strange": (at(*CASE, "runs", value={EXPRESSION: {}}), REFUSED),
    "free sizes of 10^18": (at("free", value={"input": {str(10**18): "N"}}), HARMLESS),
    "free sizes of -9": (at("free", value={"input": {"-9": "N"}}), HARMLESS),
    "free sizes that are texts": (at("free", value={"input": {"x": "N"}}), REFUSED),
    "a scatter of texts": (at(*CASE, "scatter", value={"cpu": [["a", "b", "c"]]}), REFUSED),
    "a scatter of infinity": (
        at(*CASE, "scatter", value={"cpu": [[1e308, 1e308, 1e308]]}), HARMLESS),
    "seeds that are texts": (at("seeds", value=["touch mark"]), HARMLESS),
    "notes of 100,000 characters": (at("notes", value=["n" * 100_000]), HARMLESS),
    "notes with a terminal's commands": (at("notes", value=["\x1b[2J\x07\u202ex"]), HARMLESS),
    "notes that are no list": (at("notes", value=7), REFUSED),
    "a source that is a list": (at("source", value=[1, 2]), HARMLESS),
    "no float64": (at(*CASE, "float64", value=None), HARMLESS),
    "no outputs": (at(*CASE, "float64", value={}), REFUSED),
}  # fmt: skip
for what, (make, codes) in MANIFESTS.items():
    CORPUS.add(what, make, codes=codes, commands=READ)


def archived(members: Members, compression: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "m.golden.npz"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return make


RAW = {
    "a manifest 100,000 deep": archived({MANIFEST: b"[" * 100_000}),
    "a manifest that is a number": archived({MANIFEST: b"7"}),
    "a manifest that is empty": archived({MANIFEST: b""}),
    "a number of 100,000 digits": archived({MANIFEST: b"9" * 100_000}),
    "a manifest that is not UTF-8": archived({MANIFEST: b"\xff\xfe"}),
    "a manifest of 300 MB in 300 KB": archived(
        {MANIFEST: b" " * (300 << 20)}, zipfile.ZIP_DEFLATED
    ),
    "a manifest without a digest": archived({MANIFEST: b"{}"}),
}
for what, make in RAW.items():
    CORPUS.add(what, make, commands=CORPUS.commands)
