"""A hostile input, the commands that it meets, and what is wrong with how one of them ended.

An input is a function that writes it into a folder. Required of every command, without --trust:

nothing runs           no mark, no event of `tests.hostile.warm`, no process that lives on
nothing is left        folders, TMPDIR and HOME as they were, but for the result of an exit code 0
it says so             one of the exit codes in `codes`, a short text, no traceback
in time and in memory  `MOST_SECONDS` and `MOST_BYTES`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_SECONDS = 10.0
MOST_BYTES = 600_000_000
"""Beyond the 400 MB that Python, torch and ONNX Runtime take: 1 GB in all."""

MOST_CHARACTERS = 2000

REFUSED = (2, 3)
RUNNING = (1, 2, 3)
"""Of what is read, but does not run to its end: `inspect`, which runs nothing, may tell of it."""

HARMLESS = (0, 1, 2, 3)
"""Of what may as well be a model, as long as nothing comes of it."""

Make = Callable[[Path], Path]


@dataclass(frozen=True, slots=True)
class Hostile:
    """`make` writes the input and gives its path; `options` are what any model of its kind needs.

    `commands` are keys of `COMMANDS`.
    """

    name: str
    make: Make
    commands: tuple[str, ...]
    options: tuple[str, ...] = ()
    codes: tuple[int, ...] = REFUSED


@dataclass(slots=True)
class Corpus:
    """The inputs of one format, in the order of their functions."""

    format: str
    commands: tuple[str, ...]
    options: tuple[str, ...] = ()
    inputs: list[Hostile] = field(default_factory=list)

    def add(
        self,
        name: str,
        make: Make,
        *,
        codes: tuple[int, ...] = REFUSED,
        commands: tuple[str, ...] | None = None,
        options: tuple[str, ...] | None = None,
    ) -> None:
        chosen = self.commands if commands is None else commands
        given = self.options if options is None else options
        self.inputs.append(Hostile(f"{self.format}: {name}", make, chosen, given, codes))


ONNX = (
    *("inspect", "fold", "fold graph", "export onnx", "export torchscript", "export pt2"),
    *("verify reference", "verify candidate", "golden", "bench", "build"),
)
TORCH = (*ONNX, "inspect graph")
"""Every command of a format, for at least one input of each kind."""

RUN = ("inspect", "fold", "export onnx", "verify reference", "verify candidate", "golden", "bench")
"""Of what is opened, and fails when it runs or is converted."""

OPENED = ("inspect", "fold", "golden", "build")
"""Of what is refused before anything is done: no command comes further than another."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "{model}"),
    "inspect graph": ("inspect", "{model}", "--form", "graph"),
    "fold": ("fold", "{model}", "-o", "{out}/folded"),
    "fold unverified": ("fold", "{model}", "--no-verify", "-o", "{out}/folded"),
    "fold graph": ("fold", "{model}", "--form", "graph", "-o", "{out}/folded.pt2"),
    "export onnx": ("export", "{model}", "--to", "onnx", "-o", "{out}/m.onnx"),
    "export torchscript": ("export", "{model}", "--to", "torchscript", "-o", "{out}/m.pt"),
    "export pt2": ("export", "{model}", "--to", "pt2", "-o", "{out}/m.pt2"),
    "verify reference": ("verify", "{model}", "{good}"),
    "verify candidate": ("verify", "{good}", "{model}"),
    "golden": ("golden", "{model}", "-o", "{out}/m.golden.npz"),
    "bench": ("bench", "{model}", *("--rounds", "1", "--warmup", "0", "--threads", "1")),
    "bench folded": ("bench", "{model}", "--folded", *("--rounds", "1", "--warmup", "0")),
    "build": ("build", "-f", "{toml}"),
    "verify golden": ("verify", "--golden", "{model}", "{good}"),
    "verify recorded": ("verify", "{good}", "{good}", "--inputs", "{model}"),
    "golden recorded": ("golden", "{good}", "--inputs", "{model}", "-o", "{out}/m.golden.npz"),
    "fold recorded": ("fold", "{good}", "--inputs", "{model}", "-o", "{out}/folded"),
    "build pipeline": ("build", "-f", "{model}"),
}


def faults(
    case: Hostile, command: str, ended: dict[str, Any], before: Any, after: Any, made: Any
) -> list[str]:
    """What is wrong with how a command ended; `before` and `after` list its folders."""
    text = ended["out"] + ended["err"]
    found = []
    codes = HARMLESS if case.codes == RUNNING and command.startswith("inspect") else case.codes
    if ended["hung"]:
        found.append(f"it hung: ended after {ended['elapsed']:.0f} s")
    elif ended["swollen"]:
        found.append(f"it took {ended['memory'] / 1e9:.1f} GB and was ended")
    elif ended["code"] not in codes:
        found.append(f"exit {ended['code']}: {last_line(text)}")
    if ended["seconds"] > MOST_SECONDS and not ended["hung"]:
        found.append(f"it took {ended['seconds']:.0f} s")
    if ended["memory"] > MOST_BYTES and not ended["swollen"]:
        found.append(f"it took {ended['memory'] / 1e9:.1f} GB")
    found += [f"it ran something: {event}" for event in ended["events"]]
    found += [f"it left a process: {process}" for process in ended["left"]]
    whole = not (ended["hung"] or ended["swollen"])
    found += [f"it left or changed {name}" for name in sorted(set(before) ^ set(after)) if whole]
    if made and whole and ended["code"] != 0:
        found.append(f"it left {sorted(made)} with exit {ended['code']}")
    if "Traceback" in text:
        found.append(f"a traceback: {text[text.index('Traceback') :][:1000]}")
    if ended["code"] > 1 and len(text) > MOST_CHARACTERS:
        found.append(f"a text of {len(text)} characters")
    if control := re.findall(
        r"[^\n\t\x20-\x7e\xa0-\u200d\u2010-\u2027\u202f-\u2065\u206a-\U0010ffff]", text
    ):
        found.append(f"control characters: {control[:3]!r}")
    return found


def last_line(text: str) -> str:
    lines: Sequence[str] = [line for line in text.splitlines() if line.strip()] or ["nothing said"]
    errors = [line for line in lines if line.startswith("error")]
    return (errors or lines)[-1][:300]
