"""A pickle in the instructions that torch's restricted unpickler knows: those of protocol 2.

    protocols 3 to 5             bytes, names from the stack, sets, short texts, numbers in the memo
    modules of before torch 1.6  a class beside its source code becomes the class

Instructions are rewritten, never carried out. What is not listed here is left to the unpickler.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from bisect import bisect_left
from dataclasses import dataclass
from typing import IO, Any

from torch import _weights_only_unpickler

from bnfold.formats.pytorch.strangers import Stranger

_allowed: Any = _weights_only_unpickler._get_user_allowed_globals

_TEXTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
_STRINGS = frozenset({"SHORT_BINSTRING", "BINSTRING"})
"""The texts of Python 2, which pickletools gives as Latin-1."""

_BYTES = frozenset({"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"})


@dataclass(eq=False, slots=True)
class _Entry:
    """Something on the stack: where the instructions that make it begin, and its text if any."""

    start: int
    text: str | None = None
    members: tuple[_Entry, ...] = ()
    is_mark: bool = False


class _Tape:
    """Reads a file for pickletools, and keeps the bytes of the instruction that was read last."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._read: list[bytes] = []

    def read(self, size: int) -> bytes:
        self._read.append(self._file.read(size))
        return self._read[-1]

    def readline(self) -> bytes:
        self._read.append(self._file.readline())
        return self._read[-1]

    def taken(self) -> bytes:
        taken = b"".join(self._read)
        self._read.clear()
        return taken


