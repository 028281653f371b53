"""Every command on every hostile input: nothing runs, hangs, swells or stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.case import Hostile, in_turn
from tests.hostile.corpus import CORPORA
from tests.hostile.meeting import Meeting, Warmed

INPUTS = [
    (case, in_turn(case, number)) for corpus in CORPORA for number, case in enumerate(corpus.inputs)
]


@pytest.fixture(scope="session")
def warmed() -> Iterator[Warmed]:
    process = Warmed()
    yield process
    process.close()


@pytest.mark.parametrize(("case", "commands"), INPUTS, ids=[case.name[:80] for case, _ in INPUTS])
def test_nothing_comes_of_it(
    case: Hostile, commands: tuple[str, ...], warmed: Warmed, tmp_path: Path
) -> None:
    meeting = Meeting(case, tmp_path, warmed)
    found = {command: faults for command in commands if (faults := meeting.run(command)[1])}
    assert not found
