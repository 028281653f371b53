"""What an input tries to do: leave a mark in the current folder, in as many ways as it is read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

MARK = "mark"

EXPRESSION = f"__import__('os').mkdir('{MARK}')"
"""Where an expression is evaluated."""

CLOSING = f'training"),getattr(__import__("os"),"system")("touch {MARK}"),getattr(self,"training'
"""A name without a dot that closes the double quotes it is put into, and calls something."""

SINGLE = CLOSING.replace('"', "'")

LINES = f"x\n    __import__('os').system('touch {MARK}')\n    y"
"""A name that begins a line of source of its own."""

BRACKET = f"x = __import__('os').system('touch {MARK}')) or (y"

ESCAPED = f"\\x22+__import__(chr(111)+chr(115)).mkdir('{MARK}')+\\x22"

NAMES = {
    "closing double quotes": CLOSING,
    "closing single quotes": SINGLE,
    "closing triple quotes": f'"""+__import__("os").mkdir("{MARK}")+"""',
    "new lines": LINES,
    "brackets": BRACKET,
    "escapes": ESCAPED,
    "a format": "{self.__class__.__mro__[1].__subclasses__}",
    "a directive": f"${{touch {MARK}}}`touch {MARK}`",
    "a path": f"../../{MARK}",
    "a terminal's commands": "\x1b[2J\x1b]0;mark\x07\x9b31m",
    "directions of writing": "a\u202egnidlof\u2066x\u2069",
    "half a surrogate": "a\ud800b",
    "no character": "a\x00b",
    "100,000 characters": "n" * 100_000,
    "a dunder": "__class__",
    "a method": "forward",
}
"""Names of things in a model, by what they try."""


def rewritten(
    source: Path,
    target: Path,
    change: Callable[[str, bytes], bytes | None],
    more: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """An archive with every member changed; None leaves it out. `{root}` stands for its folder."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        names = old.namelist()
        root = names[0].partition("/")[0]
        for name in names:
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in (more or {}).items():
            new.writestr(name.replace("{root}", root), content)
    return target


def joined(members: Mapping[str, bytes], target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target
