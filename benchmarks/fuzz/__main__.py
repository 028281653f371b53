"""The loop, what it keeps, and its table."""

from __future__ import annotations

import json
import random
import shlex
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import click

from benchmarks import fuzz
from benchmarks.fuzz.comparing import OPENERS
from benchmarks.fuzz.mutations import mutated
from benchmarks.fuzz.seeds import KINDS
from tests.hostile.case import COMMANDS, HARMLESS, Hostile
from tests.hostile.meeting import Meeting, Warmed

MODELS = 40
"""Different valid models of a format; a new one takes torch a second."""

PATIENCE, TIMEOUT = 60, "30"
"""Seconds by the clock, for a command and for one of its steps: beside other work."""

VALID = 0.2
RARELY = 8

COMPARE = "benchmarks.fuzz.comparing:compare"


@dataclass(slots=True)
class Tally:
    """What became of the cases of one format; `faults` by what they are."""

    runs: int = 0
    refused: int = 0
    folded: int = 0
    compared: int = 0
    untold: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class Fuzzing:
    """Cases of any format, in a warmed process; what fails is kept in `kept`."""

    def __init__(self, seed: int, kept: Path) -> None:
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self._seed, self._kept, self._warmed = seed, kept, Warmed(patience=PATIENCE)
        self._models: dict[tuple[str, int], bytes] = {}

    def case(self, form: str, number: int) -> None:
        """Make a case, run commands on it, compare what was folded."""
        chance = random.Random(f"{self._seed} {form} {number}")
        kind, model = KINDS[form], chance.randrange(MODELS)
        content = self._model(form, model)
        if chance.random() >= VALID:
            content = mutated(content, chance)
        commands = [kind.commands[0]]
        if chance.randrange(RARELY) == 0:
            commands.append(chance.choice(kind.commands))
        with tempfile.TemporaryDirectory() as folder:

            def make(place: Path) -> Path:
                (place / kind.name).write_bytes(content)
                return place / kind.name

            options = kind.options(model)
            hostile = Hostile(f"{form} {number}", make, kind.commands, options, HARMLESS)
            meeting = Meeting(hostile, Path(folder), self._warmed, TIMEOUT)
            for command in commands:
                for fault in self._met(meeting, form, model, command):
                    self._keep(form, number, content, command, options, fault)

    def _met(self, meeting: Meeting, form: str, model: int, command: str) -> Iterator[str]:
        tally = self.tallies[form]
        ended, faults = meeting.run(command)
        tally.runs += 1
        tally.refused += ended["code"] in (1, 2, 3)
        yield from faults
        if command == "fold" and ended["code"] == 0 and form in OPENERS:
            tally.folded += 1
            told = meeting.call(COMPARE, str(meeting.folded), form, model)
            found = json.loads(told["out"].strip().splitlines()[-1]) if told["code"] == 0 else {}
            tally.compared += "same" in found or "differs" in found
            tally.untold += "untold" in found
            if "differs" in found:
                yield f"the fold differs: {found['differs']}"
            elif not found:
                yield f"what was folded ends its process: exit {told['code']}"

    def _model(self, form: str, number: int) -> bytes:
        """A valid model, made once."""
        if (form, number) not in self._models:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / KINDS[form].name
                KINDS[form].write(number, path)
                self._models[form, number] = path.read_bytes()
        return self._models[form, number]

    def _keep(
        self,
        form: str,
        number: int,
        content: bytes,
        command: str,
        options: tuple[str, ...],
        fault: str,
    ) -> None:
        what = fault.partition(":")[0]
        self.tallies[form].faults[what] += 1
        place = self._kept / f"{form.replace(' ', '_')}-{self._seed}-{number}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / KINDS[form].name
        path.write_bytes(content)
        names = dict.fromkeys(("out", "good", "toml"), ".")
        line = [part.format(model=path.name, **names) for part in COMMANDS[command]]
        with (place / "fault.txt").open("a") as file:
            file.write(f"bnfold {shlex.join([*line, *options])}\n    {fault}\n")
        click.echo(f"{place}: {command}: {fault[:200]}", err=True)

    def close(self) -> None:
        self._warmed.close()


def table(tallies: dict[str, Tally]) -> Iterator[str]:
    yield "| format | runs | refused | folded | compared | untold | faults |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for form, tally in tallies.items():
        numbers = (tally.runs, tally.refused, tally.folded, tally.compared, tally.untold)
        cells = [form, *map(str, numbers), str(tally.faults.total())]
        yield f"| {' | '.join(cells)} |"
    for form, tally in tallies.items():
        for what, often in tally.faults.most_common():
            yield f"{form}: {often} times {what}"


@click.command(help=fuzz.__doc__)
@click.option("--minutes", type=float, help="How long to go on. Default: until --cases are done.")
@click.option("--cases", type=int, help="How many of each format. Default: until the time is up.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--format", "forms", type=click.Choice(list(KINDS)), multiple=True)
@click.option("--keep", type=click.Path(path_type=Path), default="build/fuzz", show_default=True)
def main(
    minutes: float | None, cases: int | None, seed: int, forms: tuple[str, ...], keep: Path
) -> None:
    if minutes is None and cases is None:
        raise click.UsageError("give --minutes or --cases")
    warnings.simplefilter("ignore")
    deadline = time.monotonic() + 60 * (minutes or 1e6)
    fuzzing = Fuzzing(seed, keep)
    try:
        for number in count() if cases is None else range(cases):
            for form in forms or KINDS:
                if time.monotonic() > deadline:
                    return
                fuzzing.case(form, number)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
    finally:
        fuzzing.close()
        click.echo("\n".join(table(fuzzing.tallies)))


if __name__ == "__main__":
    main()
