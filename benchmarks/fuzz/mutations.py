"""Mistakes in files, made where each format keeps its meaning, under right checksums.

protobuf      a field of any message: another value, a message left out, doubled or moved
JSON          a value at any depth, a key, an entry of a list
pickle        an instruction: its argument, its place, another global
code          a word or a line of TorchScript
zip           a member left out, doubled, renamed, with another's content
bytes         bits and bytes anywhere
"""

from __future__ import annotations

import hashlib
import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from tests.hostile.payload import NAMES

INTEGERS = (0, 1, -1, 2, 3, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
GLOBALS = (
    *("torch.nn.modules.conv Conv2d", "torch.nn.modules.batchnorm BatchNorm2d", "os system"),
    *("torch.nn.modules.container Sequential", "collections OrderedDict", "builtins eval"),
    *("torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch HalfStorage", "torch Size"),
    *("torch._utils _rebuild_parameter", "functools partial", "torch.nn.modules.rnn LSTM"),
)


_STUMBLES = (
    *(ValueError, IndexError, KeyError, DecodeError, RecursionError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, EOFError),
)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content of a file with up to three mistakes."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        content = _once(content, chance)
    return content


def _once(content: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.1:
        return damaged(content, chance)
    try:
        if content.startswith(b"PK\x03\x04"):
            return _archive(content, chance)
        if content[:1] == b"\x80":
            return _pickle(content, chance)
        if content[8:9] == b"{":
            return _safetensors(content, chance)
        return _protobuf(content, chance)
    except _STUMBLES:
        return damaged(content, chance)  # an earlier mistake went too deep for a finer one


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bits and bytes changed, missing, doubled, or the end cut off."""
    made = bytearray(content)
    if not made:
        return content
    where, kind = chance.randrange(len(made)), chance.random()
    if kind < 0.4:
        made[where] ^= 1 << chance.randrange(8)
    elif kind < 0.7:
        made[where] = chance.choice(b"\x00\x01\x7f\x80\xff.RNb0")
    elif kind < 0.85:
        del made[where : where + chance.randrange(1, 5)]
    elif kind < 0.95:
        made[where:where] = made[where : where + chance.randrange(1, 30)]
    else:
        del made[where:]
    return bytes(made)


def changed(value: Any, chance: random.Random, words: list[str]) -> Any:
    """Another value of the same type, or now and then of another."""
    if chance.random() < 0.08:
        return chance.choice((None, [], {}, "x", 7, -1.5, True))
    match value:
        case bool():
            return not value
        case int():
            near = (value + 1, value - 1, -value, value * 2, value * 1000)
            return chance.choice((*INTEGERS, *near, *near))
        case float():
            return chance.choice((*FLOATS, -value, value * 1.001, value * 10))
        case bytes():
            return damaged(value, chance)
        case str():
            names = [*NAMES.values(), ""]
            return chance.choice(words if words and chance.random() < 0.7 else names)
        case _:
            return chance.choice((None, 0, "", [], {}))


def _protobuf(content: bytes, chance: random.Random) -> bytes:
    model = onnx.ModelProto()
    model.ParseFromString(content)
    places = list(_fields(model))
    owner, field = chance.choice(places)
    words = [value for each, entry in places for value in _texts(each, entry)]
    value = getattr(owner, field.name)
    if isinstance(value, MutableSequence) or hasattr(value, "add") or hasattr(value, "append"):
        _rearrange(value, chance, words)
    elif isinstance(value, Message) or chance.random() < 0.15:
        owner.ClearField(field.name)
    else:
        _set(owner, field.name, value, chance, words)
    made: bytes = model.SerializeToString()
    return made


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for each in value if not isinstance(value, Message) else (value,):
                yield from _fields(each)


def _texts(owner: Any, field: Any) -> Iterator[str]:
    value = getattr(owner, field.name)
    if isinstance(value, str):
        yield value
    elif field.type == field.TYPE_STRING:
        yield from value


def _rearrange(values: Any, chance: random.Random, words: list[str]) -> None:
    """A repeated field with an entry left out, doubled, moved or changed."""
    where, kind = chance.randrange(len(values)), chance.random()
    is_message = isinstance(values[where], Message)
    if kind < 0.25:
        del values[where]
    elif kind < 0.45:
        values.add().CopyFrom(values[where]) if is_message else values.append(values[where])
    elif kind < 0.65 or is_message:
        entry = values.pop(where)
        values.insert(chance.randrange(len(values) + 1), entry)
    else:
        for _ in range(9):
            try:
                values[where] = changed(values[where], chance, words)
                return
            except (TypeError, ValueError):
                continue


def _set(owner: Any, name: str, value: Any, chance: random.Random, words: list[str]) -> None:
    for _ in range(9):  # many a value does not suit the field's own type
        try:
            setattr(owner, name, changed(value, chance, words))
            return
        except (TypeError, ValueError):
            continue


def _json(text: bytes, chance: random.Random) -> bytes:
    found = json.loads(text)
    places = list(_places(found))
    if not places:
        return damaged(text, chance)
    owner, key = chance.choice(places)
    words = [owner[key] for owner, key in places if isinstance(owner[key], str)]
    kind = chance.random()
    if kind < 0.15:
        del owner[key]
    elif kind < 0.25 and isinstance(owner, list):
        owner.insert(chance.randrange(len(owner) + 1), owner[key])
    elif kind < 0.35 and isinstance(owner, dict):
        owner[chance.choice(words or ["x"])] = owner.pop(key)
    else:
        owner[key] = changed(owner[key], chance, words)
    return json.dumps(found).encode()


def _sealed(text: bytes, chance: random.Random) -> bytes:
    """The manifest of a bundle, with a digest that fits it again."""
    found = json.loads(_json(text, chance))
    found.pop("digest", None)
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return json.dumps({**found, "digest": digest}).encode()


def _places(found: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in lists and tables that holds something."""
    entries: Any = ()
    if isinstance(found, MutableMapping):
        entries = list(found.items())
    elif isinstance(found, list):
        entries = list(enumerate(found))
    for key, value in entries:
        yield found, key
        yield from _places(value)


def _safetensors(content: bytes, chance: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    head, data = content[8 : 8 + size], content[8 + size :]
    if chance.random() < 0.1:
        return struct.pack("<Q", chance.choice((0, size + 1, size - 1, 1 << 40))) + head + data
    head = _json(head, chance)
    return struct.pack("<Q", len(head)) + head + data


def _pickle(content: bytes, chance: random.Random) -> bytes:
    """The pickles at the beginning of a file with an instruction changed; what follows as it is."""
    stream = io.BytesIO(content)
    pieces: list[tuple[str, bytes]] = []
    while stream.tell() < len(content) and content[stream.tell()] == 0x80:
        started = stream.tell()
        ops = list(pickletools.genops(stream))
        starts = [started + 0 * p if i == 0 else int(p or 0) for i, (_, _, p) in enumerate(ops)]
        ends = [*starts[1:], stream.tell()]
        pieces += [
            (op.name, content[a:b]) for (op, _, _), a, b in zip(ops, starts, ends, strict=True)
        ]
    rest = content[stream.tell() :]
    where, kind = chance.randrange(1, len(pieces)), chance.random()
    name, code = pieces[where]
    if kind < 0.15:
        del pieces[where]
    elif kind < 0.25:
        pieces.insert(where, pieces[where])
    elif kind < 0.35:
        pieces.insert(chance.randrange(1, len(pieces)), pieces.pop(where))
    else:
        pieces[where] = (name, _argument(name, code, chance))
    return b"".join(code for _, code in pieces) + rest


def _argument(name: str, code: bytes, chance: random.Random) -> bytes:
    """The instruction with another argument."""
    match name:
        case "GLOBAL":
            module, attribute = chance.choice(GLOBALS).split()
            return f"c{module}\n{attribute}\n".encode()
        case "BINUNICODE":
            text = code[5:].decode("utf-8", "surrogatepass")
            new = str(changed(text, chance, [])).encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(new)) + new
        case "BININT" | "BININT1" | "BININT2":
            value = changed(int.from_bytes(code[1:], "little"), chance, [])
            if not isinstance(value, int) or value.bit_length() > 2000:
                return b"N"
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case "NEWTRUE" | "NEWFALSE" | "NONE" | "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
            return chance.choice((b"\x88", b"\x89", b"N", b"}", b"]", b")", b"K\x01"))
        case "BINFLOAT":
            value = changed(struct.unpack(">d", code[1:])[0], chance, [])
            return b"G" + struct.pack(">d", value) if isinstance(value, float) else b"N"
        case _:
            return damaged(code, chance)


def _code(text: bytes, chance: random.Random) -> bytes:
    """TorchScript with a word or a line changed."""
    if chance.random() < 0.4:
        lines = text.splitlines(keepends=True)
        where = chance.randrange(len(lines))
        kind = chance.random()
        if kind < 0.4:
            del lines[where]
        elif kind < 0.7:
            lines.insert(where, lines[where])
        else:
            lines.insert(chance.randrange(len(lines)), lines.pop(where))
        return b"".join(lines)
    words = list(re.finditer(rb"[A-Za-z_][\w.]*|\d[\d.e+-]*", text))
    hit, other = chance.choice(words), chance.choice(words)
    number = str(chance.choice((*INTEGERS, *FLOATS[:4]))).encode()
    new = other[0] if not hit[0][:1].isdigit() or chance.random() < 0.3 else number
    return text[: hit.start()] + new + text[hit.end() :]


BY_SUFFIX: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _json,
    ".pkl": _pickle,
    ".py": _code,
}


def _archive(content: bytes, chance: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [[name, archive.read(name)] for name in archive.namelist()]
    where, kind = chance.randrange(len(members)), chance.random()
    if kind < 0.04:
        del members[where]
    elif kind < 0.07:
        members.append(list(members[where]))
    elif kind < 0.1:
        members[where][0] = str(changed(members[where][0], chance, [m[0] for m in members]))
    elif kind < 0.15:
        members[where][1] = chance.choice(members)[1]
    else:
        telling = [m for m in members if m[0].endswith(tuple(BY_SUFFIX))] or members
        member = chance.choice(telling if chance.random() < 0.85 else members)
        change = BY_SUFFIX.get("." + member[0].rpartition(".")[2], _once_inside)
        if member[0] == "golden.json":
            change = _sealed
        member[1] = change(member[1], chance) if member[1] else b"x"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members:
            entry = zipfile.ZipInfo("x")
            entry.filename = name.encode("utf-8", "replace").decode().replace("\0", "_") or "x"
            archive.writestr(entry, data)
    return stream.getvalue()


def _once_inside(content: bytes, chance: random.Random) -> bytes:
    return _archive(content, chance) if content[:4] == b"PK\x03\x04" else damaged(content, chance)
