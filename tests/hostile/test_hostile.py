"""Commands on hostile inputs: nothing runs, hangs, swells or stays behind.

BNFOLD_HOSTILE=1 pytest tests/hostile      every command on every input, in an hour
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.case import Hostile
from tests.hostile.corpus import CORPORA
from tests.hostile.meeting import Meeting, Warmed
from tests.hostile.selection import LEAST, Run, selected

EVERY = [
    (case, command) for corpus in CORPORA for case in corpus.inputs for command in case.commands
]
RUNS = EVERY if os.environ.get("BNFOLD_HOSTILE") else selected(CORPORA)


@pytest.fixture(scope="module")
def warmed() -> Iterator[Warmed]:
    process = Warmed()
    yield process
    process.close()


def name(run: Run) -> str:
    case, command = run
    return f"{case.name[:80]} - {command}"


@pytest.mark.parametrize("run", RUNS, ids=name)
def test_nothing_comes_of_it(run: Run, warmed: Warmed, tmp_path: Path) -> None:
    case, command = run
    _, found = Meeting(case, tmp_path, warmed).run(command)
    assert found == []


def test_every_format_meets_every_command() -> None:
    chosen = selected(CORPORA)
    assert chosen == selected(CORPORA)
    assert len({case.name for case, _ in chosen}) >= LEAST

    def met(runs: list[tuple[Hostile, str]]) -> set[tuple[str, str]]:
        return {(case.name.partition(":")[0], command) for case, command in runs}

    assert met(chosen) == met(EVERY)
