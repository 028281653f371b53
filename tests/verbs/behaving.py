"""In place of `make`: what a worker of `build` does says the name of its model."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bnfold.verbs import workers
from bnfold.verbs.building import Built
from bnfold.verbs.pipeline import Entry

workers.GRACE = float(os.environ.get("GRACE", workers.GRACE))


def make(entry: Entry, reports: object = None) -> Built:
    begun, (place,) = entry.output / f"{entry.name}.begun", entry.places.values()
    begun.write_text(str(os.getpid()))
    match entry.name:
        case "slow" | "slower":
            time.sleep(100)
        case "deaf":
            while True:
                _doze(entry.output / "deaf.asked")
        case "writing":
            with workers.uninterrupted():
                time.sleep(1)
                place.write_text("whole")
        case _:
            place.write_text("whole")
    return Built(entry.name, 0, {})


def _doze(asked: Path) -> None:
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        asked.write_text("yes")