class Transcript:
    """Rewrites one pickle. Raises IndexError or KeyError for what is none."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = [b"\x80\x02"]
        self._stack: list[_Entry] = []
        self._memo: dict[int, _Entry] = {}
        self._puts: list[tuple[int, int]] = []
        """Where an entry is put into the memo, and its number there; in order."""
        self._forgotten: set[int] = set()
        """The numbers whose instructions are gone."""

    def of(self, file: IO[bytes]) -> bytes:
        tape: Any = _Tape(file)
        for code, argument, _ in pickletools.genops(tape):
            self._step(code, argument, tape.taken())
        return b"".join(self._pieces)

    def _step(self, code: pickletools.OpcodeInfo, argument: Any, raw: bytes) -> None:
        name = code.name
        if name in ("PROTO", "FRAME"):
            return
        if name == "MEMOIZE":
            self._put(len(self._memo))
        elif name.endswith("PUT"):
            self._put(int(argument))
        elif name.endswith("GET"):
            self._get(int(argument))
        elif name in _TEXTS:
            self._push(_text(argument), argument)
        elif name in _STRINGS:
            self._push(_counted(argument.encode("latin-1")), argument)
        elif name in _BYTES:
            self._push(_bytes(argument))
        elif name == "BYTEARRAY8":
            self._push(b"cbuiltins\nbytearray\n" + _bytes(bytes(argument)) + b"\x85R")
        elif name == "MARK":
            self._push(raw)
            self._stack[-1].is_mark = True
        else:
            self._operate(code, raw)

    def _operate(self, code: pickletools.OpcodeInfo, raw: bytes) -> None:
        """An instruction that takes something off the stack."""
        popped = self._popped(code)
        start = popped[0].start if popped else len(self._pieces)
        members: tuple[_Entry, ...] = ()
        if code.name == "STACK_GLOBAL":
            names = [entry.text or "" for entry in popped]
            self._drop(start)
            raw = "".join(["c", *(f"{each}\n" for each in names)]).encode()
        elif code.name in ("POP", "POP_MARK"):
            self._drop(start)
            return
        elif code.name == "BINPERSID" and _is_class_with_source(popped[0]):
            self._keep_only(start, popped[0].members)
            raw = b""
        elif code.name == "ADDITEMS":
            raw = self._made_at_once(start)
        elif code.name == "TUPLE":
            members = tuple(entry for entry in popped if not entry.is_mark)
        self._pieces.append(raw)
        self._stack += [_Entry(start, members=members)] * len(code.stack_after)

    def _push(self, piece: bytes, text: str | None = None) -> None:
        self._stack.append(_Entry(len(self._pieces), text))
        self._pieces.append(piece)

    def _popped(self, code: pickletools.OpcodeInfo) -> list[_Entry]:
        wanted = code.stack_before
        found: list[_Entry] = []
        if pickletools.markobject in wanted:
            found.append(self._stack.pop())
            while not found[-1].is_mark:
                found.append(self._stack.pop())
            wanted = wanted[: wanted.index(pickletools.markobject)]
        found += [self._stack.pop() for _ in wanted]
        return found[::-1]

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]
        self._forgotten.discard(number)
        self._puts.append((len(self._pieces), number))
        self._pieces.append(b"r" + struct.pack("<I", number))

    def _get(self, number: int) -> None:
        known = self._memo[number]
        if number in self._forgotten:
            if known.text is None:
                raise pickle.UnpicklingError("it uses again what it has thrown away")
            self._push(_text(known.text), known.text)
            self._put(number)
        else:
            self._push(b"j" + struct.pack("<I", number), known.text)

    def _drop(self, start: int) -> None:
        """Take back all instructions from `start` on."""
        del self._pieces[start:]
        gone = bisect_left(self._puts, (start, -1))
        self._forgotten.update(number for _, number in self._puts[gone:])
        del self._puts[gone:]

    def _keep_only(self, start: int, members: tuple[_Entry, ...]) -> None:
        """Of a tuple that begins at `start`, keep the second member."""
        first, last = members[1].start, members[2].start
        pieces = self._pieces[first:last]
        inner = slice(*(bisect_left(self._puts, (end, -1)) for end in (first, last)))
        puts = [(at - first + start, number) for at, number in self._puts[inner]]
        self._drop(start)
        self._pieces += pieces
        self._puts += puts
        self._forgotten -= {number for _, number in puts}

    def _made_at_once(self, start: int) -> bytes:
        """A set that was empty at `start` is made of a list of its items; it is memorised then."""
        if self._pieces[start] != b"\x8f":
            raise pickle.UnpicklingError("it adds to a set more than once")
        self._pieces[start] = b"cbuiltins\nset\n]"
        made = b"e\x85R"
        first = bisect_left(self._puts, (start, -1))
        if first == len(self._puts) or self._puts[first][0] != start + 1:
            return made
        _, number = self._puts.pop(first)
        self._pieces[start + 1] = b""
        self._puts.append((len(self._pieces), number))
        return made + b"r" + struct.pack("<I", number)


class Unpickler(_weights_only_unpickler.Unpickler):
    """torch's restricted unpickler, for pickles of any protocol. Stands in for pickle.Unpickler."""

    def __init__(self, file: IO[bytes], *, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(Transcript().of(file)), encoding=encoding)

    def _check_set_item_target(self, opcode: str) -> None:
        """Mappings of classes that were allowed take items, too."""
        target = type(self.stack[-1])
        if not issubclass(target, dict | Stranger) or target not in _allowed().values():
            super()._check_set_item_target(opcode)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(
            "a pickle that torch.save did not write has no storages beside it"
        )


def load(file: IO[bytes], *, encoding: str = "utf-8") -> Any:
    """Stands in for pickle.load."""
    return Unpickler(file, encoding=encoding).load()  # type: ignore[no-untyped-call]


def _is_class_with_source(entry: _Entry) -> bool:
    return len(entry.members) == 4 and entry.members[0].text == "module"


def _counted(raw: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(raw)) + raw


def _text(text: str) -> bytes:
    return _counted(text.encode("utf-8", "surrogatepass"))


def _bytes(raw: bytes) -> bytes:
    """As protocol 2 writes them: the call that encodes a text."""
    return b"c_codecs\nencode\n" + _text(raw.decode("latin-1")) + _text("latin1") + b"\x86R"
