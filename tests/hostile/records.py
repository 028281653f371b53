"""Recorded inputs: arrays that would be unpickled, and archives and images that unpack to much."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.bundles import ARRAYS, described, npy
from tests.hostile.case import HARMLESS, Corpus

CORPUS = Corpus("recorded", ("verify recorded", "golden recorded", "fold recorded"))
READ = ("verify recorded", "golden recorded")
GOOD = np.zeros((1, 3, 8, 8), np.float32)


def filed(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


for what, content in ARRAYS.items():
    CORPUS.add(f"an array {what}", filed("x.npy", content), commands=READ)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("mark",)


def pickled(folder: Path) -> Path:
    np.save(folder / "x.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    return folder / "x.npy"


def pickled_member(folder: Path) -> Path:
    np.savez(folder / "x.npz", input=np.array([Evil()], dtype=object))
    return folder / "x.npz"


def zipped(members: dict[str, bytes], name: str = "x.npz") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return folder / name

    return make


def bomb(folder: Path) -> Path:
    """An input of 2 GB that packs to 10 MB."""
    with (
        zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("input.npy", "w", force_zip64=True) as file,
    ):
        file.write(npy(described("'<f4'", f"({1 << 29},)")))
        for _ in range(2048):
            file.write(bytes(1 << 20))
    return folder / "x.npz"


def valued(value: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "x.npy", np.full_like(GOOD, value))
        return folder / "x.npy"

    return make


def saved(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(width: int, height: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG of grey values by what its header says and its packed rows."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def packed(size: int) -> bytes:
    """So many zeros, packed."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join(parts) + packer.flush()


FILES: dict[str, tuple[Callable[[Path], Path], tuple[int, ...]]] = {
    "an array that is pickled": (pickled, (2, 3)),
    "a member that is pickled": (pickled_member, (2, 3)),
    "a pickle": (filed("x.npy", b"\x80\x02cposix\nmkdir\nX\x04\0\0\0mark\x85R."), (2, 3)),
    "2 GB in 10 MB": (bomb, (2, 3)),
    "names that are paths": (zipped({"../../mark.npy": saved(GOOD)}), (2, 3)),
    "a name with a terminal's commands": (zipped({"\x1b[2J\u202e.npy": saved(GOOD)}), (2, 3)),
    "100,000 arrays": (zipped({f"{i}.npy": b"" for i in range(100_000)}), (2, 3)),
    "members that are no arrays": (zipped({"input.npy": b"hello"}), (2, 3)),
    "no members": (zipped({}), (2, 3)),
    "NaN": (valued(float("nan")), HARMLESS),
    "infinity": (valued(float("inf")), HARMLESS),
    "an image of 6 GB": (filed("x.png", png(80_000, 80_000, packed(64 << 20))), (2, 3)),
    "an image of 2^31 rows": (filed("x.png", png(2**31 - 1, 2**31 - 1, b"")), (2, 3)),
    "an image of 150 megapixels": (
        filed("x.png", png(12_000, 12_500, packed(150 << 20))), HARMLESS),
    "an image of 0 rows": (filed("x.png", png(0, 0, b"")), (2, 3)),
    "an image that is cut short": (filed("x.png", png(8, 8, b"")[:40]), (2, 3)),
    "an image with a text of 1 GB": (
        filed("x.png", png(8, 8, zlib.compress(bytes(72)),
              chunk(b"zTXt", b"a\0\0" + packed(256 << 20)))), HARMLESS),
    "an image that is a program for a printer": (
        filed("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(mark) (w) file\n"),
        (2, 3)),
    "a GIF of 60,000 by 60,000": (
        filed("x.gif", b"GIF89a\x60\xea\x60\xea\x80\x00\x00\0\0\0\xff\xff\xff"
              b",\0\0\0\0\x60\xea\x60\xea\0\x02\x02D\x01\0;"), (2, 3)),
    "a TIFF of 2^31": (
        filed("x.tif", b"II*\0\x08\0\0\0\x02\0\0\x01\x04\0\x01\0\0\0\xff\xff\xff\x7f"
              b"\x01\x01\x04\0\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0"), (2, 3)),
    "a BMP of -2^31": (
        filed("x.bmp", b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 1 << 30, -(1 << 31),
              1, 24, 0, 0, 0, 0, 0, 0)), (2, 3)),
    "a PPM of 10^20": (filed("x.ppm", b"P6 99999999999999999999 1 255\n"), (2, 3)),
    "a folder of a link to itself": (lambda d: linked(d, "x.npy", "x.npy"), (2, 3)),
    "a link to a device": (lambda d: linked(d, "x.npy", "/dev/zero"), (2, 3)),
    "an image that is a link to a device": (lambda d: linked(d, "x.png", "/dev/zero"), (2, 3)),
    "a FIFO": (lambda d: piped(d, "x.npy"), (2, 3)),
    "an image that is a FIFO": (lambda d: piped(d, "x.png"), (2, 3)),
}  # fmt: skip


def linked(folder: Path, name: str, target: str) -> Path:
    (folder / name).symlink_to(target)
    return folder / name


def piped(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


for what, (make, codes) in FILES.items():
    CORPUS.add(what, make, codes=codes, commands=CORPUS.commands if "pickled" in what else READ)
