"""What of the corpus the default tests run: every format with every command, and LEAST inputs.

The whole has thousands of runs. Of each format those inputs are taken that lie evenly apart, each
with the command that had the fewest of them so far; whatever waits for a time-out is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tests.hostile.case import Corpus, Hostile

LEAST = 150

_WAITS = re.compile(
    r"loop|grows|sleep|10\^15|hundred thousand|million|10,000 models|20,000|00,000 (names|outputs)"
)
"""In the names of inputs that take seconds, of the time-out or of the processor."""

Run = tuple[Hostile, str]


def selected(corpora: Sequence[Corpus], least: int = LEAST) -> list[Run]:
    """At least `least` inputs, each with one command, and every command of every format."""
    total = sum(len(corpus.inputs) for corpus in corpora)
    shares = [-(-least * len(corpus.inputs) // total) for corpus in corpora]
    return [run for pair in zip(corpora, shares, strict=True) for run in _of(*pair)]


def _of(corpus: Corpus, share: int) -> list[Run]:
    able = [case for case in corpus.inputs if not _WAITS.search(case.name)]
    taken = [able[len(able) * number // share] for number in range(share)]
    met: Counter[str] = Counter()
    runs: list[Run] = []
    for case in taken:
        command = min(case.commands, key=lambda each: met[each])
        met[command] += 1
        runs.append((case, command))
    for command in sorted({command for case in able for command in case.commands} - met.keys()):
        runs.append((next(case for case in able if command in case.commands), command))
    return runs
