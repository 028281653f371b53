"""Fixtures shared by all tests: the command line in this process, and random statistics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.warming import remember_operators, warm_up

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "models" / "checkpoints"

settings.register_profile("same", derandomize=True)
if "BNFOLD_EXAMPLES" not in os.environ:  # a search for new cases draws others every time
    settings.load_profile("same")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_worker() -> None:
    """Workers share the cores; torch would start a thread per core in each of them."""
    remember_operators()
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What became of the zoo, and how many folds each rule made, whichever worker counted them."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    noted: dict[str, list[Any]] = {"zoo": [], "rule": []}
    for name, row in (pair for report in reports for pair in report.user_properties):
        noted.get(name, []).append(row)
    if noted["zoo"]:
        from tests.zoo.table import table

        terminalreporter.section("zoo: BatchNorms folded, other affines folded, error / floor")
        for line in table(noted["zoo"]):
            terminalreporter.write_line(line)
    if noted["rule"]:
        terminalreporter.section("folds that need a rule")
        for op, direction, count in sorted(noted["rule"]):
            terminalreporter.write_line(f"{count:6} {op} {direction}")


def started(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
    """What serves a model as a fork, where Python would start anew and import torch again.

    Not what times one: it has threads, which a fork of a process that has had some waits for.
    """
    from tests.hostile.warm import ForkingPopen

    made = ForkingPopen if "bnfold.isolation.runners" in command else subprocess.Popen
    return made(command, **how)


@pytest.fixture
def bnfold(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """Run the command line as a user would, with what it writes to either file descriptor."""
    from bnfold.cli import commands
    from bnfold.cli.session import run_guarded

    warm_up()
    if hasattr(os, "fork") and "PYTEST_XDIST_WORKER" in os.environ:
        monkeypatch.setattr("bnfold.processes.child.Popen", started)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["bnfold", *map(str, arguments)])
        capfd.readouterr()
        code = run_guarded(commands)
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
