"""The corpus as a table, and the faults of some of it.

python -m tests.hostile                    how many inputs of which format, for which commands
python -m tests.hostile onnx "Expand"      run those whose name has the text; print every fault
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import click

from tests.hostile.corpus import CORPORA
from tests.hostile.meeting import Meeting, Warmed


def table() -> None:
    total: Counter[str] = Counter()
    for corpus in CORPORA:
        counted = Counter(command for case in corpus.inputs for command in case.commands)
        total += counted
        listed = ", ".join(f"{command} {count}" for command, count in counted.most_common())
        click.echo(f"{corpus.format:12} {len(corpus.inputs):4}  {listed}")
    click.echo(f"{sum(len(corpus.inputs) for corpus in CORPORA)} inputs, {total.total()} runs")


def run(format_: str, part: str) -> int:
    """Every fault of the inputs of a format whose name has `part` in it."""
    warmed, found, runs, started = Warmed(patience=40), 0, 0, time.monotonic()
    chosen = [c for corpus in CORPORA if corpus.format == format_ for c in corpus.inputs]
    slow: list[tuple[float, str]] = []
    for case in chosen:
        if part not in case.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            meeting, faults = Meeting(case, Path(folder), warmed), Counter[str]()
            where: dict[str, list[str]] = {}
            for command in case.commands:
                ended, wrong = meeting.run(command)
                runs += 1
                slow.append((ended["elapsed"], f"{case.name} | {command}"))
                for fault in wrong:
                    faults[fault] += 1
                    where.setdefault(fault.replace(folder, "DIR"), []).append(command)
                if ended["hung"]:
                    break
        for fault, commands in where.items():
            found += 1
            told = "ALL" if len(commands) >= len(case.commands) > 1 else ", ".join(commands)
            click.echo(f"{case.name} | {told} | {fault[:300]!r}")
    warmed.close()
    click.echo(f"{runs} runs in {time.monotonic() - started:.0f} s, {found} faults")
    for seconds, what in sorted(slow)[-5:]:
        click.echo(f"  {seconds:5.1f} s  {what}")
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        sys.exit(bool(run(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")))
    table()
