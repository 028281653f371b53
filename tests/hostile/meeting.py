"""Where an input meets a command: folders made for the two, a warmed process, and the faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from tests.conftest import ROOT
from tests.formats.onnx_nets import Net
from tests.hostile.case import COMMANDS, Hostile, faults

TIMEOUT = "4"
"""Seconds, for the commands that take it."""

Listing = frozenset[tuple[str, int, int, int]]


class Warmed:
    """The process of `tests.hostile.warm`, which ends a command after `patience` seconds."""

    def __init__(self, patience: float = 30) -> None:
        self._patience = patience
        paths = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
        environment.pop("GITHUB_STEP_SUMMARY", None)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.hostile.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._answer()

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        request = {"patience": self._patience, **request}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the warmed process is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Meeting:
    """An input in a folder of its own, where any number of commands meet it."""

    def __init__(self, case: Hostile, folder: Path, warmed: Warmed, timeout: str = TIMEOUT) -> None:
        self._case, self._warmed, self._timeout = case, warmed, timeout
        self._places = {
            name: folder / name for name in ("in", "out", "here", "tmp", "home", "notes", "good")
        }
        for place in self._places.values():
            place.mkdir()
        self._model = case.make(self._places["in"])
        self._good = good(self._places["good"] / "good.onnx")
        self._toml = self._places["good"] / "bnfold.toml"
        self._toml.write_text(pipeline(self._model, self._places["out"], case.options))

    @property
    def folded(self) -> Path:
        """Where `fold` wrote its result, until the next command."""
        return self._places["out"] / "folded"

    def run(self, command: str) -> tuple[dict[str, Any], list[str]]:
        """How the command ended, and what is wrong with that."""
        names = {
            "model": str(self._model),
            "out": str(self._places["out"]),
            "good": str(self._good),
            "toml": str(self._toml),
        }
        arguments = [part.format(**names) for part in COMMANDS[command]]
        if arguments[0] not in ("build",):
            arguments += self._case.options
        if _has_timeout(arguments[0]):
            arguments += ["--timeout", self._timeout]
        return self.watched({"arguments": arguments}, command)

    def watched(self, request: dict[str, Any], what: str) -> tuple[dict[str, Any], list[str]]:
        """How a request ended, and what is wrong with that; `what` is the command."""
        request = {"arguments": [str(self._model), what], **request, **self._surroundings}
        for name in ("notes", "out"):
            _empty(self._places[name])
        watched = [self._places[name] for name in ("in", "here", "tmp", "home", "good")]
        before = [entry for place in watched for entry in listing(place)]
        ended = self._warmed.run(request)
        after = [entry for place in watched for entry in listing(place)]
        made = {entry[0] for entry in listing(self._places["out"])}
        found = faults(self._case, what, ended, before, after, made)
        for name in ("here", "tmp", "home"):
            _empty(self._places[name])
        return ended, found

    def call(self, function: str, *arguments: Any) -> dict[str, Any]:
        """How another function ended, in the same surroundings."""
        given = {"call": function, "arguments": [str(self._model), *arguments]}
        return self._warmed.run({**given, **self._surroundings})

    @property
    def _surroundings(self) -> dict[str, Any]:
        notes = self._places["notes"]
        return {
            "cwd": str(self._places["here"]),
            "notes": str(notes),
            "allowed": [str(notes.parent)],
            "environment": {
                "TMPDIR": str(self._places["tmp"]),
                "HOME": str(self._places["home"]),
                "TORCHINDUCTOR_CACHE_DIR": str(notes / "inductor"),  # made by any export
            },
        }


def _has_timeout(command: str) -> bool:
    from bnfold.cli import commands

    found = commands.get_command(click.Context(commands), command)
    assert found is not None, command
    return any("--timeout" in param.opts for param in found.params)


def pipeline(model: Path, out: Path, options: tuple[str, ...]) -> str:
    """A pipeline file that folds one model, with the same options as on the command line."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    lines = ["[models.m]", f"source = {json.dumps(str(model))}", f"output = {json.dumps(str(out))}"]
    if "--input" in given:
        lines.append(f"inputs = [{json.dumps(given['--input'])}]")
    if "--model" in given:
        lines.append(f"opening = {{ factory = {json.dumps(given['--model'])} }}")
    return "\n".join(lines) + "\n"


def good(path: Path) -> Path:
    """A small model that nothing is wrong with."""
    if not path.exists():
        net = Net(dtype=np.float32)
        net.bn(net.conv(net.input("input", 1, 3, 8, 8), 3, 4), 4, made="y")
        net.output("y")
        path.write_bytes(net.proto().SerializeToString())
    return path


def listing(folder: Path) -> Listing:
    """Every name in a folder, with its kind, size and time of change."""
    found = []
    for entry in folder.rglob("*"):
        status = entry.lstat()
        size = status.st_size if not entry.is_dir() else 0
        changed = status.st_mtime_ns if not entry.is_dir() else 0
        found.append((str(entry.relative_to(folder.parent)), status.st_mode, size, changed))
    return frozenset(found)


def _empty(folder: Path) -> None:
    for entry in sorted(folder.rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
