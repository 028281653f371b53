"""What a pickle names and how deep it nests, found by reading its instructions, not by running it.

The instructions are followed with a stack of notes in place of objects: each note has the depth of
what it stands for, its text if it is one, and its name if it is a global. So a name is known
however it is put together, and so is what is called.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

MAGIC = 0x1950A86A20F9469CFC6C
"""What a file in torch's older format, of before 1.6, begins with; four more pickles follow."""

_LONGEST = 1000
"""Characters of a name. A long one could be named often at no cost to the file."""

_CHANGES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
"""Instructions that add to what is on the stack."""


class _Note(NamedTuple):
    depth: int = 0
    text: str | None = None
    name: str | None = None


_MARK = _Note(-1)


@dataclass(slots=True)
class Contents:
    """The globals ("pkg.mod.name") and the greatest depth of a file's pickles.

    `called` are the globals that are called, rather than named, or made an empty object of.
    `by_torch` tells whether torch.save wrote the file, `is_zip` whether in the newer format.
    """

    names: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    depth: int = 0
    by_torch: bool = False
    is_zip: bool = False


def scan(file: IO[bytes]) -> Contents:
    """The contents of a pickle, or of the first four of a file in torch's older format.

    Raises ValueError or IndexError for what is no pickle.
    """
    contents = Contents()
    contents.by_torch = _scan_one(file, contents) == MAGIC
    if contents.by_torch:
        for _ in range(3):  # protocol version, system, the object; then come keys of storages
            _scan_one(file, contents)
    return contents


def _scan_one(file: IO[bytes], contents: Contents) -> Any:
    """Scan one pickle; the last number in it."""
    stack: list[_Note] = []
    memo: dict[int, _Note] = {}
    number = None
    for code, argument, _ in pickletools.genops(file):
        name = code.name
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("PUT"):
            memo[int(argument or 0)] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo.get(int(argument or 0), _Note()))
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            popped = _popped(stack, code)
            found = _name_of(name, argument, popped)
            _note_down(contents, name, found, popped)
            note = _made(name, argument, popped)._replace(name=found)
            stack += [note] * len(code.stack_after)
            contents.depth = max(contents.depth, note.depth)
        if isinstance(argument, int):
            number = argument
    return number


def _popped(stack: list[_Note], code: pickletools.OpcodeInfo) -> list[_Note]:
    """What the instruction takes off the stack, in the order in which it was put there."""
    wanted = code.stack_before
    members: list[_Note] = []
    if pickletools.markobject in wanted:
        while (note := stack.pop()) is not _MARK:
            members.append(note)
        wanted = wanted[: wanted.index(pickletools.markobject)]
    below = [stack.pop() for _ in wanted]
    return below[::-1] + members[::-1]


def _made(name: str, argument: Any, popped: list[_Note]) -> _Note:
    if not popped:
        return _Note(0, argument if isinstance(argument, str) else None)
    if name in _CHANGES:
        inner = max((note.depth for note in popped[1:]), default=-1)
        return popped[0]._replace(depth=max(popped[0].depth, 1 + inner))
    return _Note(1 + max(note.depth for note in popped))


def _name_of(name: str, argument: Any, popped: list[_Note]) -> str | None:
    """The global that an instruction puts on the stack, or calls at once."""
    if name in ("GLOBAL", "INST"):
        return _current_name(*str(argument).split(" ", 1))
    if name == "STACK_GLOBAL":
        module, attribute = (note.text or "<computed>" for note in popped)
        if len(module) + len(attribute) > _LONGEST:
            raise ValueError("a name in it is longer than any module's")
        return _current_name(module, attribute)
    return f"copyreg.extension_{argument}" if name.startswith("EXT") else None


def _note_down(contents: Contents, name: str, found: str | None, popped: list[_Note]) -> None:
    called = found if name == "INST" else None
    if name in ("REDUCE", "OBJ", "NEWOBJ_EX"):
        called = next((note.name for note in popped if note is not _MARK), None)
    contents.names.update(filter(None, [found]))
    contents.called.update(filter(None, [called]))


def _current_name(module: str, attribute: str) -> str:
    """The name today of what pickles may still call as Python 2 did."""
    module, attribute = NAME_MAPPING.get((module, attribute), (module, attribute))
    return f"{IMPORT_MAPPING.get(module, module)}.{attribute}"
